"""Writing: appending by several processes, direct and synchronous, mappings, vectors, many at once."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, NewMount
from tests.posix.calls import append_records, mapped_put
from tests.posix.kit import failing

PAGE = mmap.PAGESIZE
spawn = multiprocessing.get_context("spawn")


@pytest.mark.parametrize("size", [1, 100, 5000, 200_000])
def test_appending_processes_lose_and_tear_no_record(folder: Path, size: int) -> None:
    path = folder / "log"
    path.touch()
    count = 100 if size < 100_000 else 10
    writers = [spawn.Process(target=append_records, args=(path, letter, count, size)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    content = path.read_bytes()
    assert len(content) == 3 * count * size
    records = [content[at : at + size] for at in range(0, len(content), size)]
    assert {record: records.count(record) for record in set(records)} == {
        each * size: count for each in (b"a", b"b", b"c")
    }


def test_append_goes_to_the_end_whatever_the_offset(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"0123456789")
    with path.open("ab", buffering=0) as file:
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        file.write(b"a")
        assert file.tell() == 11
        os.truncate(path, 3)
        file.write(b"b")
        os.truncate(path, 6)
        file.write(b"c")
    assert path.read_bytes() == b"012b\0\0c"


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC, os.O_SYNC | os.O_DIRECT, os.O_SYNC | os.O_APPEND])
def test_synchronous_writes_survive_a_kill(new_mount: NewMount, flags: int) -> None:
    """P1, and without any fsync."""
    mount = new_mount(settings={"namespace": {"commit_interval_seconds": 3600.0}})
    memory = mmap.mmap(-1, PAGE)
    memory.write(b"d" * PAGE)
    descriptor = os.open(mount.path / "f", os.O_CREAT | os.O_WRONLY | flags)
    assert os.write(descriptor, memory) == PAGE
    mount.kill()
    with failing(errno.ENOTCONN, errno.ECONNABORTED):
        os.write(descriptor, memory)
    with failing(errno.ENOTCONN, errno.ECONNABORTED):
        os.close(descriptor)
    mount.mount()
    assert (mount.path / "f").read_bytes() == b"d" * PAGE


def test_direct_reading_and_writing(folder: Path) -> None:
    """Aligned or not; the other descriptors' view through the kernel's pages agrees at once."""
    path = folder / "f"
    path.write_bytes(b"." * 3 * PAGE)
    direct, cached = os.open(path, os.O_RDWR | os.O_DIRECT), os.open(path, os.O_RDWR)
    try:
        memory = mmap.mmap(-1, PAGE)
        assert os.pread(cached, 3 * PAGE, 0) == b"." * 3 * PAGE
        memory.write(b"d" * PAGE)
        assert os.pwrite(direct, memory, PAGE) == PAGE
        assert os.pread(cached, 3 * PAGE, 0) == b"." * PAGE + b"d" * PAGE + b"." * PAGE
        assert os.pwrite(cached, b"cached", PAGE + 10) == 6
        assert os.preadv(direct, [memory], PAGE) == PAGE
        assert memory[:20] == b"d" * 10 + b"cached" + b"d" * 4
        assert os.pwrite(direct, b"unaligned", 5) == 9
        assert os.pread(cached, 20, 0) == b"....." + b"unaligned" + b"......"
        assert os.preadv(direct, [memory], 3 * PAGE - 10) == 10
    finally:
        os.close(direct)
        os.close(cached)


def test_a_shared_mapping_and_the_file_are_one(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"." * 3 * PAGE)
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as one, mmap.mmap(file.fileno(), 0) as two:
        one[10:13] = b"map"
        assert two[10:13] == b"map"
        assert os.pread(file.fileno(), 3, 10) == b"map"
        os.pwrite(file.fileno(), b"write", PAGE)
        assert one[PAGE : PAGE + 5] == b"write"
        one.flush()
        path.unlink()
        two[0:1] = b"u"
        assert os.pread(file.fileno(), 1, 0) == b"u"


def test_a_private_mapping_keeps_its_changes(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"." * PAGE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3) as memory:
        memory[0:7] = b"private"
        assert memory[0:7] == b"private"
    assert path.read_bytes() == b"." * PAGE


def test_a_mapping_of_another_process_is_stored(folder: Path, mounted: Mount) -> None:
    path = mounted.path / "f"
    path.write_bytes(b"." * 100_000)
    process = spawn.Process(target=mapped_put, args=(path, 50_000, b"by another process"))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path.read_bytes()[50_000:50_018] == b"by another process"
    mounted.remount()
    assert path.read_bytes() == b"." * 50_000 + b"by another process" + b"." * 49_982


def test_the_last_page_of_a_mapping_ends_with_zeros(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * PAGE)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as memory:
        os.truncate(path, 100)
        assert memory[90:110] == b"x" * 10 + bytes(10)
        memory[200:205] = b"after"
        memory.flush()
        assert path.stat().st_size == 100
    os.truncate(path, PAGE)
    assert path.read_bytes() == b"x" * 100 + bytes(PAGE - 100), "what lies behind the end is not part of the file"


def test_vectors(folder: Path) -> None:
    with (folder / "f").open("w+b", buffering=0) as file:
        assert os.writev(file.fileno(), [b"one", b"", b"two", b"x" * 200_000]) == 200_006
        buffers = [bytearray(2), bytearray(4), bytearray(10)]
        assert os.preadv(file.fileno(), buffers, 0) == 16
    assert [bytes(each) for each in buffers] == [b"on", b"etwo", b"x" * 10]


def test_writers_of_different_parts(folder: Path) -> None:
    path = folder / "f"
    path.touch()

    def write(number: int) -> None:
        descriptor = os.open(path, os.O_WRONLY)
        for at in range(number, 400, 8):
            os.pwrite(descriptor, bytes([number]) * 3000, at * 3000)
        os.close(descriptor)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == b"".join(bytes([at % 8]) * 3000 for at in range(400))

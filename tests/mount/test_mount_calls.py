"""Every operation, by real system calls on a real mount."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

from tests.mount.failing import failing


def test_create_write_read(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"hello")
    assert path.read_bytes() == b"hello"
    assert path.stat().st_size == 5
    with failing(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL)
    with failing(errno.ENOENT):
        (folder / "no").read_bytes()


def test_f3_a_shorter_overwrite_leaves_no_tail(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"a long first version")
    path.write_bytes(b"short")
    assert path.read_bytes() == b"short"
    os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
    assert path.stat().st_size == 0


def test_append(folder: Path) -> None:
    path = folder / "f"
    one = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    two = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(one, b"1")
    os.write(two, b"22")
    os.write(one, b"333")
    os.close(one)
    os.close(two)
    assert path.read_bytes() == b"122333"


def test_large_content_across_chunks_and_random_places(folder: Path) -> None:
    path = folder / "f"
    content = bytearray(os.urandom(5 * 1024 * 1024 + 77))
    with path.open("w+b") as file:
        file.write(content)
        for offset, length in ((0, 3), (1024 * 1024 - 5, 10), (3_000_000, 300_000), (len(content) - 1, 50)):
            piece = os.urandom(length)
            file.seek(offset)
            file.write(piece)
            content[offset : offset + length] = piece
    assert path.read_bytes() == content
    descriptor = os.open(path, os.O_RDONLY)
    assert os.pread(descriptor, 20, 1024 * 1024 - 10) == content[1024 * 1024 - 10 : 1024 * 1024 + 10]
    assert os.pread(descriptor, 10, len(content) + 5) == b""
    os.close(descriptor)


def test_sparse_files(folder: Path) -> None:
    path = folder / "f"
    with path.open("wb") as file:
        file.truncate(2**40)
        file.seek(2**39)
        file.write(b"middle")
    facts = path.stat()
    assert facts.st_size == 2**40
    assert facts.st_blocks * 512 < 2**21
    with path.open("rb") as file:
        file.seek(2**39 - 4)
        assert file.read(14) == bytes(4) + b"middle" + bytes(4)
        file.seek(2**40 - 3)
        assert file.read() == bytes(3)


def test_truncate_and_grow_show_zeros(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 100)
    os.truncate(path, 6000)
    assert path.read_bytes() == b"x" * 100 + bytes(5900)
    with path.open("r+b") as file:
        os.ftruncate(file.fileno(), 50)
        assert os.fstat(file.fileno()).st_size == 50
    with failing(errno.EISDIR):
        os.truncate(folder, 0)


def test_an_open_file_lives_on_after_unlink(folder: Path) -> None:
    path = folder / "f"
    with path.open("w+b") as file:
        file.write(b"still here")
        file.flush()
        path.unlink()
        assert not path.exists()
        path.write_bytes(b"another one")
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b", and more")
        file.flush()
        os.fchmod(file.fileno(), 0o600)
        file.seek(0)
        assert file.read() == b"still here, and more"
    assert path.read_bytes() == b"another one"


def test_a_file_that_is_replaced_while_open(folder: Path) -> None:
    old, new = folder / "old", folder / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with old.open("rb") as file:
        os.rename(new, old)
        assert file.read() == b"old"
    assert old.read_bytes() == b"new"


def test_mmap_reads_and_writes(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"." * 300_000)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert memory[299_999:] == b"."
        memory[100_000:100_005] = b"mmap!"
        memory.flush()
    with path.open("rb") as source, mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert memory[99_999:100_006] == b".mmap!."
    assert path.read_bytes()[100_000:100_005] == b"mmap!"


def test_fsync_and_fsync_of_the_folder(folder: Path) -> None:
    descriptor = os.open(folder / "f", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    assert os.write(descriptor, b"synchronous") == 11
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.close(descriptor)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
    assert (folder / "f").read_bytes() == b"synchronous"


def test_reading_and_writing_at_the_same_time(folder: Path) -> None:
    def work(number: int) -> None:
        path = folder / str(number)
        for turn in range(20):
            path.write_bytes(bytes([number]) * (1000 * turn + 1))
            content = path.read_bytes()
            if content != bytes([number]) * (1000 * turn + 1):
                wrong.append((number, turn))

    wrong: list[tuple[int, int]] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(list(folder.iterdir())) == 8

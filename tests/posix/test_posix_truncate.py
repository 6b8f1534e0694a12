"""truncate and sparse files: zeros where nothing was written, honest block counts, the largest file."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from tests.posix.kit import Person, failing

MIB = 1024 * 1024
LARGEST = 2**63 - 1


@pytest.mark.parametrize("start", [0, 1, 4096, 4097, MIB, 2 * MIB + 17])
@pytest.mark.parametrize("end", [0, 1, 4095, 4096, MIB - 1, MIB, 3 * MIB + 5])
def test_sizes(folder: Path, start: int, end: int) -> None:
    path = folder / "f"
    content = os.urandom(start)
    path.write_bytes(content)
    os.truncate(path, end)
    assert path.stat().st_size == end
    assert path.read_bytes() == content[:end].ljust(end, b"\0")


def test_what_was_cut_off_never_comes_back(folder: Path, shared_mount: Mount) -> None:
    """Not from the kernel's pages, nor from chunks that are stored, nor through a mapping's last page."""
    path = folder / "f"
    path.write_bytes(b"secret" * 500_000)
    shared_mount.sync()
    for size in (2 * MIB + 1, 2 * MIB - 1, 5000, 10):
        os.truncate(path, size)
        os.truncate(path, 3_000_000)
        assert path.read_bytes()[size:] == bytes(3_000_000 - size)
        shared_mount.sync()


def test_what_is_refused(folder: Path, person: Callable[..., Person]) -> None:
    (folder / "f").write_bytes(b"kept")
    (folder / "d").mkdir()
    os.mkfifo(folder / "fifo")
    for name, size, code in (
        ("d", 0, errno.EISDIR),
        ("fifo", 0, errno.EINVAL),
        ("missing", 0, errno.ENOENT),
        ("f", -1, errno.EINVAL),
    ):
        with failing(code):
            os.truncate(folder / name, size)
    (folder / "f").chmod(0o644)
    with failing(errno.EACCES):
        person().truncate("f", 0)
    assert (folder / "f").read_bytes() == b"kept"


def test_the_limit_of_a_process_holds(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with (folder / "f").open("wb", buffering=0) as file:
            with failing(errno.EFBIG):
                os.ftruncate(file.fileno(), 10_001)
            assert file.write(bytes(20_000)) == 10_000
            with failing(errno.EFBIG):
                file.write(b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (folder / "f").stat().st_size == 10_000


@pytest.mark.parametrize("offset", [5000, 64 * MIB - 3, 2**32 - 2, 2**40 + 12345, 2**62, LARGEST - 14])
def test_a_hole_costs_nothing_and_reads_as_zeros(folder: Path, shared_mount: Mount, offset: int) -> None:
    path = folder / "f"
    with path.open("w+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), b"data", offset) == 4
        for stored in (False, True):
            assert os.fstat(file.fileno()).st_size == offset + 4
            assert os.fstat(file.fileno()).st_blocks * 512 < 2 * MIB
            assert os.pread(file.fileno(), 14, offset - 10) == bytes(10) + b"data"
            assert os.pread(file.fileno(), 10, offset // 2) == bytes(min(10, offset))
            assert os.pread(file.fileno(), 10, offset + 4) == b""
            if not stored:
                shared_mount.sync()
        os.ftruncate(file.fileno(), offset)
        assert os.fstat(file.fileno()).st_blocks == 0


def test_the_largest_file(folder: Path) -> None:
    """8 EiB - 1; one byte more is refused, and nothing changes."""
    path = folder / "f"
    path.touch()
    os.truncate(path, LARGEST)
    assert path.stat().st_size == LARGEST
    assert path.stat().st_blocks == 0
    with path.open("r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 10, LARGEST - 10) == bytes(10)
        with failing(errno.EFBIG, errno.EINVAL, errno.EOVERFLOW):
            os.pwrite(file.fileno(), b"x", LARGEST)
        assert os.lseek(file.fileno(), 0, os.SEEK_END) == LARGEST
    os.truncate(path, 5)
    assert path.read_bytes() == bytes(5)


@pytest.mark.parametrize("size", [1, 512, 4096, 4097, 100_000, 3 * MIB])
def test_st_blocks_counts_what_was_written(folder: Path, shared_mount: Mount, size: int) -> None:
    path = folder / "f"
    path.write_bytes(os.urandom(size))
    for _ in range(2):
        assert path.stat().st_blocks == -(-size // 512)
        shared_mount.sync()
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"far", 100 * MIB)
    assert path.stat().st_blocks * 512 < size + 4096

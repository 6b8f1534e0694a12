"""open: flags, what is refused and how, and what an open file is independent of."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.posix.kit import failing, permissions


def test_exclusive_creation(folder: Path) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(folder / "f", flags, 0o600))
    (folder / "dangling").symlink_to("missing")
    (folder / "d").mkdir()
    for name in ("f", "dangling", "d"):
        with failing(errno.EEXIST):
            os.open(folder / name, flags)
    os.close(os.open(folder / "dangling", os.O_CREAT | os.O_WRONLY))
    assert (folder / "missing").is_file()


def test_a_new_file_may_be_written_whatever_its_mode(folder: Path) -> None:
    for mode in (0, 0o444):
        with open(os.open(folder / f"{mode:o}", os.O_CREAT | os.O_RDWR, mode), "w+b") as file:
            file.write(b"written")
            file.flush()
            assert os.pread(file.fileno(), 10, 0) == b"written"
        assert permissions(folder / f"{mode:o}") == mode


def test_what_is_refused(folder: Path) -> None:
    (folder / "f").write_bytes(b"kept")
    (folder / "d").mkdir()
    (folder / "link").symlink_to("f")
    (folder / "to-d").symlink_to("d")
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "socket", 0o140600)
    for name, flags, code in (
        ("d", os.O_WRONLY, errno.EISDIR),
        ("d", os.O_RDWR, errno.EISDIR),
        ("d", os.O_CREAT | os.O_WRONLY, errno.EISDIR),
        ("d", os.O_RDONLY | os.O_TRUNC, errno.EISDIR),
        ("f", os.O_DIRECTORY, errno.ENOTDIR),
        ("link", os.O_NOFOLLOW, errno.ELOOP),
        ("to-d", os.O_NOFOLLOW | os.O_DIRECTORY, errno.ENOTDIR),
        ("fifo", os.O_WRONLY | os.O_NONBLOCK, errno.ENXIO),
        ("socket", os.O_RDONLY, errno.ENXIO),
        ("missing", os.O_RDONLY, errno.ENOENT),
        ("missing", os.O_WRONLY | os.O_TRUNC, errno.ENOENT),
    ):
        with failing(code):
            os.open(folder / name, flags)
    assert (folder / "f").read_bytes() == b"kept"
    assert not (folder / "missing").exists()


def test_a_file_without_a_name_from_the_start_is_refused(folder: Path) -> None:
    """O_TMPFILE: programs try it, and then make a file and unlink it."""
    with failing(errno.EOPNOTSUPP):
        os.open(folder, os.O_TMPFILE | os.O_RDWR)


def test_access_modes(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"0123456789")
    reading, writing = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    handle = os.open(path, os.O_PATH)
    try:
        for attempt in (
            lambda: os.write(reading, b"x"),
            lambda: os.read(writing, 1),
            lambda: os.read(handle, 1),
            lambda: os.write(handle, b"x"),
        ):
            with failing(errno.EBADF):
                attempt()
        with failing(errno.EINVAL, errno.EBADF):
            os.ftruncate(reading, 0)
        assert os.fstat(handle).st_size == 10
        assert os.fstat(handle).st_ino == path.stat().st_ino
    finally:
        for descriptor in (reading, writing, handle):
            os.close(descriptor)


def test_every_open_has_an_offset_of_its_own(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"0123456789")
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    three = os.dup(one)
    try:
        assert os.read(one, 3) == b"012"
        assert os.read(two, 2) == b"01"
        assert os.read(three, 2) == b"34"
        assert os.write(two, b"ab") == 2
        assert os.pread(one, 10, 0) == b"01ab456789"
        assert os.lseek(one, 0, os.SEEK_END) == 10
        assert os.read(one, 1) == b""
    finally:
        for descriptor in (one, two, three):
            os.close(descriptor)


def test_a_reader_sees_a_file_grow(folder: Path) -> None:
    path = folder / "log"
    path.touch()
    with path.open("rb") as reader, path.open("ab", buffering=0) as writer:
        for number in range(200):
            writer.write(b"%d\n" % number * 100)
            assert reader.read() == b"%d\n" % number * 100
        os.truncate(path, 0)
        assert reader.read() == b""
        writer.write(b"again")
        assert os.pread(reader.fileno(), 10, 0) == b"again"


def test_a_running_program_is_not_written_to(folder: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, folder / "program")
    with subprocess.Popen([folder / "program", "60"]) as running:
        try:
            with failing(errno.ETXTBSY):
                os.open(folder / "program", os.O_WRONLY)
            (folder / "program").unlink()
        finally:
            running.kill()
    with failing(errno.ENOENT):
        os.stat(folder / "program")


def test_scripts_and_programs_run(folder: Path) -> None:
    (folder / "script").write_text("#!/bin/sh\necho ran $1\n")
    with failing(errno.EACCES):
        subprocess.run([folder / "script"], check=False)
    (folder / "script").chmod(0o755)
    assert subprocess.run([folder / "script", "it"], capture_output=True, text=True).stdout == "ran it\n"


def test_what_pyfuse3_has_no_call_for(folder: Path) -> None:
    """Refused in the way for which programs have another: docs/posix.md."""
    from tests.posix.calls import fallocate

    path = folder / "f"
    path.write_bytes(b"0123456789")
    with path.open("r+b") as file:
        with failing(errno.EOPNOTSUPP):
            fallocate(file.fileno(), 0, 0, 4096)
        with failing(errno.EOPNOTSUPP):
            fallocate(file.fileno(), 3, 0, 4)  # punch a hole
        os.posix_fallocate(file.fileno(), 0, 8192)
        assert os.fstat(file.fileno()).st_size == 8192
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 8192
        with failing(errno.ENOTTY):
            fcntl.ioctl(file.fileno(), 0x80086601, bytearray(8))  # FS_IOC_GETFLAGS, as lsattr asks
    assert path.read_bytes() == b"0123456789" + bytes(8182)


@pytest.mark.parametrize("size", [0, 1, 4096, 3_000_001])
def test_copies_by_the_kernel(folder: Path, size: int) -> None:
    """copy_file_range and sendfile: the kernel reads and writes when the file system has no call of its own."""
    content = os.urandom(size)
    (folder / "source").write_bytes(content)
    for name in ("copy_file_range", "sendfile"):
        with (folder / "source").open("rb") as source, (folder / name).open("wb") as target:
            left = size
            while left:
                if name == "sendfile":
                    done = os.sendfile(target.fileno(), source.fileno(), None, left)
                else:
                    done = os.copy_file_range(source.fileno(), target.fileno(), left)
                assert done > 0
                left -= done
        assert (folder / name).read_bytes() == content

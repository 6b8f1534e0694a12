"""Every operation, by real system calls on a real mount."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import threading
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount

NOREPLACE, EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(source: Path, target: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def failing(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == code)


# files


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
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
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


# names


def test_folders(folder: Path) -> None:
    path = folder / "d"
    path.mkdir(0o750)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert folder.stat().st_nlink == 3
    (path / "f").touch()
    with failing(errno.ENOTEMPTY):
        path.rmdir()
    with failing(errno.EISDIR):
        path.unlink()
    with failing(errno.ENOTDIR):
        (path / "f").rmdir()
    (path / "f").unlink()
    path.rmdir()
    assert folder.stat().st_nlink == 2
    with failing(errno.ENOENT):
        path.rmdir()


def test_symlinks(folder: Path) -> None:
    link = folder / "link"
    target = b"../" * 100 + b"\xff odd"
    os.symlink(target, os.fsencode(link))
    assert os.readlink(os.fsencode(link)) == target
    assert stat.S_ISLNK(link.lstat().st_mode)
    assert link.lstat().st_size == len(target)
    (folder / "real").write_text("through")
    (folder / "good").symlink_to("real")
    assert (folder / "good").read_text() == "through"
    with failing(errno.ELOOP):
        (folder / "loop").symlink_to("loop")
        (folder / "loop").read_bytes()


def test_hard_links(folder: Path) -> None:
    one, two, three = folder / "one", folder / "two", folder / "three"
    one.write_bytes(b"shared")
    os.link(one, two)
    os.link(two, three)
    assert one.stat().st_nlink == 3
    assert one.stat().st_ino == two.stat().st_ino == three.stat().st_ino
    two.write_bytes(b"changed")
    one.unlink()
    assert three.read_bytes() == b"changed"
    assert three.stat().st_nlink == 2
    os.rename(two, three)  # two names of one file: nothing happens
    assert two.exists()
    with failing(errno.EEXIST):
        os.link(two, three)
    with failing(errno.EPERM):
        os.link(folder, folder / "loop")


def test_rename_replaces(folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    os.rename(folder / "a", folder / "b")
    assert (folder / "b").read_bytes() == b"a"
    assert not (folder / "a").exists()
    (folder / "d").mkdir()
    (folder / "e").mkdir()
    (folder / "e" / "f").touch()
    with failing(errno.ENOTEMPTY):
        os.rename(folder / "d", folder / "e")
    with failing(errno.EINVAL):
        os.rename(folder / "e", folder / "e" / "inside")
    os.rename(folder / "e", folder / "d")
    assert (folder / "d" / "f").exists()
    with failing(errno.EISDIR):
        os.rename(folder / "b", folder / "d")
    with failing(errno.ENOTDIR):
        os.rename(folder / "d", folder / "b")


def test_rename_to_another_folder_moves_the_parent(folder: Path) -> None:
    (folder / "from" / "child").mkdir(parents=True)
    (folder / "to").mkdir()
    os.rename(folder / "from" / "child", folder / "to" / "moved")
    assert (folder / "to" / "moved" / "..").stat().st_ino == (folder / "to").stat().st_ino
    assert (folder / "from").stat().st_nlink == 2
    assert (folder / "to").stat().st_nlink == 3


def test_rename_noreplace_and_exchange(folder: Path) -> None:
    a, b = folder / "a", folder / "b"
    a.write_bytes(b"a")
    b.mkdir()
    with failing(errno.EEXIST):
        renameat2(a, b, NOREPLACE)
    renameat2(a, b, EXCHANGE)
    assert a.is_dir()
    assert b.read_bytes() == b"a"
    renameat2(b, folder / "c", NOREPLACE)
    assert (folder / "c").read_bytes() == b"a"
    with failing(errno.ENOENT):
        renameat2(a, folder / "nothing", EXCHANGE)
    with failing(errno.EINVAL):
        renameat2(a, folder / "free", 4)  # RENAME_WHITEOUT


@pytest.mark.parametrize("name", [b"x" * 255, b"\xff\xfe\x01", "größe 文件 🦑".encode(), b" ", b"new\nline", b"-rf"])
def test_names_are_any_bytes(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "wb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(folder)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name
    os.rename(path, path[:-1] + b"!")
    os.unlink(path[:-1] + b"!")


def test_names_longer_than_255_bytes(folder: Path) -> None:
    with failing(errno.ENAMETOOLONG):
        (folder / ("x" * 256)).touch()
    with failing(errno.ENAMETOOLONG):
        (folder / ("ü" * 128)).mkdir()


def test_special_files(folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(folder / "regular", stat.S_IFREG | 0o600)
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((folder / "socket").stat().st_mode)
    assert (folder / "regular").read_bytes() == b""
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert (folder / "null").stat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISCHR((folder / "null").stat().st_mode)


# listings


def test_f5_listings_have_dots_and_every_name_once(folder: Path) -> None:
    names = {f"file-{number:04}" for number in range(5000)}
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
    listed = os.listdir(folder)
    assert len(listed) == 5000
    assert set(listed) == names
    raw = raw_entries(folder)
    assert raw[b"."] == folder.stat().st_ino
    assert raw[b".."] == folder.parent.stat().st_ino
    assert raw[b"file-0042"] == (folder / "file-0042").stat().st_ino


def raw_entries(path: Path) -> dict[bytes, int]:
    """Name -> d_ino by getdents64(2), which hides nothing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    found = {}
    buffer = ctypes.create_string_buffer(4096)
    while (got := _libc.syscall(217, descriptor, buffer, 4096)) > 0:
        at = 0
        while at < got:
            length = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
            name = buffer.raw[at + 19 : at + length].split(b"\0")[0]
            assert name not in found, f"{name!r} is listed twice"
            found[name] = int.from_bytes(buffer.raw[at : at + 8], "little")
            at += length
    os.close(descriptor)
    assert got == 0
    return found


def test_removing_while_listing(folder: Path) -> None:
    for number in range(1000):
        (folder / str(number)).touch()
    seen = []
    with os.scandir(folder) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen, key=int) == [str(number) for number in range(1000)]
    assert os.listdir(folder) == []
    folder.rmdir()


def test_an_open_folder_that_is_removed(folder: Path) -> None:
    path = folder / "d"
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    path.rmdir()
    assert os.listdir(descriptor) == []
    with failing(errno.ENOENT):
        os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.close(descriptor)


# attributes


def test_times_have_nanoseconds(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    facts = path.stat()
    assert (facts.st_atime_ns, facts.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_987_654_321)
    os.utime(path, ns=(-1_500_000_000, 0))
    assert path.stat().st_atime_ns == -1_500_000_000


def test_changes_move_the_right_times(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"1")
    os.utime(path, ns=(0, 0))
    os.utime(folder, ns=(0, 0))
    changed = path.stat().st_ctime_ns
    path.chmod(0o600)
    assert path.stat().st_mtime_ns == 0
    assert path.stat().st_ctime_ns > changed
    assert folder.stat().st_mtime_ns == 0
    with path.open("ab") as file:
        file.write(b"2")
    assert path.stat().st_mtime_ns > 0
    assert path.stat().st_size == 2
    (folder / "g").touch()
    assert folder.stat().st_mtime_ns > 0
    changed = path.stat().st_ctime_ns
    os.link(path, folder / "h")
    assert path.stat().st_ctime_ns > changed


def test_mode_and_owner(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"#!/bin/true\n")
    path.chmod(0o6755)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755
    assert stat.S_ISREG(path.stat().st_mode)
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
        facts = path.stat()
        assert (facts.st_uid, facts.st_gid) == (12345, 54321)
        assert stat.S_IMODE(facts.st_mode) == 0o755, "a change of owner keeps set-user-id"
        os.chown(path, -1, 7)
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 7)


def test_permissions_are_checked_by_the_kernel(folder: Path) -> None:
    assert os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    path = folder / "f"
    path.write_bytes(b"")
    path.chmod(0o600)
    assert not os.access(path, os.X_OK)


def test_umask_applies_once(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(folder / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(folder / "d", 0o777)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((folder / "d").stat().st_mode) == 0o750


def test_extended_attributes(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    assert own(path) == []
    os.setxattr(path, "user.color", b"blue")
    os.setxattr(path, b"user.\xff", bytes(range(256)) * 16)
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.color") == b"blue"
    assert os.getxattr(path, b"user.\xff") == bytes(range(256)) * 16
    assert os.getxattr(path, "user.empty") == b""
    assert own(path) == sorted(["user.color", "user.empty", os.fsdecode(b"user.\xff")])
    with failing(errno.EEXIST):
        os.setxattr(path, "user.color", b"red", os.XATTR_CREATE)
    os.setxattr(path, "user.color", b"red", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.color") == b"red"
    with failing(errno.ENODATA):
        os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)
    os.removexattr(path, "user.color")
    with failing(errno.ENODATA):
        os.getxattr(path, "user.color")
    with failing(errno.ENODATA):
        os.removexattr(path, "user.color")
    os.setxattr(folder, "user.on-a-folder", b"1")
    assert os.getxattr(folder, "user.on-a-folder") == b"1"


def own(path: Path) -> list[str]:
    """Attributes that somebody set; not the facts FlakeFS tells about a file."""
    return sorted(name for name in os.listxattr(path) if not name.startswith("user.flakefs."))


def test_statfs(shared_mount: Mount) -> None:
    facts = os.statvfs(shared_mount.path)
    assert facts.f_namemax == 255
    assert facts.f_bsize > 0
    assert 0 < facts.f_bavail <= facts.f_blocks
    assert facts.f_ffree > 0
    assert shared_mount.path.stat().st_blksize == 1024 * 1024


def test_f2_thousands_of_names_come_and_go(folder: Path) -> None:
    """Look-up counts: names that the kernel forgets and learns again stay right."""
    for turn in range(3):
        for number in range(300):
            (folder / f"{turn}-{number}").write_bytes(b"x")
        for number in range(0, 300, 2):
            (folder / f"{turn}-{number}").unlink()
        drop_caches()
    assert len(os.listdir(folder)) == 450
    assert (folder / "1-7").read_bytes() == b"x"
    with failing(errno.ENOENT):
        (folder / "1-8").stat()


def drop_caches() -> None:
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("2\n")


def test_missing_names_are_remembered_and_then_made(folder: Path) -> None:
    path = folder / "later"
    for _ in range(3):
        with failing(errno.ENOENT):
            path.stat()
    path.touch()
    assert path.exists()
    path.unlink()
    with failing(errno.ENOENT):
        path.stat()
    (folder / "other").touch()
    os.rename(folder / "other", path)
    assert path.exists()

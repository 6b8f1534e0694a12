"""What each operation means, on real servers."""

from __future__ import annotations

import os
import stat

import pytest

from flakefs.app.stack import Stack
from flakefs.errors import (
    BadHandle,
    Exists,
    FileTooLarge,
    InvalidArgument,
    IsDirectory,
    NameTooLong,
    NoAttribute,
    NotDirectory,
    NotFound,
    NotPermitted,
    NotSupported,
    ReadOnly,
    Stale,
    TooManySymlinks,
)
from flakefs.testing.stack import Fresh
from flakefs.values import FILE_MAX, ROOT_INO, SEGMENT_BYTES
from flakefs.vfs import Caller, Changes, FileSystem
from flakefs.vfs.paths import resolve, resolve_parent

ROOT = Caller(0, 0)
USER = Caller(1000, 1000)
KIB = 1024
CHUNK = 64 * KIB


async def put(fs: FileSystem, name: bytes, data: bytes, *, parent: int = ROOT_INO) -> int:
    """A new file with content; its ino."""
    handle, inode = await fs.create(parent, name, 0o644, os.O_WRONLY, ROOT)
    if data:
        assert await fs.write(handle, 0, data) == len(data)
    await fs.flush(handle)
    await fs.release(handle)
    return inode.ino


async def get(fs: FileSystem, ino: int) -> bytes:
    handle = await fs.open(ino, os.O_RDONLY)
    data = bytes(await fs.read(handle, 0, 2**30))
    await fs.release(handle)
    return data


async def test_what_is_written_is_there_after_reopening(fresh: Fresh) -> None:
    contents = {b"empty": b"", b"small": b"s" * 4096, b"medium": b"m" * 4097, b"large": os.urandom(5 * CHUNK + 17)}
    async with fresh.open() as stack:
        for name, data in contents.items():
            assert await get(stack.fs, await put(stack.fs, name, data)) == data
    async with fresh.open() as stack:
        for name, data in contents.items():
            inode = await resolve(stack.fs, b"/" + name)
            assert inode.size == inode.used == len(data)
            assert await get(stack.fs, inode.ino) == data
        assert stack.fs.statistics().open_bytes == 0


async def test_small_files_are_literal_and_large_ones_chunks(stack: Stack) -> None:
    await put(stack.fs, b"small", b"s" * 4096)
    await put(stack.fs, b"large", b"l" * 4097)
    await stack.fs.sync()
    inodes = stack.door.client[stack.database]["inodes"]
    (small,) = inodes.find_one({"n": "small"})["e"]
    (large,) = inodes.find_one({"n": "large"})["e"]
    assert bytes(small["d"]) == b"s" * 4096
    assert (large["l"], large["z"], "d" in large) == (4097, 4097, False)
    assert stack.door.client[stack.database]["chunks"].count_documents({}) == 1


async def test_equal_content_is_stored_once(stack: Stack) -> None:
    data = os.urandom(3 * CHUNK + 5000)
    await put(stack.fs, b"one", data)
    await stack.fs.sync()
    await put(stack.fs, b"two", data)
    await stack.fs.sync()
    chunks = list(stack.door.client[stack.database]["chunks"].find())
    assert sorted(chunk["r"] for chunk in chunks) == [2, 2, 2, 2]


async def test_an_unlinked_file_lives_until_it_is_closed(stack: Stack) -> None:
    fs = stack.fs
    handle, inode = await fs.create(ROOT_INO, b"temp", 0o600, os.O_RDWR, ROOT)
    await fs.write(handle, 0, b"x" * (CHUNK + 1))
    await fs.unlink(ROOT_INO, b"temp")
    assert await fs.lookup(ROOT_INO, b"temp") is None
    await fs.sync()
    await fs.write(handle, CHUNK, b"yz")
    assert await fs.read(handle, CHUNK - 1, 10) == b"xyz"
    assert inode.nlink == 0
    await fs.release(handle)
    await fs.sync()
    await fs.sync()
    with pytest.raises(Stale):
        await fs.inode(inode.ino)
    assert fs.writeback.contents == {}
    assert stack.door.client[stack.database]["chunks"].count_documents({}) == 0


async def test_a_file_made_and_removed_at_once_costs_nothing(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"brief", b"b" * 10_000)
    await fs.unlink(ROOT_INO, b"brief")
    assert fs.statistics().open_bytes == 0
    assert fs.peek(ino) is None or fs.peek(ino).nlink == 0
    await fs.sync()
    assert fs.engine.statistics().stored_chunks == 0


async def test_renaming_over_an_open_file_leaves_it_readable(stack: Stack) -> None:
    fs = stack.fs
    old = await put(fs, b"old", b"old content")
    new = await put(fs, b"new", b"new content")
    handle = await fs.open(old, os.O_RDONLY)
    await fs.rename(ROOT_INO, b"new", ROOT_INO, b"old")
    assert (await resolve(fs, b"/old")).ino == new
    assert await fs.read(handle, 0, 100) == b"old content"
    await fs.release(handle)
    await put(fs, b"third", b"")
    with pytest.raises(Exists):
        await fs.rename(ROOT_INO, b"old", ROOT_INO, b"third", noreplace=True)
    await fs.rename(ROOT_INO, b"old", ROOT_INO, b"third", exchange=True)
    assert (await resolve(fs, b"/third")).ino == new


async def test_append_goes_to_the_end(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"log", b"one\n")
    handle = await fs.open(ino, os.O_WRONLY | os.O_APPEND)
    await fs.write(handle, 0, b"two\n")
    await fs.write(handle, 1, b"three\n")
    await fs.release(handle)
    assert await get(fs, ino) == b"one\ntwo\nthree\n"


async def test_open_truncates(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"a long content " * 10_000)
    before = (await fs.inode(ino)).mtime
    handle = await fs.open(ino, os.O_WRONLY | os.O_TRUNC)
    assert (await fs.inode(ino)).size == 0
    assert (await fs.inode(ino)).mtime > before
    await fs.write(handle, 0, b"short")
    await fs.release(handle)
    assert await get(fs, ino) == b"short"


async def test_create_opens_what_is_there_unless_exclusive(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"here")
    handle, inode = await fs.create(ROOT_INO, b"f", 0o600, os.O_RDWR | os.O_CREAT, ROOT)
    assert inode.ino == ino
    assert await fs.read(handle, 0, 10) == b"here"
    await fs.release(handle)
    with pytest.raises(Exists):
        await fs.create(ROOT_INO, b"f", 0o600, os.O_RDWR | os.O_CREAT | os.O_EXCL, ROOT)


async def test_synchronous_writes_are_committed(stack: Stack) -> None:
    fs = stack.fs
    handle, inode = await fs.create(ROOT_INO, b"wal", 0o600, os.O_WRONLY | os.O_DSYNC, ROOT)
    await fs.write(handle, 0, b"committed")
    document = stack.door.client[stack.database]["inodes"].find_one({"_id": inode.ino})
    assert document["size"] == 9, "P1"
    assert bytes(document["e"][0]["d"]) == b"committed"
    await fs.release(handle)


async def test_fsync_of_a_file_and_of_a_folder_commits(stack: Stack) -> None:
    fs = stack.fs
    inodes = stack.door.client[stack.database]["inodes"]
    handle, inode = await fs.create(ROOT_INO, b"f", 0o600, os.O_WRONLY, ROOT)
    await fs.write(handle, 0, b"f" * 5000)
    await fs.fsync(handle)
    assert inodes.find_one({"_id": inode.ino})["size"] == 5000, "P1"
    await fs.release(handle)
    made = await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
    folder = await fs.opendir(ROOT_INO)
    await fs.fsyncdir(folder)
    assert inodes.find_one({"_id": made.ino}), "P1"
    await fs.releasedir(folder)


async def test_close_stored_waits(fresh: Fresh) -> None:
    from flakefs.vfs import VfsOptions

    fresh.configure(vfs=VfsOptions(close_stored=True))
    async with fresh.open() as stack:
        ino = await put(stack.fs, b"f", b"x" * 5000)
        assert stack.door.client[stack.database]["inodes"].find_one({"_id": ino})["size"] == 5000, "P2"


async def test_privileges_are_cleared_by_writing(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"tool", b"#!")
    await fs.setattr(ino, Changes(mode=0o6755), ROOT)
    await fs.setxattr(ino, b"security.capability", b"cap")
    handle = await fs.open(ino, os.O_WRONLY)
    assert (await fs.inode(ino)).mode & 0o7777 == 0o6755
    await fs.write(handle, 0, b"##")
    assert (await fs.inode(ino)).mode & 0o7777 == 0o755, "A1"
    assert await fs.listxattr(ino, ROOT) == [], "A1"
    await fs.release(handle)


async def test_folders_hand_on_their_group(stack: Stack) -> None:
    fs = stack.fs
    shared = await fs.mkdir(ROOT_INO, b"shared", 0o775, ROOT)
    await fs.setattr(shared.ino, Changes(gid=77), ROOT)
    await fs.setattr(shared.ino, Changes(mode=0o2775), ROOT)
    sub = await fs.mkdir(shared.ino, b"sub", 0o755, USER)
    handle, file = await fs.create(shared.ino, b"file", 0o644, os.O_WRONLY, USER)
    await fs.release(handle)
    assert (sub.gid, sub.mode & 0o7777) == (77, 0o2755), "A2"
    assert (file.gid, file.uid, file.mode & 0o7777) == (77, 1000, 0o644)


async def test_times(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"")
    await fs.setattr(ino, Changes(atime=5, mtime=5), ROOT)
    handle = await fs.open(ino, os.O_RDWR)
    await fs.write(handle, 0, b"x")
    inode = await fs.inode(ino)
    assert inode.mtime == inode.ctime > 5
    assert inode.atime == 5
    written = inode.mtime
    await fs.read(handle, 0, 1)
    assert inode.atime > 5, "A3"
    seen = inode.atime
    await fs.read(handle, 0, 1)
    assert inode.atime == seen, "A3"
    await fs.setattr(ino, Changes(mode=0o600), ROOT)
    assert inode.mtime == written < inode.ctime
    await fs.release(handle)


async def test_holes_read_as_zeros_and_take_no_space(stack: Stack) -> None:
    fs = stack.fs
    handle, inode = await fs.create(ROOT_INO, b"sparse", 0o600, os.O_RDWR, ROOT)
    far = 3 * SEGMENT_BYTES + 123
    await fs.write(handle, far, b"end")
    assert inode.size == far + 3
    await fs.sync()
    assert inode.used == 3
    assert await fs.read(handle, 2 * SEGMENT_BYTES - 5, 10) == bytes(10)
    assert await fs.read(handle, far - 2, 100) == b"\0\0end"
    assert await fs.read(handle, far + 3, 100) == b""
    await fs.write(handle, CHUNK, bytes(2 * CHUNK))
    assert inode.used == 3, "zeros are holes"
    await fs.release(handle)


async def test_a_huge_size_costs_nothing(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"huge", b"start")
    await fs.setattr(ino, Changes(size=999_999_999_999_999), ROOT)
    await fs.sync()
    handle = await fs.open(ino, os.O_RDWR)
    await fs.write(handle, 999_999_999_999_990, b"nearly the end")
    await fs.sync()
    assert await fs.read(handle, 999_999_999_999_988, 100) == b"\0\0nearly the end"
    await fs.setattr(ino, Changes(size=7), ROOT)
    assert await fs.read(handle, 0, 100) == b"start\0\0"
    await fs.setattr(ino, Changes(size=FILE_MAX), ROOT)
    await fs.release(handle)
    await fs.unlink(ROOT_INO, b"huge")
    await fs.sync()


async def test_what_is_too_large_is_refused(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"")
    handle = await fs.open(ino, os.O_RDWR)
    with pytest.raises(FileTooLarge):
        await fs.setattr(ino, Changes(size=FILE_MAX + 1), ROOT)
    with pytest.raises(FileTooLarge):
        await fs.write(handle, FILE_MAX, b"x")
    assert await fs.write(handle, FILE_MAX - 2, b"abcdef") == 2
    assert await fs.read(handle, FILE_MAX - 3, 10) == b"\0ab"
    await fs.release(handle)
    await fs.setattr(ino, Changes(size=0), ROOT)


async def test_a_read_only_session_changes_nothing(fresh: Fresh) -> None:
    async with fresh.open() as stack:
        ino = await put(stack.fs, b"f", b"content")
    async with fresh.open(writable=False) as stack:
        fs = stack.fs
        assert await get(fs, (await resolve(fs, b"/f")).ino) == b"content"
        for attempt in (
            fs.create(ROOT_INO, b"g", 0o644, os.O_WRONLY, ROOT),
            fs.open(ino, os.O_WRONLY),
            fs.open(ino, os.O_RDONLY | os.O_TRUNC),
            fs.mkdir(ROOT_INO, b"d", 0o755, ROOT),
            fs.unlink(ROOT_INO, b"f"),
            fs.setattr(ino, Changes(mode=0o600), ROOT),
            fs.setxattr(ino, b"user.a", b"b"),
            fs.rename(ROOT_INO, b"f", ROOT_INO, b"g"),
        ):
            with pytest.raises(ReadOnly):
                await attempt


async def test_extended_attributes(fresh: Fresh) -> None:
    async with fresh.open() as stack:
        fs = stack.fs
        ino = await put(fs, b"f.txt", b"12345")
        await fs.setxattr(ino, b"user.b", b"2")
        await fs.setxattr(ino, b"user.a", b"\0\xff")
        await fs.setxattr(ino, b"user.big", bytes(65536))
        with pytest.raises(NotSupported):
            await fs.setxattr(ino, b"system.posix_acl_access", b"")
        with pytest.raises(Exists):
            await fs.setxattr(ino, b"user.a", b"", create=True)
        await fs.removexattr(ino, b"user.b")
        with pytest.raises(NoAttribute):
            await fs.getxattr(ino, b"security.capability")
    async with fresh.open() as stack:
        fs = stack.fs
        ino = (await resolve(fs, b"f.txt")).ino
        assert await fs.listxattr(ino, ROOT) == [b"user.a", b"user.big"]
        assert await fs.getxattr(ino, b"user.a") == b"\0\xff"
        assert await fs.getxattr(ino, b"user.flakefs.id") == b"%d" % ino
        assert await fs.getxattr(ino, b"user.flakefs.mime") == b"text/plain"
        with pytest.raises(NoAttribute):
            await fs.getxattr(ino, b"user.flakefs.nonsense")
        with pytest.raises(NotPermitted):
            await fs.setxattr(ino, b"user.flakefs.id", b"7")


async def test_facts_name_the_chunks(stack: Stack) -> None:
    ino = await put(stack.fs, b"f", b"q" * 5000)
    await stack.fs.sync()
    index = stack.door.client[stack.database]["chunks"].find_one()
    (line,) = (await stack.fs.facts(ino))[b"chunks"].decode().splitlines()
    assert line == f"0 5000 volume={index['v']} chunk={index['k']} from=0 hash={index['_id'].hex()}"


async def test_lookup(stack: Stack) -> None:
    fs = stack.fs
    top = await fs.mkdir(ROOT_INO, b"top", 0o755, ROOT)
    sub = await fs.mkdir(top.ino, b"sub", 0o755, ROOT)
    assert await fs.lookup(sub.ino, b".") is sub
    assert await fs.lookup(sub.ino, b"..") is top
    assert (await fs.lookup(ROOT_INO, b"..")).ino == ROOT_INO
    assert await fs.lookup(sub.ino, b"nothing") is None
    ino = await put(fs, b"file", b"")
    with pytest.raises(NotDirectory):
        await fs.lookup(ino, b"x")
    with pytest.raises(NameTooLong):
        await fs.lookup(ROOT_INO, b"n" * 256)
    with pytest.raises(NameTooLong):
        await put(fs, b"n" * 256, b"")
    await put(fs, b"n" * 255, b"")
    with pytest.raises(InvalidArgument):
        await put(fs, b"a/b", b"")


async def test_special_files(stack: Stack) -> None:
    fs = stack.fs
    pipe = await fs.mknod(ROOT_INO, b"pipe", stat.S_IFIFO | 0o600, 0, ROOT)
    device = await fs.mknod(ROOT_INO, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), ROOT)
    plain = await fs.mknod(ROOT_INO, b"plain", 0o600, 0, ROOT)
    assert stat.S_ISFIFO(pipe.mode)
    assert device.rdev == os.makedev(1, 3)
    assert stat.S_ISREG(plain.mode)
    with pytest.raises(NotPermitted):
        await fs.mknod(ROOT_INO, b"folder", stat.S_IFDIR | 0o700, 0, ROOT)
    with pytest.raises(InvalidArgument):
        await fs.open(pipe.ino, os.O_RDONLY)
    with pytest.raises(InvalidArgument):
        await fs.setattr(pipe.ino, Changes(size=0), ROOT)
    folder = await fs.mkdir(ROOT_INO, b"folder", 0o700, ROOT)
    with pytest.raises(IsDirectory):
        await fs.open(folder.ino, os.O_RDONLY)
    with pytest.raises(IsDirectory):
        await fs.setattr(folder.ino, Changes(size=0), ROOT)
    with pytest.raises(NotPermitted):
        await fs.link(folder.ino, ROOT_INO, b"again")


async def test_symbolic_links_and_paths(stack: Stack) -> None:
    fs = stack.fs
    folder = await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
    ino = await put(fs, b"f", b"found", parent=folder.ino)
    link = await fs.symlink(ROOT_INO, b"l", b"d/../d/./f", ROOT)
    await fs.symlink(ROOT_INO, b"loop", b"loop", ROOT)
    await fs.symlink(folder.ino, b"up", b"/d", ROOT)
    assert await fs.readlink(link.ino) == b"d/../d/./f"
    assert link.size == len(b"d/../d/./f")
    assert (await resolve(fs, b"/l")).ino == ino
    assert (await resolve(fs, b"/l", follow=False)).ino == link.ino
    assert (await resolve(fs, b"//d//up/up/f")).ino == ino
    assert (await resolve(fs, b"/")).ino == ROOT_INO
    assert await resolve_parent(fs, b"d/new") == (folder, b"new")
    for path, error in (
        (b"/loop", TooManySymlinks),
        (b"/none/x", NotFound),
        (b"/d/f/x", NotDirectory),
        (b"/d/f/", NotDirectory),
    ):
        with pytest.raises(error):
            await resolve(fs, path)
    with pytest.raises(InvalidArgument):
        await resolve_parent(fs, b"/")
    with pytest.raises(NotFound):
        await fs.symlink(ROOT_INO, b"empty", b"", ROOT)
    with pytest.raises(NameTooLong):
        await fs.symlink(ROOT_INO, b"long", b"t" * 4096, ROOT)
    with pytest.raises(InvalidArgument):
        await fs.readlink(ino)
    with pytest.raises(TooManySymlinks):
        await fs.open(link.ino, os.O_RDONLY)


async def test_listing_goes_on_where_it_stopped(stack: Stack) -> None:
    fs = stack.fs
    for number in range(25):
        await put(fs, b"%02d" % number, b"")
    handle = await fs.opendir(ROOT_INO)
    seen: list[bytes] = []
    after = 0
    while rows := await fs.readdir(handle, after, 4):
        seen += [name for _, name, _ in rows]
        after = rows[-1][0]
        if len(seen) == 8:
            await fs.unlink(ROOT_INO, seen[3])
            await put(fs, b"late", b"")
    await fs.releasedir(handle)
    assert sorted(set(seen) - {b"late"}) == [b"%02d" % number for number in range(25)]
    with pytest.raises(BadHandle):
        await fs.readdir(handle, 0, 1)


async def test_handles_are_checked(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"x")
    reading = await fs.open(ino, os.O_RDONLY)
    writing = await fs.open(ino, os.O_WRONLY)
    folder = await fs.opendir(ROOT_INO)
    for wrong in (
        fs.write(reading, 0, b"y"),
        fs.read(writing, 0, 1),
        fs.read(folder, 0, 1),
        fs.write(folder, 0, b"y"),
        fs.readdir(reading, 0, 1),
        fs.flush(999),
        fs.release(999),
    ):
        with pytest.raises(BadHandle):
            await wrong
    for handle in (reading, writing):
        await fs.release(handle)
    await fs.releasedir(folder)
    assert fs.statistics().handles == 0


async def test_statfs_and_access(stack: Stack) -> None:
    fs = stack.fs
    ino = await put(fs, b"f", b"x")
    full = await fs.statfs()
    assert full.name_max == 255
    assert 0 < full.free <= full.blocks
    assert full.files > full.files_free > 0
    assert await fs.access(ino, os.R_OK, USER)
    assert not await fs.access(ino, os.W_OK, USER)
    assert await fs.access(ino, os.W_OK, ROOT)

"""A FileSystem on real servers and a local folder, told to do the same things, stay the same.

Each run works in a new folder of both, opens the file system again at random moments, and ends with a comparison of
everything that can be seen, the invariants of what is in memory, and fsck.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from flakefs.api.portal import Portal
from flakefs.errors import FlakeError, NotFound
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Caller, Changes, FileSystem
from flakefs.vfs.paths import resolve, resolve_parent

KIB = 1024
CHUNK = 64 * KIB
ME = Caller(os.geteuid(), os.getegid())
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)

names = st.sampled_from([b"a", b"b", b"c", b"d\xff"])
folders = st.sampled_from([b"", b"F/", b"G/", b"F/G/"])
new_paths = st.builds(bytes.__add__, folders, names | st.sampled_from([b"F", b"G"]))
paths = st.integers(0, 30) | st.integers(0, 30) | new_paths
"""A number picks one of the paths that are there: otherwise nearly everything would end in ENOENT."""
Path = bytes | int
slots = st.integers(0, 2)
offsets = st.sampled_from(
    [0, 1, 100, 4000, 4096, CHUNK - 10, CHUNK, CHUNK + 5, 2 * CHUNK, 3 * CHUNK - 1]
) | st.integers(0, 4 * CHUNK)
far = st.sampled_from([0, 0, 0, 0, 64 * KIB * KIB - 50, 128 * KIB * KIB + 7])
lengths = st.sampled_from([1, 100, 4096, 5000, CHUNK, CHUNK + 100, 2 * CHUNK])
seeds = st.integers(0, 250)


def pattern(seed: int, length: int) -> bytes:
    """*length* bytes; seed 0 gives zeros, equal seeds equal bytes (so that content repeats)."""
    return bytes(length) if not seed else (bytes((seed + each) % 256 for each in range(5)) * (length // 5 + 1))[:length]


class Local:
    """The same operations on the local folder."""

    def __init__(self) -> None:
        self.top = os.fsencode(tempfile.mkdtemp(prefix="flakefs-oracle-"))
        self.slots: dict[int, int] = {}

    def at(self, path: bytes) -> bytes:
        return os.path.join(self.top, path)

    def open(self, slot: int, path: bytes, flags: int) -> None:
        descriptor = os.open(self.at(path), flags | os.O_NOFOLLOW, 0o644)
        self.close(slot)
        self.slots[slot] = descriptor

    def close(self, slot: int) -> None:
        if slot in self.slots:
            os.close(self.slots.pop(slot))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if _libc.renameat2(-100, self.at(old), -100, self.at(new), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def remove(self) -> None:
        for slot in list(self.slots):
            self.close(slot)
        shutil.rmtree(self.top)


def outcome_of(call: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "done", call()
    except OSError as error:
        return "refused", errno.errorcode[error.errno or 0]
    except FlakeError as error:
        return "refused", errno.errorcode[error.errno]


class Machine(RuleBasedStateMachine):
    fresh: Fresh
    run = 0

    def __init__(self) -> None:
        super().__init__()
        Machine.run += 1
        self.top = b"run%d/" % Machine.run
        self.local = Local()
        self.slots: dict[int, int] = {}
        self.portal = self.opened()
        self.call(make_folder, self.top[:-1], 0o755)
        for path in (b"F", b"F/G"):
            self.mkdir(path)
        for slot, path in enumerate((b"a", b"F/b")):
            self.open(slot, path, True, False, False)
            self.write(slot, 100, 0, CHUNK + 100, 77 + slot)

    def opened(self) -> Portal:
        return Portal(self.fresh.config, kind="tool", writable=True, where="a test")

    def call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return self.portal.call(function, *args)

    def both(self, local: Callable[[], Any], function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        expected = outcome_of(local)
        found = outcome_of(lambda: self.call(function, *args))
        assert found == expected, f"{function.__name__}{args}: {found}, a local file system: {expected}"
        return found

    def path(self, path: Path) -> bytes:
        if isinstance(path, bytes):
            return path
        there = sorted(local_picture(self.local.top))
        return there[path % len(there)] if there else b"a"

    # open files

    @rule(
        slot=slots,
        path=paths,
        create=st.sampled_from([True, True, False]),
        truncate=st.booleans(),
        append=st.booleans(),
    )
    def open(self, slot: int, path: Path, create: bool, truncate: bool, append: bool) -> None:
        path = self.path(path)
        flags = os.O_RDWR
        for wanted, flag in ((create, os.O_CREAT), (truncate, os.O_TRUNC), (append, os.O_APPEND)):
            flags |= flag if wanted else 0
        kind, handle = self.both(lambda: self.local.open(slot, path, flags), opened, self.top + path, flags, self, slot)
        assert kind == "refused" or handle is None

    @rule(slot=slots, offset=offsets, base=far, length=lengths, seed=seeds)
    def write(self, slot: int, offset: int, base: int, length: int, seed: int) -> None:
        if slot in self.slots:
            data = pattern(seed, length)
            self.both(
                lambda: os.pwrite(self.local.slots[slot], data, base + offset),
                write,
                self.slots[slot],
                base + offset,
                data,
            )

    @rule(slot=slots, seed=seeds, start=st.integers(0, CHUNK), step=st.integers(50, 5000), count=st.integers(2, 60))
    def scribble(self, slot: int, seed: int, start: int, step: int, count: int) -> None:
        """Many small writes beside each other: fragments, crowds."""
        if slot in self.slots:
            for number in range(count):
                data = pattern(seed + number % 5 + 1, min(step, 200) - 20)
                os.pwrite(self.local.slots[slot], data, start + number * step)
                self.call(write, self.slots[slot], start + number * step, data)

    @rule(slot=slots, offset=offsets, base=far, length=st.sampled_from([1, 4096, 3 * CHUNK]))
    def read(self, slot: int, offset: int, base: int, length: int) -> None:
        if slot in self.slots:
            offset += base
            self.both(lambda: os.pread(self.local.slots[slot], length, offset), read, self.slots[slot], offset, length)

    @rule(slot=slots, size=offsets, base=far)
    def truncate_open(self, slot: int, size: int, base: int) -> None:
        if slot in self.slots:
            ino = self.call(ino_of, self.slots[slot])
            self.both(lambda: os.ftruncate(self.local.slots[slot], base + size), change, ino, Changes(size=base + size))

    @rule(slot=slots)
    def fsync(self, slot: int) -> None:
        if slot in self.slots:
            self.call(FileSystem.fsync, self.slots[slot])

    @rule(slot=slots)
    def release(self, slot: int) -> None:
        if slot in self.slots:
            self.local.close(slot)
            self.call(FileSystem.flush, self.slots[slot])
            self.call(FileSystem.release, self.slots.pop(slot))

    # names

    @rule(path=new_paths)
    def mkdir(self, path: Path) -> None:
        path = self.path(path)
        self.both(lambda: os.mkdir(self.local.at(path), 0o755), make_folder, self.top + path, 0o755)

    @rule(path=paths)
    def rmdir(self, path: Path) -> None:
        path = self.path(path)
        self.both(lambda: os.rmdir(self.local.at(path)), remove_folder, self.top + path)

    @rule(path=paths)
    def unlink(self, path: Path) -> None:
        path = self.path(path)
        self.both(lambda: os.unlink(self.local.at(path)), remove_file, self.top + path)

    @rule(path=new_paths, goal=new_paths)
    def symlink(self, path: Path, goal: bytes) -> None:
        path = self.path(path)
        self.both(lambda: os.symlink(b"no/" + goal, self.local.at(path)), make_symlink, self.top + path, b"no/" + goal)

    @rule(old=paths, new=new_paths)
    def link(self, old: Path, new: Path) -> None:
        old = self.path(old)
        new = self.path(new)
        self.both(
            lambda: os.link(self.local.at(old), self.local.at(new), follow_symlinks=False),
            make_link,
            self.top + old,
            self.top + new,
        )

    @rule(old=paths, new=paths, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: Path, new: Path, flags: int) -> None:
        old = self.path(old)
        new = self.path(new)
        if old.startswith(new + b"/"):
            return  # refused for two reasons at once: the kernel looks for this one before it asks a file system
        self.both(lambda: self.local.rename(old, new, flags), rename, self.top + old, self.top + new, flags)

    # attributes

    @rule(path=paths, mode=st.sampled_from([0o600, 0o755, 0o444, 0o1777]))
    def chmod(self, path: Path, mode: int) -> None:
        path = self.path(path)
        if not os.path.islink(self.local.at(path)):
            self.both(lambda: os.chmod(self.local.at(path), mode), change_path, self.top + path, Changes(mode=mode))

    @rule(path=paths, mtime=st.integers(0, 2**62))
    def utime(self, path: Path, mtime: int) -> None:
        path = self.path(path)
        mtime = mtime % (2**33 * 10**9)  # what ext4 can keep
        self.both(
            lambda: os.utime(self.local.at(path), ns=(mtime, mtime), follow_symlinks=False),
            change_path,
            self.top + path,
            Changes(atime=mtime, mtime=mtime),
        )

    @rule(path=paths, size=offsets, base=far)
    def truncate(self, path: Path, size: int, base: int) -> None:
        path = self.path(path)
        if not os.path.islink(self.local.at(path)):
            self.both(
                lambda: os.truncate(self.local.at(path), base + size),
                change_path,
                self.top + path,
                Changes(size=base + size),
            )

    @rule(path=paths, name=st.sampled_from([b"user.a", b"user.b"]), value=st.binary(max_size=20) | st.none())
    def xattr(self, path: Path, name: bytes, value: bytes | None) -> None:
        path = self.path(path)
        if os.path.islink(self.local.at(path)):
            return
        if value is None:
            self.both(lambda: os.removexattr(self.local.at(path), name), set_attribute, self.top + path, name, None)
        else:
            self.both(
                lambda: os.setxattr(self.local.at(path), name, value), set_attribute, self.top + path, name, value
            )

    # the whole

    @rule()
    def sync(self) -> None:
        self.call(FileSystem.sync)

    @rule()
    def reopen(self) -> None:
        """Open files do not survive; everything else does."""
        for slot in list(self.slots):
            self.release(slot)
        self.call(invariants)
        self.portal.close()
        self.portal = self.opened()

    @rule()
    def compare(self) -> None:
        assert self.call(picture, self.top[:-1]) == local_picture(self.local.top)

    @invariant()
    def in_memory(self) -> None:
        self.call(invariants)

    def teardown(self) -> None:
        try:
            self.reopen()
            self.compare()
            self.portal.close()
            self.fresh.assert_sound()
        finally:
            self.portal.close()
            self.local.remove()


async def invariants(fs: FileSystem) -> None:
    fs.check_invariants()
    await trio.lowlevel.checkpoint()


async def opened(fs: FileSystem, path: bytes, flags: int, machine: Machine, slot: int) -> None:
    folder, name = await resolve_parent(fs, path)
    found = await fs.lookup(folder.ino, name)
    if found is None:
        if not flags & os.O_CREAT:
            raise NotFound("no such file")
        handle, _ = await fs.create(folder.ino, name, 0o644, flags, ME)
    else:
        if stat.S_ISDIR(found.mode) and flags & os.O_CREAT:
            flags &= ~os.O_CREAT
        handle = await fs.open(found.ino, flags)
    if slot in machine.slots:
        await fs.release(machine.slots[slot])
    machine.slots[slot] = handle


async def write(fs: FileSystem, handle: int, offset: int, data: bytes) -> int:
    return await fs.write(handle, offset, data)


async def read(fs: FileSystem, handle: int, offset: int, length: int) -> bytes:
    return bytes(await fs.read(handle, offset, length))


async def ino_of(fs: FileSystem, handle: int) -> int:
    await trio.lowlevel.checkpoint()
    return fs.handles.get(handle).inode.ino


async def change(fs: FileSystem, ino: int, changes: Changes) -> None:
    await fs.setattr(ino, changes, ME)


async def change_path(fs: FileSystem, path: bytes, changes: Changes) -> None:
    await fs.setattr((await resolve(fs, path, follow=False)).ino, changes, ME)


async def set_attribute(fs: FileSystem, path: bytes, name: bytes, value: bytes | None) -> None:
    ino = (await resolve(fs, path, follow=False)).ino
    if value is None:
        await fs.removexattr(ino, name)
    else:
        await fs.setxattr(ino, name, value)


async def make_folder(fs: FileSystem, path: bytes, mode: int) -> None:
    folder, name = await resolve_parent(fs, path)
    await fs.mkdir(folder.ino, name, mode, ME)


async def remove_folder(fs: FileSystem, path: bytes) -> None:
    folder, name = await resolve_parent(fs, path)
    await fs.rmdir(folder.ino, name)


async def remove_file(fs: FileSystem, path: bytes) -> None:
    folder, name = await resolve_parent(fs, path)
    await fs.unlink(folder.ino, name)


async def make_symlink(fs: FileSystem, path: bytes, target: bytes) -> None:
    folder, name = await resolve_parent(fs, path)
    await fs.symlink(folder.ino, name, target, ME)


async def make_link(fs: FileSystem, old: bytes, new: bytes) -> None:
    inode = await resolve(fs, old, follow=False)
    folder, name = await resolve_parent(fs, new)
    await fs.link(inode.ino, folder.ino, name)


async def rename(fs: FileSystem, old: bytes, new: bytes, flags: int) -> None:
    folder, name = await resolve_parent(fs, old)
    new_folder, new_name = await resolve_parent(fs, new)
    await fs.rename(
        folder.ino,
        name,
        new_folder.ino,
        new_name,
        noreplace=bool(flags & RENAME_NOREPLACE),
        exchange=bool(flags & RENAME_EXCHANGE),
    )


# what can be seen: path -> (mode, size, nlink, content or target, attributes)


async def picture(fs: FileSystem, top: bytes) -> dict[bytes, tuple[Any, ...]]:
    found: dict[bytes, tuple[Any, ...]] = {}
    todo = [(b"", (await resolve(fs, top)).ino)]
    while todo:
        path, ino = todo.pop()
        handle = await fs.opendir(ino)
        after = 0
        while rows := await fs.readdir(handle, after, 3):
            for cookie, name, inode in rows:
                assert cookie > after
                after = cookie
                content: Any = None
                if stat.S_ISDIR(inode.mode):
                    todo.append((path + name + b"/", inode.ino))
                elif stat.S_ISLNK(inode.mode):
                    content = await fs.readlink(inode.ino)
                else:
                    content = await content_of(fs, inode.ino, inode.size)
                assert path + name not in found, "listed twice"
                size = 0 if stat.S_ISDIR(inode.mode) else inode.size
                found[path + name] = (inode.mode, size, inode.nlink, content, inode.xattrs)
        await fs.releasedir(handle)
    return found


async def content_of(fs: FileSystem, ino: int, size: int) -> int:
    handle = await fs.open(ino, os.O_RDONLY)
    total = 0
    for at in range(0, size, 1024 * KIB):
        total = hash((total, bytes(await fs.read(handle, at, 1024 * KIB))))
    await fs.release(handle)
    return total


def local_picture(top: bytes) -> dict[bytes, tuple[Any, ...]]:
    found: dict[bytes, tuple[Any, ...]] = {}
    for folder, folder_names, file_names in os.walk(top):
        for name in folder_names + file_names:
            path = os.path.join(folder, name)
            seen = os.lstat(path)
            attributes: dict[bytes, bytes] = {}
            content: Any = None
            if stat.S_ISLNK(seen.st_mode):
                content = os.readlink(path)
            else:
                for each in os.listxattr(path):
                    attributes[os.fsencode(each)] = os.getxattr(path, each)
            if stat.S_ISREG(seen.st_mode):
                content = 0
                with open(path, "rb") as file:
                    while data := file.read(1024 * KIB):
                        content = hash((content, data))
            size = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_size
            found[os.path.relpath(path, top)] = (seen.st_mode, size, seen.st_nlink, content, attributes)
    return found


def test_the_same_as_a_local_folder(fresh: Fresh) -> None:
    machine = type("MachineOfThisRun", (Machine,), {"fresh": fresh})
    with contextlib.suppress(FileNotFoundError):
        os.umask(0o022)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("FLAKEFS_EXAMPLES", "12")),
            stateful_step_count=50,
            deadline=None,
            phases=[Phase.generate],  # a run takes too long for shrinking; the steps are printed
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
    assert Machine.run, "nothing was tried"


def test_the_picture_sees_differences(tmp_path: Any) -> None:
    before = local_picture(os.fsencode(tmp_path))
    (tmp_path / "x").write_bytes(b"1")
    middle = local_picture(os.fsencode(tmp_path))
    (tmp_path / "x").write_bytes(b"2")
    assert len({str(p) for p in (before, middle, local_picture(os.fsencode(tmp_path)))}) == 3
    assert ROOT_INO == 1

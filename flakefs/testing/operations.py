"""Which operation a workload does next, how it is done, and what it does to the model.

Invariants
    T11  What is chosen depends on the seed and on the operations before alone.

Concurrency
    One thread.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

MAX_WRITE = 120_000
FILES_MAX = 24
FOLDERS_MAX = 6
HANDLES_MAX = 4
NAMES = (b"a", b"b", b"c", b"d\xff", "größe".encode(), b"f", b"g")
ATTRIBUTES = (b"user.one", b"user.two")
FAR = 700_000
_AT_FDCWD = -100
_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True, eq=False)
class Node:
    """An inode of the model."""

    id: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    attributes: dict[bytes, bytes] = field(default_factory=dict)


Tree = dict[bytes, Node]
"""Path -> inode; a further hard link is a further path to the same one. b"" is the top."""


@dataclass(slots=True)
class Op:
    text: str
    apply: Callable[[Tree], object]
    """What it does to a model. Refers to inodes by path or id, because models are copied."""
    run: Callable[[], object]
    promises: bool = False
    """When it is answered, it and everything before it is durable."""
    halves: tuple[Callable[[Tree], object], ...] = ()
    """What it may have done when only a part of it has arrived."""

    def __str__(self) -> str:
        return self.text


class Chooser:
    """Chooses operations that will succeed, from *tree*, the model after all operations so far."""

    def __init__(self, top: bytes, chance: random.Random, tree: Tree) -> None:
        self._top = top
        self._chance = chance
        self._tree = tree
        self._handles: dict[int, int] = {}
        """Descriptor -> id of the inode, oldest first."""
        self._next_id = 1 + max(node.id for node in tree.values())
        self._pool = [chance.randbytes(MAX_WRITE) for _ in range(4)]
        self._kinds: dict[Callable[[], Op | None], int] = {
            self._write: 30, self._create: 12, self._fsync: 8, self._fsync_folder: 3, self._write_sync: 3,
            self._truncate: 6, self._rename: 10, self._exchange: 3, self._link: 4, self._symlink: 3, self._unlink: 9,
            self._mkdir: 4, self._rmdir: 3, self._chmod: 3, self._setxattr: 4,
        }  # fmt: skip

    def choose(self) -> Op:
        kinds, weights = list(self._kinds), list(self._kinds.values())
        while True:
            op = self._chance.choices(kinds, weights)[0]()
            if op is not None:
                return op

    def close(self) -> None:
        for descriptor in self._handles:
            with suppress(OSError):  # of a mount that is gone
                os.close(descriptor)
        self._handles.clear()

    # -- what there is --

    def _paths(self, test: Callable[[int], bool]) -> list[bytes]:
        return [path for path, node in self._tree.items() if path and test(node.mode)]

    def _pick(self, test: Callable[[int], bool]) -> bytes | None:
        paths = self._paths(test)
        return self._chance.choice(paths) if paths else None

    def _new_path(self) -> bytes | None:
        """A path that is not there, in a folder that is."""
        folder = self._chance.choice([b"", *self._paths(stat.S_ISDIR)])
        path = os.path.join(folder, self._chance.choice(NAMES))
        return None if path in self._tree else path

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top

    def _add(self, text: str, path: bytes, mode: int, run: Callable[[], object], target: bytes = b"") -> Op:
        id = self._next_id
        self._next_id += 1
        return Op(f"{text} {path!r}", lambda tree: tree.__setitem__(path, Node(id, mode, target=target)), run)

    # -- operations; None when there is nothing to do it with --

    def _create(self) -> Op | None:
        path = self._new_path()
        if path is None or len(self._paths(lambda mode: not stat.S_ISDIR(mode))) >= FILES_MAX:
            return None
        id = self._next_id

        def run() -> None:
            descriptor = os.open(self._at(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            self._handles[descriptor] = id
            if len(self._handles) > HANDLES_MAX:
                oldest = next(iter(self._handles))
                del self._handles[oldest]
                os.close(oldest)

        return self._add("create", path, stat.S_IFREG | 0o600, run)

    def _piece(self) -> tuple[int, bytes]:
        """Where to write what: new bytes, or some that were written before (de-duplication)."""
        chance = self._chance
        length = chance.choice((1, 100, 4096, 4097, 30_000, 65_536, chance.randint(1, MAX_WRITE)))
        offset = chance.choice((0, 0, 65_536, 131_072, chance.randint(0, 200_000), FAR if chance.random() < 0.1 else 0))
        if chance.random() < 0.5:
            return offset, chance.randbytes(length)
        return offset, chance.choice(self._pool)[:length]

    def _write(self) -> Op | None:
        """By a descriptor that is open, also when the file has no name any more; or by one that is opened for it."""
        offset, data = self._piece()
        if self._handles and self._chance.random() < 0.7:
            descriptor = self._chance.choice(list(self._handles))
            id = self._handles[descriptor]
            return Op(
                f"write to open inode {id}: {len(data)} at {offset}",
                lambda tree: _overwrite(tree, id, offset, data),
                lambda: _write_all(descriptor, offset, data),
                halves=_halves(id, offset, data),
            )
        return self._write_path(offset, data, 0)

    def _write_sync(self) -> Op | None:
        offset, data = self._piece()
        return self._write_path(offset, data, os.O_SYNC)

    def _write_path(self, offset: int, data: bytes, flags: int) -> Op | None:
        path = self._pick(stat.S_ISREG)
        if path is None:
            return None
        id = self._tree[path].id

        def run() -> None:
            descriptor = os.open(self._at(path), os.O_WRONLY | flags)
            try:
                _write_all(descriptor, offset, data)
            finally:
                os.close(descriptor)

        text = f"write {'O_SYNC ' if flags else ''}{path!r} (inode {id}): {len(data)} at {offset}"
        apply = partial(_overwrite, id=id, offset=offset, data=data)
        return Op(text, apply, run, promises=bool(flags), halves=_halves(id, offset, data))

    def _fsync(self) -> Op | None:
        if not self._handles:
            return None
        descriptor = self._chance.choice(list(self._handles))
        return Op("fsync", lambda tree: None, lambda: os.fsync(descriptor), promises=True)

    def _fsync_folder(self) -> Op | None:
        path = self._chance.choice([b"", *self._paths(stat.S_ISDIR)])

        def run() -> None:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        return Op(f"fsync of folder {path!r}", lambda tree: None, run, promises=True)

    def _truncate(self) -> Op | None:
        path = self._pick(stat.S_ISREG)
        if path is None:
            return None
        size = self._chance.choice((0, 10, 65_536, self._chance.randint(0, 250_000)))

        def apply(tree: Tree) -> None:
            data = tree[path].data
            del data[size:]
            data.extend(bytes(size - len(data)))

        return Op(f"truncate {path!r} to {size}", apply, lambda: os.truncate(self._at(path), size))

    def _rename(self) -> Op | None:
        """To a new name, or over a file."""
        old = self._pick(lambda mode: True)
        over = self._pick(lambda mode: not stat.S_ISDIR(mode)) if self._chance.random() < 0.4 else None
        new = over or self._new_path()
        if old is None or new is None or (new + b"/").startswith(old + b"/"):
            return None
        if over and (stat.S_ISDIR(self._tree[old].mode) or self._tree[old].id == self._tree[over].id):
            return None

        def apply(tree: Tree) -> None:
            tree.pop(new, None)
            _move(tree, old, new)

        return Op(f"rename {old!r} to {new!r}", apply, lambda: os.rename(self._at(old), self._at(new)))

    def _exchange(self) -> Op | None:
        one, two = self._pick(lambda mode: True), self._pick(lambda mode: True)
        if one is None or two is None or self._tree[one].id == self._tree[two].id:
            return None
        if one.startswith(two + b"/") or two.startswith(one + b"/"):
            return None

        def run() -> None:
            if _libc.renameat2(_AT_FDCWD, self._at(one), _AT_FDCWD, self._at(two), _EXCHANGE):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))

        def apply(tree: Tree) -> None:
            _move(tree, one, b"/")
            _move(tree, two, one)
            _move(tree, b"/", two)

        return Op(f"exchange {one!r} and {two!r}", apply, run)

    def _link(self) -> Op | None:
        old, new = self._pick(stat.S_ISREG), self._new_path()
        if old is None or new is None:
            return None
        return Op(
            f"link {old!r} as {new!r}",
            lambda tree: tree.__setitem__(new, tree[old]),
            lambda: os.link(self._at(old), self._at(new)),
        )

    def _symlink(self) -> Op | None:
        path = self._new_path()
        if path is None:
            return None
        target = b"to/" + self._chance.choice(NAMES)
        return self._add("symlink", path, stat.S_IFLNK | 0o777, lambda: os.symlink(target, self._at(path)), target)

    def _unlink(self) -> Op | None:
        path = self._pick(lambda mode: not stat.S_ISDIR(mode))
        if path is None:
            return None
        return Op(f"unlink {path!r}", lambda tree: tree.pop(path), lambda: os.unlink(self._at(path)))

    def _mkdir(self) -> Op | None:
        path = self._new_path()
        if path is None or len(self._paths(stat.S_ISDIR)) >= FOLDERS_MAX:
            return None
        return self._add("mkdir", path, stat.S_IFDIR | 0o700, lambda: os.mkdir(self._at(path), 0o700))

    def _rmdir(self) -> Op | None:
        path = self._pick(stat.S_ISDIR)
        if path is None or any(other.startswith(path + b"/") for other in self._tree):
            return None
        return Op(f"rmdir {path!r}", lambda tree: tree.pop(path), lambda: os.rmdir(self._at(path)))

    def _chmod(self) -> Op | None:
        path = self._pick(lambda mode: not stat.S_ISLNK(mode))
        if path is None:
            return None
        rights = self._chance.choice((0o700, 0o755, 0o711))

        def apply(tree: Tree) -> None:
            tree[path].mode = stat.S_IFMT(tree[path].mode) | rights

        return Op(f"chmod {path!r} {rights:o}", apply, lambda: os.chmod(self._at(path), rights))

    def _setxattr(self) -> Op | None:
        path = self._pick(stat.S_ISREG)
        if path is None:
            return None
        name, value = self._chance.choice(ATTRIBUTES), self._chance.randbytes(20)
        return Op(
            f"setxattr {path!r} {name!r}",
            lambda tree: tree[path].attributes.__setitem__(name, value),
            lambda: os.setxattr(self._at(path), name, value),
        )


def _write_all(descriptor: int, offset: int, data: bytes) -> None:
    done = 0
    while done < len(data):  # one that was cut in two is short when the mount dies in between: the next call says so
        done += os.pwrite(descriptor, data[done:], offset + done)


def _overwrite(tree: Tree, id: int, offset: int, data: bytes) -> None:
    """Nothing to be seen when the file has no name any more."""
    for node in tree.values():
        if node.id == id:
            node.data.extend(bytes(max(0, offset - len(node.data))))
            node.data[offset : offset + len(data)] = data
            return


def _halves(id: int, offset: int, data: bytes) -> tuple[Callable[[Tree], object], ...]:
    """The kernel may cut a write in two, at a page of the file."""
    first = -offset % mmap.PAGESIZE or mmap.PAGESIZE
    return tuple(
        partial(_overwrite, id=id, offset=offset, data=data[:length])
        for length in range(first, len(data), mmap.PAGESIZE)
    )


def _move(tree: Tree, old: bytes, new: bytes) -> None:
    """A path and all below it."""
    for path in [path for path in tree if path == old or path.startswith(old + b"/")]:
        tree[new + path[len(old) :]] = tree.pop(path)

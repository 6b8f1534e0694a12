"""Random programs against a plain model: names, links, renames, content, open files, commits, crashes, reopening.

A program runs on a real server with the smallest caches; after each commit the documents are audited and compared with
the model, and after a crash with what the model was at the last commit (P4).
"""

from __future__ import annotations

import contextlib
import copy
import os
import stat
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flakefs.errors import (
    Exists,
    FlakeError,
    InvalidArgument,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
)
from flakefs.namespace import NamespaceOptions, entries, folders
from flakefs.namespace.renames import IntoItself
from flakefs.values import SEGMENT_BYTES
from tests.namespace.conftest import World

FOLDERS = ["", "a", "b", "a/b"]
NAMES = ["a", "b", "c"]
PLACES = [0, 5, SEGMENT_BYTES - 4, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 1]

paths = st.builds(lambda f, n: f"{f}/{n}".strip("/"), st.sampled_from(FOLDERS), st.sampled_from(NAMES))
steps = st.one_of(
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("create"), paths),
    st.tuples(st.just("symlink"), paths),
    st.tuples(st.just("write"), paths, st.sampled_from(PLACES), st.sampled_from([b"x", b"yyyy", b"zzzz"])),
    st.tuples(st.just("truncate"), paths, st.sampled_from([*PLACES, 7])),
    st.tuples(st.just("chmod"), paths, st.integers(0, 0o777)),
    st.tuples(st.just("link"), paths, paths),
    *2 * [st.tuples(st.just("unlink"), paths)],
    st.tuples(st.just("rmdir"), paths),
    *3 * [st.tuples(st.just("rename"), paths, paths, st.sampled_from(["", "", "noreplace", "exchange", "exchange"]))],
    st.tuples(st.just("list"), st.sampled_from(FOLDERS)),
    st.tuples(st.just("open"), paths),
    st.tuples(st.just("close")),
    *2 * [st.tuples(st.just("commit"))],
    st.tuples(st.just("full")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("crash")),
)
PRELUDE: list[tuple[Any, ...]] = [
    *(("mkdir", path) for path in FOLDERS[1:]),
    *(("create", path) for path in ("c", "a/a", "a/b/a")),
    ("link", "c", "b/c"),
    ("link", "c", "a/c"),
    ("commit",),
]
EXAMPLES = int(os.environ.get("FLAKEFS_EXAMPLES", "12"))
programs = st.builds(
    lambda begin, rest: begin + rest,
    st.sampled_from([[], PRELUDE, PRELUDE[:-1]]),
    st.lists(steps, min_size=10, max_size=60),
)


class Node:
    """A file or folder of the model."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.children: dict[str, Node] = {}
        self.nlink = 2 if kind == "d" else 1
        self.mode = 0o755
        self.size = 0
        self.large = False
        """It has had content that is not in the inode's own document."""
        self.bytes: dict[int, int] = {}


class Model:
    """What the namespace should do, on a tree of dicts."""

    def __init__(self) -> None:
        self.root = Node("d")
        self.removed: list[Node] = []
        """Large files that have lost their last name since the session began."""

    def find(self, path: str) -> Node:
        node = self.root
        for part in path.split("/") if path else ():
            if node.kind != "d":
                raise NotDirectory
            if part not in node.children:
                raise NotFound
            node = node.children[part]
        return node

    def parent(self, path: str) -> tuple[Node, str]:
        above, _, name = path.rpartition("/")
        folder = self.find(above)
        if folder.kind != "d":
            raise NotDirectory
        return folder, name

    def make(self, path: str, kind: str) -> None:
        folder, name = self.parent(path)
        if name in folder.children:
            raise Exists
        folder.children[name] = Node(kind)
        folder.nlink += kind == "d"

    def file(self, path: str) -> Node:
        node = self.find(path)
        if node.kind != "f":
            raise InvalidArgument
        return node

    def write(self, path: str, offset: int, data: bytes) -> None:
        node = self.file(path)
        node.bytes |= {offset + index: byte for index, byte in enumerate(data)}
        self.resize(node, max(node.size, offset + len(data)))

    def truncate(self, path: str, size: int) -> None:
        node = self.file(path)
        node.bytes = {at: byte for at, byte in node.bytes.items() if at < size}
        self.resize(node, size)

    def resize(self, node: Node, size: int) -> None:
        node.size = size
        node.large = node.large or size > SEGMENT_BYTES

    def lose_name(self, node: Node) -> None:
        node.nlink -= 1
        if node.large and not node.nlink:
            self.removed.append(node)

    def chmod(self, path: str, mode: int) -> None:
        self.find(path).mode = mode

    def link(self, path: str, new: str) -> None:
        node = self.find(path)
        folder, name = self.parent(new)
        if node.kind == "d":
            raise NotPermitted
        if name in folder.children:
            raise Exists
        folder.children[name] = node
        node.nlink += 1

    def unlink(self, path: str) -> None:
        folder, name = self.parent(path)
        node = self.find(path)
        if node.kind == "d":
            raise IsDirectory
        del folder.children[name]
        self.lose_name(node)

    def rmdir(self, path: str) -> None:
        folder, name = self.parent(path)
        node = self.find(path)
        if node.kind != "d":
            raise NotDirectory
        if node.children:
            raise NotEmpty
        del folder.children[name]
        folder.nlink -= 1

    def rename(self, one: str, other: str, flag: str) -> None:
        (source, name), (target, new) = self.parent(one), self.parent(other)
        moved, old = source.children.get(name), target.children.get(new)
        if moved is None or (flag == "exchange" and old is None):
            raise NotFound
        if flag == "noreplace" and old is not None:
            raise Exists
        if moved is old:
            return
        for node, place in ((moved, target), (old if flag == "exchange" else None, source)):
            if node is not None and node.kind == "d" and self.inside(node, place):
                raise InvalidArgument
        if flag == "exchange":
            assert old is not None
            source.children[name], target.children[new] = old, moved
        else:
            if old is not None:
                self.check_replace(moved, old)
                self.lose_name(old)
                target.nlink -= old.kind == "d"
            del source.children[name]
            target.children[new] = moved
            old = None
        for node, gone, come in ((moved, source, target), (old, target, source)):
            if node is not None and node.kind == "d":
                gone.nlink -= 1
                come.nlink += 1

    def check_replace(self, moved: Node, old: Node) -> None:
        if old.kind != "d":
            if moved.kind == "d":
                raise NotDirectory
        elif moved.kind != "d":
            raise IsDirectory
        elif old.children:
            raise NotEmpty

    def inside(self, node: Node, place: Node) -> bool:
        return node is place or any(self.inside(c, place) for c in node.children.values() if c.kind == "d")

    def facts(self) -> dict[str, Any]:
        """path -> everything that must be the same; inodes are told apart by their first path."""
        result: dict[str, Any] = {}
        first: dict[int, str] = {}

        def walk(path: str, node: Node) -> None:
            for name, child in sorted(node.children.items()):
                here = f"{path}/{name}"
                same = first.setdefault(id(child), here)
                mode = child.mode if child.kind != "l" else 0o777
                result[here] = (child.kind, child.nlink, child.size, mode, same, tuple(sorted(child.bytes.items())))
                walk(here, child)

        walk("", self.root)
        return result


class Runner:
    """One program on the namespace and on the model."""

    def __init__(self, world: Any, options: NamespaceOptions) -> None:
        self.world = world
        self.options = options
        self.exact = options.group_documents > 1
        self.model = Model()
        self.begin()
        self.held: list[int] = []
        self.left: set[int] = set()  # orphans of earlier sessions: a later one that ends soon may leave them, too
        self.ns: Any = None

    async def run(self, program: list[tuple[Any, ...]]) -> None:
        todo = list(program)
        while True:
            ends = [index for index, step in enumerate(todo) if step[0] in ("crash", "reopen")]
            stop = ends[0] if ends else len(todo)
            crash = bool(ends) and todo[stop][0] == "crash"
            self.held.clear()
            self.model.removed.clear()
            async with self.world.open(self.options, crash=crash) as self.ns:
                for step in todo[:stop]:
                    await self.step(*step)
                if not crash:
                    for ino in self.held:
                        self.ns.release(ino)
            if crash:
                self.after_crash()
            else:
                self.check_stored()
                self.check_orphans()
            if not ends:
                return
            todo = todo[stop + 1 :]

    async def step(self, action: str, *arguments: Any) -> None:
        if action == "commit":
            await self.ns.commit()
            self.check_stored()
            return
        if action == "full":
            await self.full()
            return
        if action in ("open", "close", "list"):
            await getattr(self, action)(*arguments)
            return
        wanted: type[BaseException] | None = None
        before = copy.deepcopy(self.model)
        try:
            if action in ("mkdir", "create", "symlink"):
                self.model.make(arguments[0], {"mkdir": "d", "create": "f", "symlink": "l"}[action])
                if action == "symlink":
                    self.model.find(arguments[0]).size = 6
            else:
                getattr(self.model, action)(*arguments)
        except FlakeError as error:
            wanted = type(error)
            self.model = before
        found: FlakeError | None = None
        try:
            await getattr(self, action)(*arguments)
        except FlakeError as error:
            found = error
        answer = None if found is None else type(found)
        same = answer is wanted or (answer is IntoItself and wanted is InvalidArgument)
        assert same, f"{action} {arguments}: {found!r}, but the model says {wanted}"
        self.history.append(self.model.facts())
        self.states.append(copy.deepcopy(self.model))

    def check_orphans(self) -> None:
        """After the clean end of a session: it may leave what it has removed and was still releasing in steps."""
        new = self.world.orphans() - self.left
        assert len(new) <= len(self.model.removed), f"left by a session that ended: {new}"
        self.left |= new

    def check_stored(self) -> None:
        """After a commit with nothing changed since."""
        self.world.audit(orphans=None)
        assert self.stored() == self.model.facts()
        self.begin()

    def after_crash(self) -> None:
        """P4: what is stored is one of the states since the last commit; the model goes on from there."""
        self.world.audit(orphans=None, leaks=True)
        self.left = self.world.orphans()
        stored = self.stored()
        if self.exact:
            assert stored == self.history[0]
        assert stored in self.history
        named = {record["k"].binary for record in self.world.db.chunks.find()}
        for key in set(self.world.bytes_of) - named:
            del self.world.bytes_of[key]  # what gc does
        self.model = self.states[self.history.index(stored)]
        self.begin()

    def begin(self) -> None:
        """What is stored now is what the model is now."""
        self.history = [self.model.facts()]
        self.states = [copy.deepcopy(self.model)]

    def stored(self) -> dict[str, Any]:
        kinds = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}
        first: dict[int, str] = {}
        result = {}
        for raw, record in sorted(self.world.tree().items(), key=lambda item: item[0].split(b"/")):
            path = raw.decode()
            same = first.setdefault(record.ino, path)
            content = {
                offset + index: byte
                for offset, data in self.world.content_of(record)
                for index, byte in enumerate(data)
            }
            kind = kinds[stat.S_IFMT(record.mode)]
            mode = stat.S_IMODE(record.mode)
            result[path] = (kind, record.nlink, record.size, mode, same, tuple(sorted(content.items())))
        return result

    # -- the same operations on the namespace --

    async def walk(self, path: str) -> Any:
        inode = self.ns.root
        for part in path.split("/") if path else ():
            inode = await self.ns.child(inode, part.encode())
            if inode is None:
                raise NotFound
        return inode

    async def place(self, path: str) -> tuple[Any, bytes]:
        above, _, name = path.rpartition("/")
        folder = await self.walk(above)
        if folder.entries is None:
            raise NotDirectory
        return folder, name.encode()

    async def make(self, path: str, kind: int, target: bytes = b"") -> None:
        folder, name = await self.place(path)
        await self.ns.make(folder, name, mode=kind | (0o777 if target else 0o755), uid=0, gid=0, target=target, now=1)

    async def mkdir(self, path: str) -> None:
        await self.make(path, stat.S_IFDIR)

    async def create(self, path: str) -> None:
        await self.make(path, stat.S_IFREG)

    async def symlink(self, path: str) -> None:
        await self.make(path, stat.S_IFLNK, b"target")

    async def write(self, path: str, offset: int, data: bytes) -> None:
        inode = await self.walk(path)
        if inode.map is None:
            raise InvalidArgument
        await self.world.write(self.ns, inode, offset, data)

    async def truncate(self, path: str, size: int) -> None:
        await self.ns.truncate(await self.walk(path), size)

    async def chmod(self, path: str, mode: int) -> None:
        inode = await self.walk(path)
        inode.mode = stat.S_IFMT(inode.mode) | (mode if not stat.S_ISLNK(inode.mode) else 0o777)
        self.ns.changed(inode)

    async def link(self, path: str, new: str) -> None:
        inode = await self.walk(path)
        await self.ns.link(inode, *await self.place(new), now=2)

    async def unlink(self, path: str) -> None:
        await self.ns.unlink(*await self.place(path), now=3)

    async def rmdir(self, path: str) -> None:
        await self.ns.rmdir(*await self.place(path), now=4)

    async def rename(self, one: str, other: str, flag: str) -> None:
        source, target = await self.place(one), await self.place(other)
        await self.ns.rename(*source, *target, noreplace=flag == "noreplace", exchange=flag == "exchange", now=5)

    async def open(self, path: str) -> None:
        try:
            inode = await self.walk(path)
        except FlakeError:
            return
        self.ns.hold(inode.ino)
        self.held.append(inode.ino)

    async def full(self) -> None:
        """A commit that the nodes refuse when it brings content changes nothing (G2, J5)."""
        self.world.content.full = True
        with contextlib.suppress(NoSpace):
            await self.ns.commit()
            self.check_stored()
        self.world.content.full = False

    async def close(self) -> None:
        if self.held:
            self.ns.release(self.held.pop(0))

    async def list(self, path: str) -> None:
        try:
            folder, wanted = await self.walk(path), self.model.find(path)
        except FlakeError:
            return
        if folder.entries is None:
            return
        found, after = [], 0
        while page := await self.ns.listing(folder, after, 2):
            found += [name.decode() for _, name, _ in page]
            after = page[-1][0]
        assert sorted(found) == sorted(wanted.children), "E1"


CALM: dict[str, Any] = {"commit_interval_seconds": 3600.0, "error_timeout_seconds": 60.0}
KINDS = {
    "calm": NamespaceOptions(**CALM, group_documents=10_000, dirty_documents_max=10_000),
    "tiny caches": NamespaceOptions(**CALM, group_documents=10_000, dirty_documents_max=10_000, cached_inodes=1),
    "always committing": NamespaceOptions(**CALM, group_documents=1, dirty_documents_max=50, cached_inodes=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_that_ends_at_once_may_leave_the_orphans_of_one_that_crashed(world: World, kind: str) -> None:
    lost = [("open", "a/a"), ("unlink", "a/a"), ("commit",), ("crash",)]
    trio.run(Runner(world, KINDS[kind]).run, [*PRELUDE, *lost, ("reopen",), ("mkdir", "b/b"), ("reopen",)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_file_removed_at_the_end_of_a_session_is_released_by_the_next(world: World, kind: str) -> None:
    large = ("write", "a/b/a", 3 * SEGMENT_BYTES + 1, b"x")
    program = [*PRELUDE, large, ("commit",), ("list", ""), ("rename", "c", "a/b/a", "")]

    async def run() -> None:
        await Runner(world, KINDS[kind]).run(program)
        async with world.open() as ns:
            with trio.fail_after(60):
                while world.orphans():
                    await trio.sleep(0.01)
                    await ns.commit()

    trio.run(run)
    world.audit()


@pytest.mark.parametrize("large", [False, True], ids=["whole folders", "large folders"])
@pytest.mark.parametrize("kind", KINDS)
def test_random_programs(world: World, monkeypatch: pytest.MonkeyPatch, kind: str, large: bool) -> None:
    """P4, E1, H1, R1: the same answers and the same tree as the model."""
    if large:
        monkeypatch.setattr(entries, "LISTING_MAX", 1)
        monkeypatch.setattr(folders, "FEW", 1)
        monkeypatch.setattr(entries, "LOOKUP_LOADS", 1)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs)
    def check(program: list[tuple[Any, ...]]) -> None:
        world.reset()
        trio.run(Runner(world, KINDS[kind]).run, program)

    check()

"""Random histories of names in a small tree, made on stacks in one process, and the question whether they are allowed.

Purpose
    `Tree` is the model; `apply` says what each call does to the names, or which errors refuse it. `Play` runs programs
    on several sessions, and says in the end what they show; `explain` searches one order of all their calls.

Invariants
    HT1  A change, and a refusal, took place at one moment between call and answer.
    HT2  A look-up shows what was true at some moment before its answer, but not before the end of what its own session
         last did to that name. (Names reach other sessions by a stream.)

Concurrency
    One trio task for each program.

Not here
    The search (tests.shared.history.check), delays (testing.jitter), mounts (tests.shared.history.play).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import trio

from flakefs.app.stack import Stack
from flakefs.errors import (
    Exists,
    FlakeError,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    Stale,
)
from flakefs.values import ROOT_INO
from flakefs.vfs import Caller, FileSystem
from tests.shared.history.check import Search

NAMES = (b"a", b"b", b"c")
FOLDERS = (b"X", b"Y")
CHANGES = (
    "create",
    "create",
    "mkdir",
    "unlink",
    "unlink",
    "rmdir",
    "rename",
    "rename",
    "noreplace",
    "exchange",
    "link",
)
LOOKS = ("look", "look", "list")
SETTLE_SECONDS = 60.0
USER = Caller(0, 0)

Place = tuple[int, bytes]
Tree = frozenset[tuple[int, bytes, int, bool]]
"""(folder, name, inode, is it a folder)"""
Refusal = tuple[type[FlakeError], ...]
_GONE: Refusal = (NotFound, Stale)


class Call(NamedTuple):
    kind: str
    place: Place
    other: Place = (0, b"")
    ino: int = 0


class Event(NamedTuple):
    began: int
    ended: int
    session: int
    call: Call
    result: int | type[FlakeError] | None
    """Of what was made or looked up: its inode; None; or the class of the error."""
    sure: bool = True


def apply(tree: Tree, call: Call, made: int = 0) -> Tree | Refusal:
    """The tree after *call*, or the errors that refuse it. *made*: the inode that it makes."""
    names = {(folder, name): (ino, is_folder) for folder, name, ino, is_folder in tree}
    folders = {ROOT_INO} | {ino for ino, is_folder in names.values() if is_folder}
    kind, place, other, ino, *_ = call
    if place[0] not in folders or (other[0] and other[0] not in folders):
        return _GONE
    there, target = names.get(place), names.get(other)
    if kind in ("create", "mkdir"):
        if there:
            return (Exists,)
        names[place] = made, kind == "mkdir"
    elif kind == "link":
        if ino not in {each for each, is_folder in names.values() if not is_folder}:
            return (*_GONE, NotPermitted, *((Exists,) if there else ()))
        if there:
            return (Exists,)
        names[place] = ino, False
    elif there is None:
        return _GONE
    elif kind == "unlink":
        if there[1]:
            return (IsDirectory,)
        del names[place]
    elif kind == "rmdir":
        if not there[1]:
            return (NotDirectory,)
        if any(folder == there[0] for folder, _ in names):
            return (NotEmpty,)
        del names[place]
    else:
        refused = _no_rename(names, kind, place, other)
        if refused:
            return refused
        if there == target:
            return tree
        if kind == "exchange":
            assert target is not None
            names[place] = target
        else:
            del names[place]
        names[other] = there
    return frozenset((folder, name, ino, is_folder) for (folder, name), (ino, is_folder) in names.items())


def _no_rename(names: dict[Place, tuple[int, bool]], kind: str, place: Place, other: Place) -> Refusal:
    """All errors that a rename may meet: which of several comes first is nobody's business."""
    there, target = names[place], names.get(other)
    refused: list[type[FlakeError]] = []
    if kind == "exchange" and target is None:
        refused += _GONE
    if kind == "noreplace" and target is not None:
        refused.append(Exists)
    if there == target:
        return tuple(refused)
    if (there[1] and _inside(names, other[0], there[0])) or (
        kind == "exchange" and target is not None and target[1] and _inside(names, place[0], target[0])
    ):
        refused.append(InvalidArgument)
    if target is not None and kind != "exchange":
        if target[1] and not there[1]:
            refused.append(IsDirectory)
        if there[1] and not target[1]:
            refused.append(NotDirectory)
        if target[1] and any(folder == target[0] for folder, _ in names):
            refused.append(NotEmpty)
    return tuple(refused)


def _inside(names: dict[Place, tuple[int, bool]], folder: int, above: int) -> bool:
    parents = {ino: place[0] for place, (ino, is_folder) in names.items() if is_folder}
    while folder != above and folder in parents:
        folder = parents[folder]
    return folder == above


def explain(start: Tree, events: Sequence[Event], end: Tree, limit: int = 300_000) -> bool:
    """HT1, HT2. Raises RuntimeError when the search takes too long."""
    changes: list[Event] = []
    looks: list[tuple[int, int, Callable[[Tree], bool]]] = []
    for event in events:
        refused = isinstance(event.result, type)
        if event.call.kind == "look":
            own = [
                each.ended
                for each in events
                if each.session == event.session
                and each.ended < event.began
                and each.call.kind != "look"
                and not isinstance(each.result, type)
                and event.call.place in (each.call.place, each.call.other)
            ]
            looks.append((max(own, default=-1), event.ended, partial(_shows, event)))
        elif refused:
            looks.append((event.began, event.ended, partial(_refuses, event)))
        else:
            changes.append(event)
    last = max((event.ended for event in events), default=0) + 1
    looks.append((last, last + 1, lambda tree: tree == end))

    def step(tree: Tree, event: Event) -> Tree | None:
        after = apply(tree, event.call, event.result if isinstance(event.result, int) else 0)
        return after if isinstance(after, frozenset) else None

    return Search(changes, looks, step, limit).possible(start)


def _shows(event: Event, tree: Tree) -> bool:
    found = next((ino for folder, name, ino, _ in tree if (folder, name) == event.call.place), None)
    return found == event.result


def _refuses(event: Event, tree: Tree) -> bool:
    after = apply(tree, event.call)
    return not isinstance(after, frozenset) and isinstance(event.result, type) and issubclass(event.result, after)


class Play:
    """One history."""

    def __init__(self, stacks: Sequence[Stack], seed: int) -> None:
        self._stacks = stacks
        self._chance = random.Random(seed)
        self._clock = iter(range(10**9))
        self._folders = [ROOT_INO]
        self._inodes: list[int] = []
        self.start: Tree = frozenset()
        self.events: list[Event] = []

    async def run(self, programs: int, calls: int, *, gaps: bool = False) -> None:
        """*programs* on each session. *gaps*: now and then all that is cached is forgotten."""
        fs = self._stacks[0].fs
        made = []
        for name in FOLDERS:
            inode = await fs.mkdir(ROOT_INO, name, 0o755, USER)
            self._folders.append(inode.ino)
            made.append((ROOT_INO, name, inode.ino, True))
        self.start = frozenset(made)
        async with trio.open_nursery() as nursery:
            for session in range(len(self._stacks)):
                for _ in range(programs):
                    chance = random.Random(self._chance.random())
                    nursery.start_soon(self._program, session, chance, calls, gaps)

    async def _program(self, session: int, chance: random.Random, calls: int, gaps: bool) -> None:
        stack = self._stacks[session]
        for _ in range(calls):
            if gaps and chance.random() < 0.05:
                stack.fs.ns.coherence.drop_all()
            call = self._call(chance)
            began = next(self._clock)
            result: int | type[FlakeError] | None
            try:
                result = await do(stack.fs, call)
            except FlakeError as error:
                if call.kind in LOOKS:
                    continue
                result = type(error)
            ended = next(self._clock)
            if isinstance(result, int) and call.kind in ("create", "mkdir"):
                (self._inodes if call.kind == "create" else self._folders).append(result)
            if call.kind != "list":
                self.events.append(Event(began, ended, session, call, result))

    def _call(self, chance: random.Random) -> Call:
        place, other = (
            (chance.choice((ROOT_INO, *self._folders[-3:])), chance.choice((*NAMES, *FOLDERS[:1]))) for _ in range(2)
        )
        kind = chance.choice(CHANGES + LOOKS)
        if kind == "link":
            if self._inodes:
                return Call(kind, place, ino=chance.choice(self._inodes[-4:]))
            kind = "create"
        return Call(kind, place, other if kind in ("rename", "noreplace", "exchange") else (0, b""))

    async def end(self) -> Tree:
        """What the first session shows when news has settled; raises AssertionError when another one shows else."""
        trees = await self._settled()
        assert all(tree == trees[0] for tree in trees), f"they show different names:\n{self.text()}\n{trees}"
        return trees[0]

    async def _settled(self) -> list[Tree]:
        """Every session has heard what all have done: a marker of each comes after it. That a session finds a marker is
        not enough: it may have read it, and hear of what came before only later.
        """
        last = {}
        for index, stack in enumerate(self._stacks):
            await stack.fs.mkdir(ROOT_INO, b"marker%d" % index, 0o755, USER)
            assert stack.fs.ns._shared is not None
            session = stack.fs.ns._shared._session
            last[session.epoch] = session.commits
        with trio.fail_after(SETTLE_SECONDS):
            for stack in self._stacks:
                heard, own = stack.fs.ns.coherence._numbers, stack.fs.ns.membership()["epoch"]
                while any(heard.get(epoch, 0) < last[epoch] for epoch in last if epoch != own):  # noqa: ASYNC110
                    await trio.sleep(0.005)
        looked = [await looked_up(stack.fs, self._folders) for stack in self._stacks]
        trees = []
        for stack, seen in zip(self._stacks, looked, strict=True):
            tree = await listed(stack.fs)
            reachable = {ROOT_INO} | {ino for _, _, ino, is_folder in tree if is_folder}
            assert {each for each in seen if each[0] in reachable} == tree, (
                f"look-ups and listings differ: {sorted(seen ^ tree)}\n{self.text()}"
            )
            trees.append(tree)
        return trees

    def text(self) -> str:
        return "\n".join(map(str, [sorted(self.start), *sorted(self.events)]))


async def do(fs: FileSystem, call: Call) -> int | None:
    kind, (folder, name), (other, new_name), ino = call
    if kind == "create":
        handle, inode = await fs.create(folder, name, 0o644, os.O_RDWR | os.O_EXCL, USER)
        await fs.release(handle)
        return inode.ino
    if kind == "mkdir":
        return (await fs.mkdir(folder, name, 0o755, USER)).ino
    if kind == "link":
        await fs.link(ino, folder, name)
    elif kind == "unlink":
        await fs.unlink(folder, name)
    elif kind == "rmdir":
        await fs.rmdir(folder, name)
    elif kind == "look":
        found = await fs.lookup(folder, name)
        return None if found is None else found.ino
    elif kind == "list":
        await entries_of(fs, folder)
    else:
        await fs.rename(folder, name, other, new_name, noreplace=kind == "noreplace", exchange=kind == "exchange")
    return None


async def entries_of(fs: FileSystem, folder: int) -> list[tuple[bytes, int, bool]]:
    """A listing in small pages: a name comes once."""
    handle = await fs.opendir(folder)
    found: list[tuple[bytes, int, bool]] = []
    after = 0
    try:
        while page := await fs.readdir(handle, after, 2):
            after = page[-1][0]
            found += [(name, inode.ino, inode.entries is not None) for _, name, inode in page]
    finally:
        await fs.releasedir(handle)
    return found


async def listed(fs: FileSystem) -> Tree:
    found: set[tuple[int, bytes, int, bool]] = set()
    todo = [ROOT_INO]
    while todo:
        folder = todo.pop()
        names = [each for each in await entries_of(fs, folder) if not each[0].startswith(b"marker")]
        assert len({name for name, _, _ in names}) == len(names), names
        found |= {(folder, *each) for each in names}
        todo += [ino for _, ino, is_folder in names if is_folder]
    links: dict[int, int] = {}
    for _, _, ino, _ in found:
        links[ino] = links.get(ino, 0) + 1
    for _, name, ino, is_folder in found:
        count = (await fs.inode(ino)).nlink
        expected = 2 + sum(each[0] == ino and each[3] for each in found) if is_folder else links[ino]
        assert count == expected, f"{name!r} ({ino}) has {expected} links and says {count}"
    return frozenset(found)


async def looked_up(fs: FileSystem, folders: Sequence[int]) -> set[tuple[int, bytes, int, bool]]:
    found = set()
    for folder in folders:
        for name in (*NAMES, *FOLDERS):
            try:
                inode = await fs.lookup(folder, name)
            except (NotFound, Stale):
                break
            if inode is not None:
                found.add((folder, name, inode.ino, inode.entries is not None))
    return found

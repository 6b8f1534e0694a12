"""Random histories of several sessions, checked: names are linearizable, content loses nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

import pytest
import trio
import trio.lowlevel

from flakefs.errors import Exists, FlakeError, IsDirectory, NotDirectory, NotFound
from flakefs.testing.jitter import jitter
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes, FileSystem
from flakefs.vfs.paths import resolve
from tests.shared.conftest import ROOT, get, put, shared

FIRST = int(os.environ.get("FLAKEFS_SEED", "0"))
ROUNDS = int(os.environ.get("FLAKEFS_ROUNDS", "4"))
NAMES = (b"a", b"b", b"c")
State = frozenset[tuple[bytes, str]]
Call = tuple[str, bytes, bytes]


class Event(NamedTuple):
    began: int
    ended: int
    call: Call
    result: type[FlakeError] | None


def apply(state: State, call: Call) -> tuple[State, type[FlakeError] | None]:
    """The model: one folder."""
    kind, name, other = call
    names = dict(state)
    there = names.get(name)
    if kind in ("file", "folder"):
        if there:
            return state, Exists
        names[name] = kind
    elif there is None:
        return state, NotFound
    elif kind == "unlink":
        if there == "folder":
            return state, IsDirectory
        del names[name]
    elif kind == "rmdir":
        if there == "file":
            return state, NotDirectory
        del names[name]
    else:
        target = names.get(other)
        if target and kind == "noreplace":
            return state, Exists
        if target and target != there:
            return state, NotDirectory if there == "folder" else IsDirectory
        del names[name]
        names[other] = there
    return frozenset(names.items()), None


def is_linearizable(histories: list[list[Event]], end: State) -> bool:
    """Is there one order of all events, keeping what ended before something began, that the model can do?"""
    seen: set[tuple[tuple[int, ...], State]] = set()

    def follow(at: tuple[int, ...], state: State) -> bool:
        if (at, state) in seen:
            return False
        seen.add((at, state))
        heads = [
            (index, history[place])
            for index, (history, place) in enumerate(zip(histories, at, strict=True))
            if place < len(history)
        ]
        if not heads:
            return state == end
        first_end = min(event.ended for _, event in heads)
        for index, event in heads:
            if event.began > first_end:
                continue
            after, result = apply(state, event.call)
            if result is event.result and follow((*at[:index], at[index] + 1, *at[index + 1 :]), after):
                return True
        return False

    return follow((0,) * len(histories), frozenset())


def calls(rng: random.Random, count: int) -> Iterator[Call]:
    for _ in range(count):
        name, other = rng.sample(NAMES, 2)
        yield rng.choice(("file", "folder", "unlink", "rmdir", "rename", "rename", "noreplace")), name, other


async def do(fs: FileSystem, call: Call) -> None:
    kind, name, other = call
    if kind == "file":
        handle, _ = await fs.create(ROOT_INO, name, 0o644, os.O_RDWR | os.O_EXCL, ROOT)
        await fs.release(handle)
    elif kind == "folder":
        await fs.mkdir(ROOT_INO, name, 0o755, ROOT)
    elif kind == "unlink":
        await fs.unlink(ROOT_INO, name)
    elif kind == "rmdir":
        await fs.rmdir(ROOT_INO, name)
    else:
        await fs.rename(ROOT_INO, name, ROOT_INO, other, noreplace=kind == "noreplace")


@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
@pytest.mark.parametrize("delays", [False, True], ids=["prompt", "delayed"])
async def test_names_are_linearizable(fresh: Fresh, seed: int, delays: bool) -> None:
    rng = random.Random(seed)
    sessions = 2 + seed % 2
    clock = iter(range(10**9))
    histories: list[list[Event]] = [[] for _ in range(2 * sessions)]

    async def work(fs: FileSystem, history: list[Event], todo: list[Call]) -> None:
        for call in todo:
            began = next(clock)
            result: type[FlakeError] | None = None
            try:
                await do(fs, call)
            except FlakeError as error:
                result = type(error)
            history.append(Event(began, next(clock), call, result))

    async with AsyncExitStack() as exits:
        if delays:
            exits.enter_context(jitter(seed, most_seconds=0.004, often=0.9))
        stacks = [await exits.enter_async_context(fresh.open()) for _ in range(sessions)]
        for stack in stacks:
            await shared(stack)
        async with trio.open_nursery() as nursery:
            for index, history in enumerate(histories):
                nursery.start_soon(work, stacks[index % sessions].fs, history, list(calls(rng, 20)))
    async with fresh.open() as stack:
        handle = await stack.fs.opendir(ROOT_INO)
        listed = await stack.fs.readdir(handle, 0, 100)
        await stack.fs.releasedir(handle)
        end = frozenset((name, "folder" if inode.map is None else "file") for _, name, inode in listed)
    assert sum(event.result is None for history in histories for event in history) > 10
    assert is_linearizable(histories, end), f"{histories} -> {end}"


@pytest.mark.parametrize("seed", range(4))
async def test_owners_of_stripes_keep_every_byte(fresh: Fresh, seed: int) -> None:
    """Each of four writers owns every fourth stripe of one file and knows what it wrote there; others do the same,
    change attributes, and read.
    """
    rng = random.Random(seed)
    stripe = rng.choice((100, 3_000, 20_000, 70_000))
    count = 32
    written: dict[int, bytes] = {}

    async def work(fs: FileSystem, ino: int, owner: int) -> None:
        mine = random.Random(seed * 10 + owner)
        handle = await fs.open(ino, os.O_RDWR)
        for step in range(25):
            index = owner + 4 * mine.randrange(count // 4)
            data = bytes([mine.randrange(1, 256)]) * mine.randrange(1, stripe)
            before = written.get(index, b"")
            await fs.write(handle, index * stripe, data)
            written[index] = data + before[len(data) :]
            if mine.random() < 0.2:
                await fs.fsync(handle)
            if mine.random() < 0.1:
                await fs.setattr(ino, Changes(mode=0o600 + step), ROOT)
            if mine.random() < 0.2:
                await fs.flush(handle)
                await fs.release(handle)
                handle = await fs.open(ino, os.O_RDWR)
            got = bytes(await fs.read(handle, index * stripe, len(written[index])))
            assert got == written[index]
            await trio.lowlevel.checkpoint()
        await fs.flush(handle)
        await fs.release(handle)

    async with fresh.open() as one, fresh.open() as other:
        await shared(one)
        await shared(other)
        ino = await put(one.fs, b"f", b"")
        async with trio.open_nursery() as nursery:
            for owner in range(4):
                nursery.start_soon(partial(work, (one, other)[owner % 2].fs, ino, owner))
        expected = bytearray(max(index * stripe + len(data) for index, data in written.items()))
        for index, data in written.items():
            expected[index * stripe : index * stripe + len(data)] = data
        for stack in (one, other):
            assert (await resolve(stack.fs, b"/f")).ino == ino
            assert await get(stack.fs, b"/f") == bytes(expected)

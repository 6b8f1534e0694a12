"""For tests of times that shared mode writes outside of the commits: when they are written, and who has heard what."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from flakefs.app.stack import Stack
from flakefs.format.documents import INODES, Document
from flakefs.namespace import shared as module
from flakefs.values import ROOT_INO
from flakefs.vfs import Changes
from tests.shared.conftest import ROOT, until

HOUR_NS = 3_600 * 10**9
PAST = 10**18
FUTURE = 2 * PAST


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are written when a test says so."""
    monkeypatch.setattr(module, "TIMES_SECONDS", float("inf"))


async def folder_of(stack: Stack, *others: Stack) -> int:
    """A new folder that all know, and whose times are stored."""
    ino = (await stack.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
    await write_times(stack)
    for other in others:
        await heard(other, stack)
        assert (await known_names(other))[b"d"] == ino
        assert (await other.fs.inode(ino)).mtime == (await stack.fs.inode(ino)).mtime
    return ino


async def known_names(stack: Stack, folder: int = ROOT_INO) -> dict[bytes, int]:
    handle = await stack.fs.opendir(folder)
    names = {name: inode.ino for _, name, inode in await stack.fs.readdir(handle, 0, 100)}
    await stack.fs.releasedir(handle)
    return names


async def write_times(*stacks: Stack) -> None:
    for stack in stacks:
        assert stack.fs.ns._shared is not None
        await stack.fs.ns._shared.write_times()
        assert not stack.fs.ns._cache.times.pending


async def heard(stack: Stack, other: Stack) -> None:
    """*stack* has taken all news of *other*."""
    await until(lambda: stack.fs.ns.coherence._numbers.get(other.session.epoch, 0) == other.session.commits)


def deaf(stack: Stack, patch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """From now on news is kept back. To be given to listen()."""
    kept: list[Mapping[str, Any]] = []
    patch.setattr(stack.fs.ns.coherence, "take", kept.append)
    return kept


def listen(stack: Stack, kept: list[Mapping[str, Any]], patch: pytest.MonkeyPatch) -> None:
    take = type(stack.fs.ns.coherence).take
    for document in kept:
        take(stack.fs.ns.coherence, document)
    patch.setattr(stack.fs.ns.coherence, "take", lambda document: take(stack.fs.ns.coherence, document))


async def set_mtime(stack: Stack, ino: int, mtime: int) -> None:
    await stack.fs.setattr(ino, Changes(mtime=mtime), ROOT)


async def stored(stack: Stack, ino: int) -> Document:
    document = await stack.fs.ns._cache.read(lambda db: db[INODES].find_one({"_id": ino}))
    assert document is not None
    return document


async def all_show(ino: int, mtime: int, *stacks: Stack) -> None:
    """The store, and everybody once the news has come, have this mtime."""
    assert (await stored(stacks[0], ino))["mtime"] == mtime
    for stack, other in itertools.permutations(stacks, 2):
        await heard(stack, other)
    assert [(await stack.fs.inode(ino)).mtime for stack in stacks] == [mtime] * len(stacks)

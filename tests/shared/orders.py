"""To make orders of answers and news happen that are rare: answers, or commits, of one stack are held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import trio

from flakefs.app.stack import Stack
from flakefs.namespace.commit import transact
from flakefs.values import ROOT_INO
from tests.shared.conftest import eventually, until

T = TypeVar("T")


def hold_answers(
    stack: Stack, patch: pytest.MonkeyPatch, condition: Callable[[], bool], *, commits: bool
) -> trio.Event:
    """From now on answers to *stack* (of commits, or of all else) arrive when *condition* holds. Event: one waits."""
    run, waits = stack.door.run, trio.Event()

    async def held(call: Callable[[], T], **options: Any) -> T:
        result = await run(call, **options)
        if (getattr(call, "func", None) is transact) is commits:
            waits.set()
            await until(condition)
        return result

    patch.setattr(stack.door, "run", held)
    return waits


def hold_commits(stack: Stack, patch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """From now on commits of *stack* wait. (one does, they may go on)"""
    run, waits, free = stack.door.run, trio.Event(), trio.Event()

    async def held(call: Callable[[], T], **options: Any) -> T:
        if getattr(call, "func", None) is transact:
            waits.set()
            await free.wait()
        return await run(call, **options)

    patch.setattr(stack.door, "run", held)
    return waits, free


async def gone(stack: Stack, name: bytes) -> None:
    """Return when the name is known to be gone."""

    async def is_gone() -> bool:
        return await stack.fs.lookup(ROOT_INO, name) is None

    await eventually(is_gone)


async def names_of(stack: Stack) -> set[bytes]:
    handle = await stack.fs.opendir(ROOT_INO)
    names = {name for _, name, _ in await stack.fs.readdir(handle, 0, 100)}
    await stack.fs.releasedir(handle)
    return names


def news(stack: Stack) -> int:
    return int(stack.fs.ns.membership()["news"])

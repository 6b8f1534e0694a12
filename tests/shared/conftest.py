"""Two open stacks over one file system, in one process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from flakefs.app.stack import Stack
from flakefs.errors import FlakeError
from flakefs.testing.stack import Fresh, fresh, new_fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Caller, FileSystem
from flakefs.vfs.paths import resolve

__all__ = ["fresh", "new_fresh"]

ROOT = Caller(0, 0)
PATIENCE_SECONDS = 30.0


@asynccontextmanager
async def two(fresh: Fresh) -> AsyncIterator[tuple[Stack, Stack]]:
    async with fresh.open() as one, fresh.open() as other:
        await shared(one)
        await shared(other)
        yield one, other


@pytest.fixture
async def pair(fresh: Fresh) -> AsyncIterator[tuple[FileSystem, FileSystem]]:
    """Two file systems in shared mode, whose streams are healthy."""
    async with two(fresh) as (one, other):
        yield one.fs, other.fs


async def shared(stack: Stack) -> None:
    await until(lambda: stack.fs.ns.shared and stack.fs.ns.membership()["stream"] == "healthy")


async def until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def eventually(question: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not await question():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def together(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """All at once; results, or the FlakeErrors they raised, in order."""
    results: list[Any] = [None] * len(calls)

    async def one(index: int) -> None:
        try:
            results[index] = await calls[index]()
        except FlakeError as error:
            results[index] = error

    async with trio.open_nursery() as nursery:
        for index in range(len(calls)):
            nursery.start_soon(one, index)
    return results


async def put(fs: FileSystem, name: bytes, data: bytes, parent: int = ROOT_INO) -> int:
    handle, inode = await fs.create(parent, name, 0o644, os.O_RDWR, ROOT)
    await fs.write(handle, 0, data)
    await fs.flush(handle)
    await fs.release(handle)
    return inode.ino


async def get(fs: FileSystem, path: bytes) -> bytes:
    inode = await resolve(fs, path)
    handle = await fs.open(inode.ino, os.O_RDONLY)
    try:
        return bytes(await fs.read(handle, 0, 2**30))
    finally:
        await fs.release(handle)

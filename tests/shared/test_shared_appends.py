"""What is seen, on the mount that writes it, of a file while it is written and while records are appended to it."""

from __future__ import annotations

import os

import trio
import trio.lowlevel

from flakefs.vfs import FileSystem
from tests.shared.conftest import PATIENCE_SECONDS, put

Pair = tuple[FileSystem, FileSystem]
ROUNDS = 10
FAR = 10_000


async def test_a_file_that_is_written_all_the_time_can_be_opened(pair: Pair) -> None:
    """And what was closed elsewhere before is seen then (P2), though there is never a moment without dirty content."""
    one, other = pair
    ino = await put(one, b"f", b"a" * 2 * FAR)
    done = trio.Event()

    async def write() -> None:
        handle = await one.open(ino, os.O_RDWR)
        while not done.is_set():
            await one.write(handle, 0, b"b" * 700)
            await trio.lowlevel.checkpoint()
        await one.flush(handle)
        await one.release(handle)

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for number in range(ROUNDS):
                elsewhere = await other.open(ino, os.O_RDWR)
                await other.write(elsewhere, FAR, b"%d" % number)
                await other.flush(elsewhere)
                await other.release(elsewhere)
                handle = await one.open(ino, os.O_RDONLY)
                assert bytes(await one.read(handle, FAR, 1)) == b"%d" % number
                await one.release(handle)
            done.set()

"""A writer that dies at a chosen request to a server. Run in a process of its own by test_tools_crash.py.

Each step changes the folder FOLDER and is made durable; then its number is noted in PROGRESS. What the folder holds
after each step is computed beside it, from plain dicts: STATES[k] is the state after k steps.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
from pymongo import monitoring

from flakefs.app.stack import open_stack
from flakefs.errors import NotFound
from flakefs.vfs import Caller, Changes, FileSystem
from flakefs.vfs.paths import resolve, resolve_parent

WRITES = {"insert", "update", "delete", "findAndModify", "commitTransaction", "create"}
ME = Caller(0, 0)
RANDOM = random.Random(7)
SMALL = b"a few bytes"
CHUNKY = RANDOM.randbytes(150_000)
PIECE = RANDOM.randbytes(20_000)
FAR = 70 * 1024 * 1024
STEPS: list[Callable[[FileSystem, bytes], Awaitable[None]]] = []
STATES: list[dict[bytes, bytes | None]] = [{}]
"""Path below the folder -> content; None is a folder. Of the sparse file only the end."""


class Death(monitoring.CommandListener):
    """Kills this process when it is about to send its *last*-th writing command."""

    def __init__(self, last: int) -> None:
        self.left = last

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in WRITES:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


def step(**changes: Any) -> Callable[[Any], Any]:
    """A step, and what it changes: name -> content, ... for a folder, None when it goes."""

    def note(do: Any) -> Any:
        state = dict(STATES[-1])
        for name, content in changes.items():
            path = name.replace("_", "/").encode()
            state.pop(path, None)
            if content is not None:
                state[path] = None if content is ... else content
        STEPS.append(do)
        STATES.append(state)
        return do

    return note


async def write(fs: FileSystem, path: bytes, data: bytes, offset: int = 0) -> None:
    folder, name = await resolve_parent(fs, path)
    handle, _ = await fs.create(folder.ino, name, 0o644, os.O_RDWR, ME)
    await fs.write(handle, offset, data)
    await fs.release(handle)


async def move(fs: FileSystem, old: bytes, new: bytes, *, exchange: bool = False) -> None:
    (parent, name), (new_parent, new_name) = await resolve_parent(fs, old), await resolve_parent(fs, new)
    await fs.rename(parent.ino, name, new_parent.ino, new_name, exchange=exchange)


@step(d=...)
async def make_a_folder(fs: FileSystem, top: bytes) -> None:
    await fs.mkdir((await resolve(fs, top)).ino, b"d", 0o755, ME)


@step(d_small=SMALL, d_chunky=CHUNKY)
async def write_two_files(fs: FileSystem, top: bytes) -> None:
    await write(fs, top + b"/d/small", SMALL)
    await write(fs, top + b"/d/chunky", CHUNKY)


@step(d_chunky=CHUNKY[:70_000] + PIECE + CHUNKY[90_000:])
async def overwrite_a_piece(fs: FileSystem, top: bytes) -> None:
    handle = await fs.open((await resolve(fs, top + b"/d/chunky")).ino, os.O_RDWR)
    await fs.write(handle, 70_000, PIECE)
    await fs.release(handle)


@step(again=CHUNKY[:70_000] + PIECE + CHUNKY[90_000:], e=...)
async def link_and_make_a_folder(fs: FileSystem, top: bytes) -> None:
    await fs.link((await resolve(fs, top + b"/d/chunky")).ino, (await resolve(fs, top)).ino, b"again")
    await fs.mkdir((await resolve(fs, top)).ino, b"e", 0o755, ME)


@step(d_small=None, again=SMALL, twin=CHUNKY)
async def replace_a_name_and_store_the_same_again(fs: FileSystem, top: bytes) -> None:
    await move(fs, top + b"/d/small", top + b"/again")
    await write(fs, top + b"/twin", CHUNKY)


@step(again=..., e=SMALL)
async def exchange_a_file_and_a_folder(fs: FileSystem, top: bytes) -> None:
    await move(fs, top + b"/again", top + b"/e", exchange=True)


@step(d_chunky=CHUNKY[:66_000], again_far=PIECE)
async def truncate_and_write_far_out(fs: FileSystem, top: bytes) -> None:
    changes = Changes(None, None, None, 66_000, None, None)
    await fs.setattr((await resolve(fs, top + b"/d/chunky")).ino, changes, ME)
    await write(fs, top + b"/again/far", PIECE, FAR)


@step(d_chunky=None, twin=None)
async def unlink_while_open(fs: FileSystem, top: bytes) -> None:
    handle = await fs.open((await resolve(fs, top + b"/d/chunky")).ino, os.O_RDWR)
    await fs.unlink((await resolve(fs, top + b"/d")).ino, b"chunky")
    await fs.unlink((await resolve(fs, top)).ino, b"twin")
    await fs.write(handle, 1_000, PIECE)
    await fs.sync()
    await fs.release(handle)


@step(d=None, again_far=None, again=None)
async def remove_folders(fs: FileSystem, top: bytes) -> None:
    await fs.unlink((await resolve(fs, top + b"/again")).ino, b"far")
    for name in (b"again", b"d"):
        await fs.rmdir((await resolve(fs, top)).ino, name)


async def read_state(fs: FileSystem, top: bytes) -> dict[bytes, bytes | None] | None:
    """What the folder holds, as in STATES; None when it is not there."""
    with suppress(NotFound):
        return await _below(fs, (await resolve(fs, top)).ino, b"")
    return None


async def _below(fs: FileSystem, ino: int, prefix: bytes) -> dict[bytes, bytes | None]:
    found: dict[bytes, bytes | None] = {}
    handle = await fs.opendir(ino)
    for _, name, inode in await fs.readdir(handle, 0, 1000):
        if inode.map is None:
            found[prefix + name] = None
            found |= await _below(fs, inode.ino, prefix + name + b"/")
        else:
            file = await fs.open(inode.ino, os.O_RDONLY)
            start = FAR if inode.size > FAR else 0
            data = b""
            while part := await fs.read(file, start + len(data), 1 << 17):
                data += part
            found[prefix + name] = data
            await fs.release(file)
    await fs.releasedir(handle)
    return found


async def run(config: Any, folder: bytes, progress: str) -> None:
    async with open_stack(config, kind="tool", writable=True, where="a crash test") as stack:
        fs = stack.fs
        await fs.mkdir(1, folder, 0o755, ME)
        await fs.sync()
        with open(progress, "wb", buffering=0) as notes:  # noqa: ASYNC230
            notes.write(b"+")
            for do in STEPS:
                await do(fs, b"/" + folder)
                await fs.sync()
                notes.write(b"+")


if __name__ == "crash":
    given: dict[str, Any] = globals()["GIVEN"]
    monitoring.register(Death(given["last"]))
    trio.run(run, given["config"], given["folder"], given["progress"])

"""A thread that runs trio with one open file system in it, and the way to call into it.

Invariants
    P1  call() returns or raises what the function did; when the file system is gone, it raises the reason.
    P2  A caller that is interrupted (Ctrl-C) cancels its operation and does not leave it running behind its back.
    P4  Who is interrupted while the file system is being opened need not wait for a server that does not answer: the
        thread gives up as soon as it can, and leaves nothing behind when it has opened after all.
    P3  close() returns when everything is committed and the session is closed; it may be called twice.

Concurrency
    Any thread may call; the functions run as tasks of the trio thread and see the file system undisturbed between
    two awaits.

Not here
    What is called (client, files, transfer, trees).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Concatenate, ParamSpec, TypeVar

import trio

from flakefs.app.stack import Stack, open_stack, sole
from flakefs.config import Config
from flakefs.errors import BadHandle
from flakefs.vfs import FileSystem

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

GIVE_UP_SECONDS = 2.0
"""What an interrupted opening is given to end in order; a call to a server that hangs takes up to its deadline."""


class Portal:
    """An open file system in a thread of its own."""

    def __init__(self, config: Config, *, kind: str, writable: bool, where: str) -> None:
        # Constant after construction
        self._opened: Future[tuple[Stack, trio.lowlevel.TrioToken, trio.Event]] = Future()
        self._failure: BaseException | None = None
        self._give_up: Callable[[], None] = lambda: None  # set by the thread
        self._closed = False
        self._thread = threading.Thread(
            target=self._main, args=(config, kind, writable, where), name="flakefs", daemon=True
        )
        self._thread.start()
        try:
            self.stack, self._token, self._stop = self._opened.result()
        except BaseException:  # KeyboardInterrupt, or the reason why it could not be opened
            self._opened.cancel()
            self._give_up()
            self._thread.join(GIVE_UP_SECONDS)
            raise
        self.chunk_size = self.stack.fs.chunk_size
        atexit.register(self._close_at_exit)

    def call(self, function: Callable[Concatenate[FileSystem, P], Awaitable[T]], *args: P.args, **named: P.kwargs) -> T:
        """Run `function(fs, ...)` in the trio thread and wait for it."""
        if self._closed:
            raise BadHandle("the connection to the file system is closed")
        scope = trio.CancelScope()

        async def run() -> T:
            with scope:
                try:
                    return await function(self.stack.fs, *args, **named)
                except BaseExceptionGroup as group:  # from a nursery of the function
                    raise sole(group) from None
            raise KeyboardInterrupt  # nobody is waiting for it any more (P2)

        try:
            return trio.from_thread.run(run, trio_token=self._token)
        except trio.RunFinishedError:
            raise self._reason() from None
        except KeyboardInterrupt:
            self._soon(scope.cancel)
            raise

    def release_later(self, handle: int) -> None:
        """Release a file handle without waiting; for objects that the garbage collector found."""
        self._soon(lambda: trio.lowlevel.spawn_system_task(_release, self.stack.fs, handle))

    def inside(self) -> bool:
        """Does the calling code run in the trio thread (a garbage collection there)?"""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Commit everything and let go (P3)."""
        if not self._closed:
            self._closed = True
            atexit.unregister(self._close_at_exit)
            self._soon(self._stop.set)
        self._thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _close_at_exit(self) -> None:
        try:
            self.close()
        except Exception as error:
            log.error("a file system that was left open could not be closed: %s", error)

    def _soon(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)

    def _reason(self) -> BaseException:
        self._thread.join()
        return self._failure or BadHandle("the connection to the file system is closed")

    def _main(self, config: Config, kind: str, writable: bool, where: str) -> None:
        try:
            trio.run(self._serve, config, kind, writable, where)
        except BaseException as error:
            if self._opened.done():
                self._failure = error
            else:
                self._opened.set_exception(error)

    async def _serve(self, config: Config, kind: str, writable: bool, where: str) -> None:
        token = trio.lowlevel.current_trio_token()
        opening = trio.CancelScope()

        def give_up() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(opening.cancel)

        self._give_up = give_up
        with opening:
            if self._opened.cancelled():
                return
            async with open_stack(config, kind=kind, writable=writable, where=where) as stack:
                stop = trio.Event()
                if self._opened.set_running_or_notify_cancel():
                    self._opened.set_result((stack, token, stop))
                    await stop.wait()


async def _release(fs: FileSystem, handle: int) -> None:
    """As a system task it must not raise: that would end the whole run."""
    try:
        await fs.release(handle)
    except Exception as error:
        log.warning("a file that was never closed could not be released: %s", error)

"""One mount from its beginning to its end.

Purpose
    Mounts a FileSystem, says when the folder answers, serves until somebody unmounts it or the caller cancels, and
    leaves no dead mountpoint behind.

Invariants
    S1  `ready` is called once, after a request through the kernel was answered.
    S2  When serve() returns or raises, nothing is mounted at the folder by it any more, and no handler runs.
    S3  Cancelled (a signal): first everything is committed while the mount still answers, then it is unmounted like
        umount(8) does, so that the kernel hands over what it still has; when it is busy, it is detached.
    S4  Requests begun are answered before the end, unless that takes longer than PATIENCE_SECONDS.
    S5  A kernel that takes the mount away while a request is being read (ECONNABORTED) has unmounted, as with ENODEV.
    S6  Killed, it leaves no program behind that waits for its answers for ever (fuse.guard).

Concurrency
    The handlers run in tasks of pyfuse3 inside serve(). Calls that go through the kernel back to this process (stat,
    umount) run in threads that are abandoned when the mount ends first.

Not here
    Signals (app.daemon). The last commit, which happens when the caller closes the FileSystem.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyfuse3
import trio

from flakefs.errors import FlakeError, MountError
from flakefs.fuse import guard, kernel
from flakefs.fuse.caches import KernelCaches
from flakefs.fuse.operations import Operations
from flakefs.fuse.options import KERNEL_FLAGS, FuseOptions
from flakefs.fuse.quick import Turn, quick_loop
from flakefs.vfs import FileSystem

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 20.0
"""For each of: unmounting, and finishing requests that have begun."""
SWITCH_SECONDS = 0.0005
"""So long at most a worker thread keeps the interpreter while the trio thread waits to answer; Python's own is 5 ms.
The gain differs with the load of the machine: a cold `find` of 10,000 entries, medians of 8 turns: 0.99 and 1.13 s.
"""
_LIBFUSE_NOISE = re.compile(r"^(?:fuse|fusermount3?): ")


class _Serving:
    """The state of one mount that serve() and its tasks share."""

    def __init__(self, mountpoint: str, options: FuseOptions, turn: Turn) -> None:
        self.mountpoint = mountpoint
        self.options = options
        self.turn = turn
        self.ended = trio.Event()  # no handler runs any more
        self.requests = trio.CancelScope(shield=True)  # a cancelled serve() still answers while it leaves (S3)
        self.mount: kernel.Mounted | None = None

    async def answer(self) -> None:
        """Serve requests until the mount is gone."""
        try:
            with self.requests:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.turn.keep)
                    await pyfuse3.main(min_tasks=self.options.tasks, max_tasks=self.options.tasks)
                    nursery.cancel_scope.cancel()
        except* ConnectionAbortedError:  # S5
            log.debug("%s was unmounted while a request was being read", self.mountpoint)
        finally:
            self.ended.set()

    async def stop(self) -> None:
        """Answer what has been read, and no more (S4)."""
        pyfuse3.terminate()
        self.turn.close()
        with trio.move_on_after(PATIENCE_SECONDS):
            await self.ended.wait()
        self.requests.cancel()
        await self.ended.wait()


async def serve(fs: FileSystem, mountpoint: str, options: FuseOptions, *, ready: Callable[[], None]) -> None:
    """Mount, answer until unmounted or cancelled, unmount. Raises MountError when the kernel says no."""
    logging.getLogger("pyfuse3").addFilter(_unexpected)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with quick_loop() as turn:
            await _serve(fs, _Serving(mountpoint, options, turn), ready)
    finally:
        sys.setswitchinterval(before)


async def _serve(fs: FileSystem, serving: _Serving, ready: Callable[[], None]) -> None:
    mountpoint, options = serving.mountpoint, serving.options
    caches = KernelCaches(fs.ns, options, mountpoint)
    _mount(Operations(fs, options, caches), mountpoint, options, read_only=fs.ns.read_only)
    fs.ns.attach_kernel(caches)
    watching = None
    try:
        serving.mount = kernel.mounted_at(mountpoint)
        if serving.mount is not None:
            watching = guard.start(mountpoint, serving.mount.device)  # S6
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serving.answer)
            nursery.start_soon(caches.run)
            try:
                await _first_answer(mountpoint)
                kernel.tune(
                    mountpoint, read_ahead_bytes=options.read_ahead_bytes, max_background=options.max_background
                )
                ready()
                await serving.ended.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await _leave(fs, serving)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _sole(group) from None
    finally:
        with trio.CancelScope(shield=True):
            await caches.end()
        # Closes the connection first, so it cannot wait for us. Somebody else may have mounted there meanwhile.
        pyfuse3.close(unmount=serving.mount is not None and kernel.mounted_at(mountpoint) == serving.mount)
        if watching is not None:
            guard.stop(watching)


def _mount(operations: Operations, mountpoint: str, options: FuseOptions, *, read_only: bool) -> None:
    fsname = re.sub(r"([\\,])", r"\\\1", options.fsname)
    words = {"default_permissions", f"fsname={fsname}", f"subtype={kernel.SUBTYPE}"}
    words.update(flag for flag in KERNEL_FLAGS if getattr(options, flag))
    if options.allow_other:
        words.add("allow_other")
    if read_only:
        words.add("ro")
    printed: list[str] = []
    try:
        with _stderr_into(printed):
            pyfuse3.init(operations, mountpoint, words)
    except RuntimeError as error:
        reason = "; ".join(_LIBFUSE_NOISE.sub("", line) for line in printed) or str(error)
        raise MountError(f"{mountpoint} cannot be mounted: {_hint(reason)}") from error


def _hint(reason: str) -> str:
    if "/dev/fuse" in reason or "device not found" in reason:
        return f"{reason} (is the kernel module fuse loaded, and may this user open /dev/fuse?)"
    if "allow_other" in reason or "fuse.conf" in reason:
        return f"{reason} (add the line user_allow_other to /etc/fuse.conf, or leave out allow_other)"
    if "fusermount3" in reason or "No such file" in reason:
        return f"{reason} (is the package fuse3 installed?)"
    return reason


@contextmanager
def _stderr_into(lines: list[str]) -> Iterator[None]:
    """Collect what libfuse and its helper print: the only place where they say why mounting failed."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _unexpected(record: logging.LogRecord) -> bool:
    """False for the complaint that the kernel no longer waits for an answer: the request was interrupted, or the mount
    has ended meanwhile. The request itself was carried out.
    """
    return not record.getMessage().endswith(f"fuse_reply_* failed with {os.strerror(errno.ENOENT)}")


async def _first_answer(mountpoint: str) -> None:
    """Wait until the kernel gets answers through the mountpoint (S1)."""
    try:
        await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
    except OSError as error:
        raise MountError(f"{mountpoint} was mounted and does not answer: {error.strerror}") from error


async def _leave(fs: FileSystem, serving: _Serving) -> None:
    """S3 and S4. Errors are logged here; whether everything was stored is said by the caller's last commit."""
    if serving.ended.is_set():
        return
    try:
        with trio.move_on_after(PATIENCE_SECONDS):
            await trio.to_thread.run_sync(kernel.write_back, serving.mountpoint, abandon_on_cancel=True)
        await fs.sync()
    except (OSError, FlakeError) as error:
        log.error("not everything could be stored before unmounting %s: %s", serving.mountpoint, error)
    with trio.move_on_after(PATIENCE_SECONDS):
        if await _unmounted(serving.mountpoint):
            await serving.ended.wait()
    if not serving.ended.is_set():
        await serving.stop()


async def _unmounted(mountpoint: str) -> bool:
    """Unmount; a busy one is only detached from the tree, and that is False: its users may stay for long."""
    try:
        await trio.to_thread.run_sync(kernel.unmount, mountpoint, abandon_on_cancel=True)
        return True
    except MountError as error:
        log.info("%s; detaching it", error)
    try:
        await trio.to_thread.run_sync(lambda: kernel.unmount(mountpoint, lazy=True), abandon_on_cancel=True)
    except MountError as error:
        log.warning("%s", error)
    return False


def _sole(error: BaseException) -> BaseException:
    """The error itself out of the groups that nurseries make; of several, the first that is no mere cancellation."""
    while isinstance(error, BaseExceptionGroup):
        leaves = [leaf for leaf in error.exceptions if not isinstance(leaf, trio.Cancelled)] or error.exceptions
        error = leaves[0]
    return error

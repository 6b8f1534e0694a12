"""What every task and thread of this process is doing: the answer to SIGUSR1, for whoever looks at a mount that hangs.

Concurrency
    Runs as a signal handler in the main thread, between two bytecodes; it only reads.
"""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import CoroutineType, FrameType

import trio

log = logging.getLogger(__name__)


def dump_on_signal() -> None:
    """From now on SIGUSR1 logs all stacks, and a crash of the interpreter prints them to stderr."""
    faulthandler.enable()
    signal.signal(signal.SIGUSR1, _dump)


def stacks() -> str:
    """All trio tasks (as a tree) and all threads with their stacks, innermost call last."""
    return "\n".join([*_tasks(), *_threads()])


def _dump(_signal: int, _frame: FrameType | None) -> None:
    log.warning("stacks of all tasks and threads, asked for by SIGUSR1:\n%s", stacks())


def _tasks() -> Iterator[str]:
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        root = None
    if root is None:
        yield "no trio tasks"
        return
    todo = [(root, 0)]
    while todo:
        task, depth = todo.pop()
        pad = "  " * depth
        yield f"{pad}task {task.name}"
        for entry in traceback.StackSummary.extract(_frames(task.iter_await_frames())):
            yield f"{pad}    {entry.filename}:{entry.lineno} {entry.name}"
        for nursery in task.child_nurseries:
            todo += [(child, depth + 1) for child in nursery.child_tasks]


def _frames(outer: Iterator[tuple[FrameType, int]]) -> Iterator[tuple[FrameType, int]]:
    """The frames of a task, and those of a request's handler, which the mount runs by hand (fuse.quick.watched)."""
    frame = None
    for frame, line in outer:
        yield frame, line
    inner = frame.f_locals.get("handler") if frame is not None and frame.f_code.co_name == "watched" else None
    while isinstance(inner, CoroutineType):
        if inner.cr_frame is not None:
            yield inner.cr_frame, inner.cr_frame.f_lineno
        inner = inner.cr_await


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"thread {names.get(ident, ident)}"
        for entry in traceback.extract_stack(frame):
            yield f"    {entry.filename}:{entry.lineno} {entry.name}"

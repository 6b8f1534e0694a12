"""The one place where errors become errno values for the kernel.

Purpose
    pyfuse3 ends its main loop, and with it the mount, when a handler raises anything but FUSEError. So every handler
    is wrapped by one of these.

Invariants
    B1  What leaves a handler is a result, a FUSEError, or a BaseException that is no Exception (cancellation).
    B2  A bug is answered with EIO and logged with its traceback. Every line names the operation, the inode (and the
        name in it, or the handle that was used) and the cause.
    B3  `silent` handlers (forget) answer nothing: whatever happens is logged only.

Concurrency
    Runs once per request: one try block and two coroutines more (the second hands on the turn at reading requests, see
    fuse.quick), no context manager, nothing formatted unless it failed.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from flakefs.errors import FlakeError, first_leaf
from flakefs.fuse.quick import watched

log = logging.getLogger(__name__)

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")


def answered(
    handler: Callable[Concatenate[S, int, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, int, P], Coroutine[Any, Any, T]]:
    """Wrap a handler whose first argument is an inode, or a handle (`fh`: then the object has an `ino_of`)."""
    operation = getattr(handler, "__name__", "request").strip("_")
    what, *others = list(inspect.signature(handler).parameters)[1:]
    named = what.startswith("parent") and bool(others) and others[0].startswith("name")

    def subject(self: S, target: int, args: tuple[object, ...]) -> str:
        """What a line of the log calls it; for failures only."""
        if what == "fh":
            ino: int = self.ino_of(target)  # type: ignore[attr-defined]
            return f"{operation} of inode {ino or '?'} (handle {target})"
        name = f"{args[0]!r} in " if named and args else ""
        return f"{operation} of {name}inode {target}"

    @functools.wraps(handler)
    async def guarded(self: S, target: int, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await watched(handler(self, target, *args, **kwargs))
        except FUSEError:
            raise
        except FlakeError as error:
            failure = _refusal(subject(self, target, args), error)
        except Exception as error:
            failure = _trouble(subject(self, target, args), error)
        raise failure

    return guarded


def silent(handler: Callable[[S, Any], Awaitable[None]]) -> Callable[[S, Any], Coroutine[Any, Any, None]]:
    """Wrap a handler that must not raise at all (B3)."""
    operation = getattr(handler, "__name__", "request")

    @functools.wraps(handler)
    async def guarded(self: S, argument: Any) -> None:
        try:
            await handler(self, argument)
        except Exception:
            log.exception("%s %r: bug in FlakeFS", operation, argument)

    return guarded


def _refusal(subject: str, error: FlakeError) -> FUSEError:
    if error.log_level > logging.DEBUG:
        log.log(error.log_level, "%s: %s", subject, error)
    return FUSEError(error.errno)


def _trouble(subject: str, error: Exception) -> FUSEError:
    """A group of our own errors is a refusal like a bare one; everything else is a bug."""
    if isinstance(error, ExceptionGroup):
        ours, others = error.split(FlakeError)
        if others is None and ours is not None:
            return _refusal(subject, first_leaf(ours))
    log.error("%s: bug in FlakeFS, answered with EIO", subject, exc_info=error)
    return FUSEError(errno.EIO)

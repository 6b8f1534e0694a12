"""The one place where errors become errno values for the kernel.

Purpose
    pyfuse3 ends its main loop, and with it the mount, when a handler raises anything but FUSEError. So every handler
    is wrapped by one of these.

Invariants
    B1  What leaves a handler is a result, a FUSEError, or a BaseException that is no Exception (cancellation).
    B2  A bug is answered with EIO and logged with its traceback, the operation and the inode or handle.
    B3  `silent` handlers (forget) answer nothing: whatever happens is logged only.

Concurrency
    Runs once per request: one try block and two coroutines more (the second hands on the turn at reading requests, see
    fuse.quick), no context manager, nothing formatted unless it failed.
"""

from __future__ import annotations

import errno
import functools
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
    """Wrap a handler whose first argument is an inode or a handle."""
    operation = getattr(handler, "__name__", "request")

    @functools.wraps(handler)
    async def guarded(self: S, target: int, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await watched(handler(self, target, *args, **kwargs))
        except FUSEError:
            raise
        except FlakeError as error:
            failure = _refusal(operation, target, error)
        except Exception as error:
            failure = _trouble(operation, target, error)
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


def _refusal(operation: str, target: int, error: FlakeError) -> FUSEError:
    if error.log_level > logging.DEBUG:
        log.log(error.log_level, "%s of %d: %s", operation, target, error)
    return FUSEError(error.errno)


def _trouble(operation: str, target: int, error: Exception) -> FUSEError:
    """A group of our own errors is a refusal like a bare one; everything else is a bug."""
    if isinstance(error, ExceptionGroup):
        ours, others = error.split(FlakeError)
        if others is None and ours is not None:
            return _refusal(operation, target, first_leaf(ours))
    log.error("%s of %d: bug in FlakeFS, answered with EIO", operation, target, exc_info=error)
    return FUSEError(errno.EIO)

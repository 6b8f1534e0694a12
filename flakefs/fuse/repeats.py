"""System calls that are refused once, in shared mode: the kernel looks all names up again, and repeats them.

Purpose
    Where the kernel takes a name for another file than it is, an open(), truncate(), link() or rename() would not do
    what the caller meant. With ESTALE the kernel looks up every name of the call again, from the first folder to the
    last name, and asks once more; the program sees nothing of it. A second ESTALE is passed on to the program.

Invariants
    RP1  A call is refused once. What the thread asks next belongs to its repeat, unless the thread is seen to be in
         another call, or it cannot: an open() is of what was looked up last, a moment ago, and there is nothing to open
         or rename by a name that was missing (the new name of a link() is). A name that is missing may be looked up
         twice: the kernel held it for something else. Where calls cannot be seen, a rename or link() must be the one
         that was refused. Callers that cannot be told apart (thread 0: outside the mount's namespace of processes) are
         never refused.
    RP2  The look-ups of a call that is repeated are answered by the store: memory may have heard of a part only.
    RP3  A look-up is never refused: mkdir(2) would fail, and from outside one cannot tell whether the kernel looks up
         once more because it held the name for something else, or repeats the call.

Concurrency
    Trio task only. A thread asks one thing at a time.

Not here
    What is refused (fuse.operations), what the kernel was told (fuse.told).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from cachetools import LRUCache

from flakefs.errors import NotMeant
from flakefs.fuse.kernel import system_call
from flakefs.fuse.told import Place

CALLS_MAX = 1_000
REPEAT_SECONDS = 60.0
"""The kernel repeats a call at once, but may wait for others in the folder while a server is away."""
AT_ONCE_SECONDS = 1.0
"""Between the answer to the last look-up of an open() and that."""

T = TypeVar("T")
Asked = tuple[Place, Place, int] | Place | int
"""A rename (old, new, flags), the new name of a link, or the inode that is to be opened, which may be another one the
second time.
"""


class Call:
    """A call that was refused, until it is over."""

    __slots__ = ("asked", "last", "seen", "since")

    def __init__(self, asked: Asked, seen: bytes) -> None:
        self.asked = asked
        self.seen = seen  # what the thread was seen to call; b"": that may not be seen
        self.last: tuple[Place, int] | None = None  # what it looked up, see looked_up(); 0: missing
        self.since = monotonic()  # the last answer


class Repeats:
    def __init__(self) -> None:
        self._calls: LRUCache[int, Call] = LRUCache(CALLS_MAX)  # by thread

    async def once(self, thread: int, asked: Asked, call: Callable[[bool], Awaitable[T]]) -> T:
        """*call* is told whether it may not raise NotMeant (RP1)."""
        again = self._is_repeat(thread, asked)
        try:
            return await call(again)
        except NotMeant:
            self._calls[thread] = Call(asked, system_call(thread))
            raise

    def _is_repeat(self, thread: int, asked: Asked) -> bool:
        if not thread:
            return True
        call = self._repeated(thread)
        self.over(thread)
        if call is None or _kind(asked) != _kind(call.asked):
            return False
        if call.last is not None and isinstance(asked, int):
            return call.last[1] == asked and monotonic() < call.since + AT_ONCE_SECONDS
        if call.last is not None and not call.last[1]:
            return False
        return isinstance(asked, int) or call.seen != b"" or call.asked == asked

    def _repeated(self, thread: int) -> Call | None:
        call = self._calls.get(thread) if self._calls else None
        if call is not None and monotonic() < call.since + REPEAT_SECONDS:
            seen = system_call(thread)
            if seen == call.seen or not (seen and call.seen):
                return call
        self.over(thread)
        return None

    def over(self, thread: int) -> None:
        """The thread repeats no call any more."""
        if self._calls:
            self._calls.pop(thread, None)

    def is_repeating(self, thread: int, place: Place) -> bool:
        """Does the thread look the name up for a call that is repeated (RP2)?"""
        call = self._repeated(thread)
        if call is not None and call.last is not None and not call.last[1] and call.last[0] != place:
            self.over(thread)
            return False
        return call is not None

    def looked_up(self, thread: int, place: Place, ino: int) -> None:
        """The answer to a look-up; 0: it is missing. Of a rename the old name counts, of a link all but the new one."""
        call = self._calls.get(thread) if self._calls else None
        if call is not None:
            call.since = monotonic()
            asked = call.asked
            if isinstance(asked, int) or (asked[0] == place if len(asked) == 3 else asked != place):
                call.last = place, ino


def _kind(asked: Asked) -> int:
    return 0 if isinstance(asked, int) else len(asked)

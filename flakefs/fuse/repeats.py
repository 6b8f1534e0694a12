"""System calls that are refused once, in shared mode: the kernel looks all names up again, and repeats them.

Purpose
    Where the kernel takes a name for another file than it is, an open(), truncate(), link() or rename() would not do
    what the caller meant. With ESTALE the kernel looks up every name of the call again, from the first folder to the
    last name, and asks once more; the program sees nothing of it. A second ESTALE is passed on to the program.

Invariants
    RP1  A call is refused once. What the thread asks next belongs to its repeat, unless the thread is seen to be in
         another call, or it cannot: an open() is of what was looked up last, a moment ago, and makes a file only if
         that was missing; there is nothing to rename, remove or link by a name that was missing (the new name of a
         link() is). A name that is missing may be looked up twice: the kernel held it for something else. Where calls
         cannot be seen, a rename, removal or link() must be the one that was refused. Callers that cannot be told apart
         (thread 0: outside the mount's namespace of processes) are never refused.
    RP2  The look-ups of a call that is repeated are answered by the store: memory may have heard of a part only.
    RP3  A look-up is never refused: mkdir(2) would fail, and from outside one cannot tell whether the kernel looks up
         once more because it held the name for something else, or repeats the call.
    RP4  What the repeat's own look-ups of the last names of a rename or removal were answered, the kernel believes when
         it asks: it holds the folders' locks from there on.

Concurrency
    Trio task only. A thread asks one thing at a time.

Not here
    What is refused (fuse.naming, fuse.operations), what the kernel was told (fuse.told).
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import NamedTuple, TypeVar

from cachetools import LRUCache

from flakefs.errors import NotMeant
from flakefs.fuse.kernel import system_call
from flakefs.fuse.told import Place

CALLS_MAX = 1_000
REPEAT_SECONDS = 60.0
"""The kernel repeats a call at once, but may wait for others in the folder while a server is away."""
AT_ONCE_SECONDS = 1.0
"""Between the answer to the last look-up of an open() and that."""
NOWHERE: Place = (0, b"")

T = TypeVar("T")
Found = Mapping[Place, int]
"""What a call that is repeated has looked up; 0: missing."""


class Kind(enum.Enum):
    OPEN = enum.auto()  # of `ino`, or of a file that is to be made at `place`
    TRUNCATE = enum.auto()  # of `ino`
    LINK = enum.auto()  # at `place`
    RENAME = enum.auto()  # of `place` to `new`
    REMOVE = enum.auto()  # of `place`


class Asked(NamedTuple):
    kind: Kind
    place: Place = NOWHERE
    ino: int = 0
    new: Place = NOWHERE
    flags: int = 0


class Call:
    """A call that was refused, until it is over."""

    __slots__ = ("asked", "found", "last", "seen", "since")

    def __init__(self, asked: Asked, seen: bytes) -> None:
        self.asked = asked
        self.seen = seen  # what the thread was seen to call; b"": that may not be seen
        self.found: dict[Place, int] = {}
        self.last: tuple[Place, int] | None = None  # what it looked up, see looked_up(); 0: missing
        self.since = monotonic()  # the last answer


class Repeats:
    def __init__(self) -> None:
        self._calls: LRUCache[int, Call] = LRUCache(CALLS_MAX)  # by thread

    async def once(self, thread: int, asked: Asked, call: Callable[[Found | None], Awaitable[T]]) -> T:
        """*call* gets None if it may raise NotMeant; else it is the repeat, which has found so much (RP1)."""
        found = self._repeat(thread, asked)
        try:
            return await call(found)
        except NotMeant:
            self._calls[thread] = Call(asked, system_call(thread))
            raise

    def _repeat(self, thread: int, asked: Asked) -> Found | None:
        """What the repeat has found; None: it is none."""
        if not thread:
            return {}
        call = self._repeated(thread)
        self.over(thread)
        return call.found if call is not None and _is_repeat(call, asked) else None

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
        """The answer to a look-up; 0: it is missing. Of a rename or removal the old name counts, of a link all but the
        new one.
        """
        call = self._calls.get(thread) if self._calls else None
        if call is not None:
            call.since = monotonic()
            call.found[place] = ino
            if call.asked.kind in NAMED and (call.asked.place == place) == (call.asked.kind is Kind.LINK):
                return
            call.last = place, ino


NAMED = (Kind.LINK, Kind.RENAME, Kind.REMOVE)


def _is_repeat(call: Call, asked: Asked) -> bool:
    if asked.kind is not call.asked.kind:
        return False
    last = call.last
    if last is not None and asked.kind not in NAMED:
        if monotonic() >= call.since + AT_ONCE_SECONDS:
            return False
        return last[1] == asked.ino if asked.ino else last == (asked.place, 0)
    if last is not None and not last[1]:
        return False
    return asked.kind not in NAMED or call.seen != b"" or call.asked == asked

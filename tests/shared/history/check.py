"""Is a recorded history one that the promises allow?

Purpose
    Two questions, each answered by a search for one order of all events (as Wing and Gong do it):
    `explain_names` for one folder: every change that was answered with success happened at one moment between call and
    answer; what was only seen (a look-up, or a change that was refused) was true at some moment that may lie a little
    before the call, since names reach other mounts by a stream, but never before what the same mount had done to that
    name itself.
    `explain_register` for one file: whoever opens it after somebody else's close sees what was written or later. Before
    its close a write may show on its own mount, and another one's may still come in between: such reads say nothing.

Words
    An event has `began` and `ended` (any clock, the same for all). `ended` of a change without an answer (its mount was
    killed or fenced) is infinite, and it may also never have happened (`sure` is False).

Not here
    Making histories (tests.shared.history.play).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import Generic, NamedTuple, Protocol, TypeVar

FOLDER = -1
"""In place of the number of a folder's inode."""
State = frozenset[tuple[str, int]]
"""(name, inode)"""


class Change(NamedTuple):
    """Of names: create, mkdir, unlink, rmdir, rename or link. *ino* of what create and link name."""

    began: float
    ended: float
    mount: int
    call: str
    name: str
    other: str = ""
    ino: int = 0
    sure: bool = True


class Seen(NamedTuple):
    """*name* led to *ino*: a number, FOLDER, None (to nothing), "any" (to something), "file" (to no folder)."""

    began: float
    ended: float
    mount: int
    name: str
    ino: int | str | None


class Whole(NamedTuple):
    """The folder was exactly this; nothing else ran."""

    began: float
    ended: float
    state: State


class Write(NamedTuple):
    """From open to the end of close."""

    began: float
    ended: float
    mount: int
    value: int
    sure: bool = True


class Read(NamedTuple):
    began: float
    ended: float
    mount: int
    value: int


class Torn(NamedTuple):
    """A read that found parts of several values: calls of the kernel are smaller than a file, and no read is atomic."""

    began: float
    ended: float
    mount: int
    parts: frozenset[int]


def apply(state: State, change: Change) -> State | None:
    """The folder after *change*; None: it would have been refused."""
    names = dict(state)
    call, name, other = change.call, change.name, change.other
    there = names.get(name)
    if call in ("create", "mkdir", "link"):
        if there is not None or (call == "link" and change.ino not in names.values()):
            return None
        names[name] = FOLDER if call == "mkdir" else change.ino
    elif there is None or (call == "unlink" and there == FOLDER) or (call == "rmdir" and there != FOLDER):
        return None
    elif call == "rename":
        target = names.get(other)
        if name == other or (target == there and there != FOLDER):
            return state
        if target is not None and (target == FOLDER) != (there == FOLDER):
            return None
        names[other] = names.pop(name)
    else:
        del names[name]
    return frozenset(names.items())


def fits(state: State, seen: Seen | Whole) -> bool:
    if isinstance(seen, Whole):
        return state == seen.state
    there = dict(state).get(seen.name)
    if seen.ino == "any":
        return there is not None
    if seen.ino == "file":
        return there is not None and there != FOLDER
    return there == seen.ino


class Timed(Protocol):
    """What a search puts in order."""

    @property
    def began(self) -> float: ...

    @property
    def ended(self) -> float: ...

    @property
    def sure(self) -> bool: ...


S = TypeVar("S", bound=Hashable)  # a state
C = TypeVar("C", bound=Timed)  # a change


@dataclass
class Search(Generic[S, C]):
    """One order of changes such that each of the other events holds at a moment of its time."""

    changes: Sequence[C]
    events: Sequence[tuple[float, float, Callable[[S], bool]]]
    """(from, to, does it hold in this state?)"""
    step: Callable[[S, C], S | None]
    """The state after; None when the change is not possible."""
    limit: int = 2_000_000
    needs: Sequence[int] = ()
    """For each event the changes, as bits, that it must not be earlier than; empty: none."""
    steps: int = 0

    def possible(self, start: S) -> bool:
        """Raises RuntimeError when the limit is reached without an answer."""
        everything = (1 << len(self.changes)) - 1
        sure = sum(1 << i for i, change in enumerate(self.changes) if change.sure)
        all_seen = (1 << len(self.events)) - 1
        stack = [(0, start, 0)]
        known: set[tuple[int, S, int]] = set()
        while stack:
            done, state, held = stack.pop()
            held = self._look(done, state, held)
            if (done, state, held) in known:
                continue
            known.add((done, state, held))
            if done & sure == sure and held == all_seen:
                return True
            self.steps += 1
            if self.steps > self.limit:
                raise RuntimeError("the search for an order takes too long")
            for index, change in self._next(everything & ~done):
                if all(held >> i & 1 or to >= change.began for i, (_, to, _) in enumerate(self.events)):
                    after = self.step(state, change)
                    if after is not None:
                        stack.append((done | 1 << index, after, held))
        return False

    def _look(self, done: int, state: S, held: int) -> int:
        """Events that hold now; one that can hold now is best done now, for it changes nothing."""
        changes = min((c.ended for i, c in enumerate(self.changes) if not done >> i & 1), default=math.inf)
        while True:
            waiting = min((e[1] for i, e in enumerate(self.events) if not held >> i & 1), default=math.inf)
            before = held
            for index, (since, _, holds) in enumerate(self.events):
                if self.needs and self.needs[index] & ~done:
                    continue
                if not held >> index & 1 and min(changes, waiting) >= since and holds(state):
                    held |= 1 << index
            if held == before:
                return held

    def _next(self, left: int) -> Iterator[tuple[int, C]]:
        """Changes that may come next: nothing that is left ended before they began."""
        first_end = min((c.ended for i, c in enumerate(self.changes) if left >> i & 1), default=0.0)
        for index, change in enumerate(self.changes):
            if left >> index & 1 and change.began <= first_end:
                yield index, change


def explain_names(
    events: Sequence[Change | Seen | Whole], stale: Callable[[Seen], float], limit: int = 2_000_000
) -> bool:
    """*stale*: how old what an event saw may be, in the unit of the times."""
    changes = [event for event in events if isinstance(event, Change)]
    looks: list[tuple[float, float, Callable[[State], bool]]] = []
    needs = []
    for event in events:
        if isinstance(event, Whole):
            looks.append((event.began, event.ended, partial(fits, seen=event)))
            needs.append(0)
        elif isinstance(event, Seen):
            # A mount sees its own changes at once, and those of others soon: also when they came between its own change
            # and the answer to that.
            needs.append(
                sum(
                    1 << index
                    for index, change in enumerate(changes)
                    if change.sure
                    and change.mount == event.mount
                    and change.ended <= event.began
                    and event.name in change[4:6]
                )
            )
            looks.append((event.began - stale(event), event.ended, partial(fits, seen=event)))
    return Search(changes, looks, apply, limit, needs).possible(frozenset())


def explain_register(start: int, events: Sequence[Write | Read], limit: int = 2_000_000) -> bool:
    writes = [event for event in events if isinstance(event, Write)]
    early = {(write.mount, write.value): write for write in writes}
    looks: list[tuple[float, float, Callable[[int], bool]]] = []
    for event in events:
        if isinstance(event, Read):
            write = early.get((event.mount, event.value))
            if write is None or not write.began <= event.ended <= write.ended:
                looks.append((event.began, event.ended, partial(eq, event.value)))
    return Search(writes, looks, lambda _, write: write.value, limit).possible(start)


def explain_torn(torn: Torn, events: Sequence[Write | Read]) -> bool:
    """What was there before, and writes that ran while it read; never two that had ended both."""
    running = {
        event.value
        for event in events
        if isinstance(event, Write) and event.began <= torn.ended and torn.began <= event.ended
    }
    return len(torn.parts - running) <= 1

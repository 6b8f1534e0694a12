"""What was recorded of one history, and whether it is one that the promises allow.

Purpose
    `Record` holds the events of the names and of each register, and the troubles; `check` asks the checker
    (tests.shared.history.check) with what a trouble excuses: numbers of files that nobody was told, late news, reads on
    a mount that was declared dead.

Concurrency
    Threads append to its lists, which is atomic. It is checked when they have ended.

Not here
    Making histories (tests.shared.history.play).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from tests.shared.history.check import (
    FOLDER,
    Change,
    Read,
    Seen,
    Torn,
    Whole,
    Write,
    explain_names,
    explain_register,
    explain_torn,
)

REGISTERS = {"small": 64, "large": 150_000}
"""Files and their sizes: one whose content is in its document, one of chunks."""
STALE_SECONDS = 2.0
"""How late news may be. On an idle machine it is milliseconds; this one is not idle."""
SERVERS = -1
"""In place of the number of a mount: trouble that excuses no error, but lets news come late."""


class Trouble(NamedTuple):
    mount: int
    began: float
    ended: float
    fenced: bool = False
    """The mount was declared dead."""


class Unexplained(AssertionError):
    """A history that the promises do not allow."""


class Record:
    stale_seconds = STALE_SECONDS

    def __init__(self, name: str) -> None:
        self.name = name
        self.names: list[Change | Seen | Whole] = []
        self.registers: dict[str, list[Write | Read]] = {name: [] for name in REGISTERS}
        self.torn: dict[str, list[Torn]] = {name: [] for name in REGISTERS}
        self.troubles: list[Trouble] = []
        self.told_of_none = False
        """A rename had to be taken for one that did nothing (_readings)."""

    def check(self) -> None:
        self.told_of_none = not any(explain_names(names, self._stale) for names in self._numbered())
        if self.told_of_none and not any(explain_names(names, self._stale) for names in self._readings()):
            raise Unexplained(f"{self.name}: no order of changes explains the names\n{self.text()}")
        for name, events in self.registers.items():
            for torn in self.torn[name]:
                if not explain_torn(torn, events):
                    raise Unexplained(f"{self.name}: {torn} of {name} is a mixture that no time had\n{self.text()}")
            if not explain_register(0, [event for event in events if not self._by_a_dead_mount(event)]):
                raise Unexplained(f"{self.name}: no order of writes explains what was read of {name}\n{self.text()}")

    def _by_a_dead_mount(self, event: Write | Read) -> bool:
        """One that was declared dead reads what is stored (SM4); who is alone again stores after it has answered."""
        return isinstance(event, Read) and any(
            trouble.fenced and trouble.mount == event.mount and trouble.began <= event.ended <= trouble.ended
            for trouble in self.troubles
        )

    def _numbered(self) -> Iterator[list[Change | Seen | Whole]]:
        """The events, with numbers for files that were made without an answer: any that nobody else has made."""
        seen = {event.ino for event in self.names if isinstance(event, Seen) and isinstance(event.ino, int)}
        seen |= {ino for event in self.names if isinstance(event, Whole) for _, ino in event.state}
        made = {event.ino for event in self.names if isinstance(event, Change) and event.call == "create"}
        strange = sorted(seen - made - {FOLDER})
        unknown = [
            event for event in self.names if isinstance(event, Change) and event.call == "create" and not event.ino
        ]
        for numbers in itertools.permutations([*strange, *range(-2, -2 - len(unknown), -1)], len(unknown)):
            given = dict(zip(map(id, unknown), numbers, strict=True))
            yield [
                event._replace(ino=given[id(event)]) if isinstance(event, Change) and id(event) in given else event
                for event in self.names
            ]

    def _readings(self) -> Iterator[list[Change | Seen | Whole]]:
        """Events in which a rename was none, or the same one by several programs of a mount. For when the kernel
        believes that both names lead to the same inode, the one because it has not heard yet that somebody else has
        just made the same rename, then it does nothing and calls that success. The mount prevents that where it can.
        """
        for names in self._numbered():
            numbers = {ino for event in names if isinstance(event, Whole) for _, ino in event.state} | {FOLDER}
            numbers |= {event.ino for event in names if isinstance(event, Change) and event.ino}
            renames = [event for event in names if isinstance(event, Change) and event.call == "rename"]
            alike = {rename[2:6]: [other for other in renames if other[2:6] == rename[2:6]] for rename in renames}
            several = [group for group in alike.values() if len(group) > 1]
            for group, ino in itertools.product([*([rename] for rename in renames), *several], sorted(numbers)):
                seen = [Seen(*rename[:3], name, ino) for rename in group for name in rename[4:6]]
                yield [*(event for event in names if event not in group), *seen]

    def text(self) -> str:
        zero = min((event.began for event in self._all()), default=0.0)
        lines = [f"{(t.began - zero):9.4f} {(t.ended - zero):9.4f} {t}" for t in self.troubles]
        for name, torn in self.torn.items():
            lines += [f"{t.began - zero:9.4f} {t.ended - zero:9.4f} Torn {name} {t[2:]}" for t in torn]
        for event in sorted(self._all(), key=lambda event: event.began):
            where = next((f" {name}" for name, events in self.registers.items() if event in events), "")
            lines.append(
                f"{event.began - zero:9.4f} {event.ended - zero:9.4f} {type(event).__name__}{where} {event[2:]}"
            )
        return "\n".join(lines)

    def _all(self) -> list[Change | Seen | Whole | Write | Read]:
        return [*self.names, *(event for events in self.registers.values() for event in events)]

    def _stale(self, seen: Seen) -> float:
        """A mount that was stopped, or whose servers were, may have to catch up."""
        stale = self.stale_seconds
        for trouble in self.troubles:
            mine = trouble.mount in (seen.mount, SERVERS)
            if mine and trouble.began <= seen.ended <= trouble.ended + self.stale_seconds:
                stale = max(stale, self.stale_seconds + trouble.ended - trouble.began)
        return stale

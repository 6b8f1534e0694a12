"""Replication codes: which nodes may hold the copies of a volume together.

Purpose
    A code "xyz" asks for x copies in x other data centers, y copies on y other racks of the main copy's data center,
    and z copies on other nodes of the main copy's rack; 1 + x + y + z copies in all. The empty name of a data center or
    rack is a name like any other.

Invariants
    PC1  What choose() returns satisfies the code; it returns something for some main place exactly when satisfiable()
         says so, and why_not() is silent then.
    PC2  Which of the places is the main one does not matter to satisfies(): any of them may be.
    PC3  Copies beyond the code never break it.

Concurrency
    Pure.

Not here
    Which nodes may take chunks now (engine.volumes), how full they are (*weight*, given by the caller).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from flakefs.errors import UsageError

CODE_DEFAULT = "000"
COPIES_MAX = 7
"""1 + the sum of the digits."""


class Place(NamedTuple):
    """Where a node stands."""

    node: int
    dc: str
    rack: str
    server: str
    """Address of its MongoDB server; nodes of one server are lost together."""


def check_code(text: str) -> str:
    """*text*, when it is a replication code; raises UsageError."""
    if len(text) != 3 or not text.isascii() or not text.isdigit() or sum(map(int, text)) >= COPIES_MAX:
        raise UsageError(
            f"{text!r} is no replication code: it has three digits, the further copies in other data centers, on other "
            f"racks and on other nodes of the rack, together at most {COPIES_MAX - 1} (001: two copies on two nodes)"
        )
    return text


def copies(code: str) -> int:
    """How many copies a chunk of this code has."""
    return 1 + sum(map(int, code))


def satisfies(code: str, places: Iterable[Place]) -> bool:
    """Do copies at *places* keep the code, whichever of them is the main one (PC2)?"""
    return satisfiable(code, places)


def satisfiable(code: str, places: Iterable[Place]) -> bool:
    """Can copies at some of *places* keep the code?"""
    there = _distinct(places)
    return any(_lack(code, main, there) == (0, 0, 0) for main in there)


def choose(code: str, main: Place, others: Iterable[Place], weight: Callable[[Place], float]) -> list[Place] | None:
    """*main* and the places for its further copies; None when *others* do not suffice.

    The lightest come first; a place on a server that holds no copy yet goes before one on a server that does.
    """
    chosen = choose_most(code, main, others, weight)
    return chosen if len(chosen) == copies(code) else None


def choose_most(code: str, main: Place, others: Iterable[Place], weight: Callable[[Place], float]) -> list[Place]:
    """The same, with as many copies as there are places for."""
    chosen = [main]
    servers = {main.server}
    far, near, here = map(int, code)
    left = [place for place in _distinct(others) if place.node != main.node]
    steps: tuple[tuple[int, Callable[[Place], bool], Callable[[Place], object]], ...] = (
        # those with the fewest places to choose from first: they could not avoid a server later
        (here, lambda place: (place.dc, place.rack) == (main.dc, main.rack), lambda place: place.node),
        (near, lambda place: place.dc == main.dc and place.rack != main.rack, lambda place: place.rack),
        (far, lambda place: place.dc != main.dc, lambda place: place.dc),
    )
    for count, fits, group_of in steps:
        candidates = [place for place in left if fits(place)]
        for _ in range(min(count, len(candidates))):
            if not candidates:
                break
            best = min(candidates, key=lambda place: (place.server in servers, weight(place), place.node))
            chosen.append(best)
            servers.add(best.server)
            candidates = [place for place in candidates if group_of(place) != group_of(best)]
    return chosen


def why_not(code: str, places: Iterable[Place]) -> str | None:
    """What *places* lack for the code, in one sentence; None when they suffice."""
    there = _distinct(places)
    if not there:
        return f"replication {code} needs {_counted(copies(code), 'node')}, and there is none"
    far, near, here = min((_lack(code, main, there) for main in there), key=lambda lack: (sum(lack), lack))
    if (far, near, here) == (0, 0, 0):
        return None
    missing = []
    if far:
        missing.append(_counted(far, "further data center"))
    if near:
        missing.append(f"{_counted(near, 'further rack')} in one data center")
    if here:
        missing.append(f"{_counted(here, 'further node')} in one rack")
    have = "1 node there is" if len(there) == 1 else f"{len(there)} nodes there are"
    return f"replication {code} cannot be kept by the {have}: missing {'is' if far + near + here == 1 else 'are'} " + (
        " and ".join(missing)
    )


def _lack(code: str, main: Place, there: Sequence[Place]) -> tuple[int, int, int]:
    """How many data centers, racks and nodes are missing for copies around *main*."""
    far, near, here = map(int, code)
    centers = {place.dc for place in there} - {main.dc}
    racks = {place.rack for place in there if place.dc == main.dc} - {main.rack}
    nodes = [place for place in there if (place.dc, place.rack) == (main.dc, main.rack) and place.node != main.node]
    return max(0, far - len(centers)), max(0, near - len(racks)), max(0, here - len(nodes))


def _distinct(places: Iterable[Place]) -> list[Place]:
    """Every node once."""
    return list({place.node: place for place in places}.values())


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

"""What every kind of planted damage is made of.

Purpose
    A module of plants has a list, and `plant = planter(list)` decorates the functions that do its damage.

Not here
    The plants (tests.tools.plants has them all), the file system that they damage (tests/tools/conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from flakefs.format import documents as d

World = Any
"""tests/tools/conftest.py"""
Damage = Callable[[World], Any]


class Plant(NamedTuple):
    """Do *damage* to a World: fsck says exactly *kinds* (notes aside). *deep*: only when it reads content."""

    name: str
    damage: Damage
    kinds: set[str]
    deep: bool = False


class Planter(Protocol):
    """A decorator; see Plant for what it is given."""

    def __call__(self, *kinds: str, deep: bool = False) -> Callable[[Damage], Damage]: ...


def planter(plants: list[Plant]) -> Planter:
    """Of what is added to *plants*."""

    def plant(*kinds: str, deep: bool = False) -> Callable[[Damage], Damage]:
        def note(damage: Damage) -> Damage:
            plants.append(Plant(damage.__name__, damage, set(kinds), deep))
            return damage

        return note

    return plant


def first_extent(world: World, ino: int, number: int = 0, **fields: Any) -> None:
    world.set(d.INODES, ino, **{f"e.{number}.{name}": value for name, value in fields.items()})

"""Which volume takes the next chunks.

Purpose
    A `Balancer` chooses one of the candidates: volumes whose nodes answer and have room. Strict keeps nodes
    equally full; Random does not look. Others are entry points in the group "flakefs.balancers": a class without
    arguments that has `choose`.

Invariants
    BL1  Strict: nodes of equal capacity, all taking chunks from the start, end within 5 % of each other in bytes and in
         chunks; nodes of unequal capacity end equally full.
    BL2  Random: every candidate is equally likely.

Concurrency
    choose() runs on the trio thread, once for every run of at most about 1 MiB: it must not wait.

Not here
    Who is a candidate, and what is in flight (engine.volumes).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import NamedTuple, Protocol

from flakefs.errors import ConfigError

GROUP = "flakefs.balancers"


class Candidate(NamedTuple):
    """A volume that could take chunks. Figures are those of its nodes on average, each against its own capacity, and
    what is in flight included."""

    volume: int
    chunks: int
    bytes: int
    capacity: int
    """Bytes a node may hold: of the smallest one."""


def candidate(volume: int, nodes: Sequence[tuple[int, int, int]]) -> Candidate:
    """From (chunks, bytes, capacity) of each node."""
    capacity = max(1, min(capacity for _, _, capacity in nodes))
    if len(nodes) == 1:
        return Candidate(volume, nodes[0][0], nodes[0][1], nodes[0][2])
    scale = [capacity / max(1, own) / len(nodes) for _, _, own in nodes]
    chunks = sum(chunks * factor for (chunks, _, _), factor in zip(nodes, scale, strict=True))
    stored = sum(stored * factor for (_, stored, _), factor in zip(nodes, scale, strict=True))
    return Candidate(volume, round(chunks), round(stored), capacity)


class Balancer(Protocol):
    def choose(self, candidates: Sequence[Candidate], stored_bytes: int) -> Candidate:
        """One of *candidates* (at least one) for a chunk of about *stored_bytes*."""


class Strict:
    """The node where this chunk weighs least.

    A node has a share of all bytes and a share of all chunks, each against its share of the capacity. A chunk of
    mean size counts both alike; a large one looks more at the bytes, a small one at the count. That is the steepest
    descent of the sum of squared shares, so both even out, whatever sizes arrive. For a volume of several nodes that is
    the mean of theirs; the fullest node alone would not do: in a ring of pairs each pair has one of the two fullest.
    """

    def choose(self, candidates: Sequence[Candidate], stored_bytes: int) -> Candidate:
        if len(candidates) == 1:
            return candidates[0]
        all_bytes = sum(c.bytes for c in candidates) + 1
        all_chunks = sum(c.chunks for c in candidates) + 1
        relative_size = stored_bytes * all_chunks / all_bytes
        by_bytes = relative_size / all_bytes
        by_chunks = 1 / all_chunks
        return min(candidates, key=lambda c: (c.bytes * by_bytes + c.chunks * by_chunks) / max(c.capacity, 1))


class Random:
    """Any of them."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def choose(self, candidates: Sequence[Candidate], stored_bytes: int) -> Candidate:
        return self._random.choice(candidates)


BUILT_IN: dict[str, type[Balancer]] = {"strict": Strict, "random": Random}


def load_balancer(name: str) -> Balancer:
    """The balancer of that name; raises ConfigError when there is none or it cannot be loaded."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if name not in plugins:
        names = ", ".join(sorted({*plugins, *BUILT_IN}))
        raise ConfigError(f"there is no balancer {name!r}; installed are: {names} (key engine.balance)")
    try:
        balancer: Balancer = plugins[name].load()()
        balancer.choose([Candidate(1, 0, 0, 1)], 1)
    except Exception as error:
        raise ConfigError(f"the balancer {name!r} ({plugins[name].value}) cannot be used: {error!r}") from error
    return balancer

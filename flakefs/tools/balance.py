"""Moves volumes until all nodes are about equally full.

Purpose
    `balance()` makes the move that evens the nodes out most, again and again.

Invariants
    BA1  A move is made only when it lowers the sum of the squared distances from the mean; so it comes to an end, and
         no volume goes to and fro.
    BA2  It ends when every active node is within the threshold of the mean, or when no move helps.
    BA3  Writable volumes are moved, and sealed for it, only when no sealed one helps.

Concurrency
    Blocks. Safe beside mounts and other tools: volumes that one of those works on are left out.

Not here
    Which volume new chunks go to (engine.balance).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from flakefs.errors import NoSpace, Unavailable
from flakefs.tools.fleet import Fleet
from flakefs.tools.lease import VolumeGone, VolumeTaken
from flakefs.tools.moving import Moved, Mover, PlacesChanged, Watch
from flakefs.tools.rate import Rate

THRESHOLD = 0.10
"""Of the mean."""


@dataclass(slots=True)
class Balanced:
    """What balance() did and how it ended."""

    moved: Moved
    even: bool
    """All active nodes are within the threshold."""
    why: str
    """How it ended, in one sentence."""
    fill: dict[int, float] = field(default_factory=dict)
    """Node -> how full it is, from 0 to 1."""
    mean: float = 0.0


class Move(NamedTuple):
    gain: float
    volume: int
    source: int
    target: int


def balance(
    fleet: Fleet, threshold: float = THRESHOLD, watch: Watch | None = None, rate: Rate | None = None
) -> Balanced:
    """Even the active nodes out."""
    mover = Mover(fleet, watch, rate)
    taken: set[int] = set()
    limit = 4 * len(fleet.volumes) + 100  # who writes meanwhile can make new distances
    while True:
        fleet.refresh()
        ended = _end(fleet, threshold)
        if ended is None and len(mover.done.volumes) >= limit:
            ended = False, f"so much is written meanwhile that {limit} moves did not suffice; run it again later"
        move = None
        if ended is None:
            move = best_move(fleet, taken, "sealed") or best_move(fleet, taken, "writable")
        if move is None:
            even, why = ended or (False, _no_move(taken))
            break
        try:
            mover.move(move.volume, move.source, move.target)
        except (VolumeTaken, VolumeGone, PlacesChanged):
            taken.add(move.volume)
        except NoSpace as error:
            fleet.nodes[move.target].failure = error
        except Unavailable as error:
            if not fleet.blame(error, {move.target, *fleet.volumes[move.volume].nodes} & fleet.nodes.keys()):
                raise
    mover.finish()
    mover.drop_leftovers(fleet.records)
    fill = {number: fleet.fill(number) for number in fleet.active()}
    return Balanced(mover.done, even, why, fill, mean_fill(fleet))


def mean_fill(fleet: Fleet) -> float:
    nodes = fleet.active()
    return sum(fleet.stored[number] for number in nodes) / max(1, sum(fleet.capacity(number) for number in nodes))


def best_move(fleet: Fleet, taken: Container[int], state: str) -> Move | None:
    """The move of a volume in that state that evens out most (BA1)."""
    nodes, mean = fleet.active(), mean_fill(fleet)
    over = {number: fleet.stored[number] - mean * fleet.capacity(number) for number in nodes}
    best: Move | None = None
    for volume in fleet.volumes.values():
        if volume.state != state or volume.id in taken or not volume.bytes:
            continue
        for source in volume.nodes:
            if over.get(source, 0.0) <= 0:
                continue
            for target in fleet.targets(volume, source):
                gain = _gain(over[source], fleet.capacity(source), -volume.bytes)
                gain += _gain(over[target], fleet.capacity(target), volume.bytes)
                if gain > 0 and (best is None or gain > best.gain):
                    best = Move(gain, volume.id, source, target)
    return best


def _gain(over: float, capacity: int, change: int) -> float:
    """How much nearer to the mean a node comes by so many bytes more."""
    return (over**2 - (over + change) ** 2) / max(1, capacity)


def _end(fleet: Fleet, threshold: float) -> tuple[bool, str] | None:
    """(even, why) when there is nothing more to do (BA2)."""
    nodes, mean = fleet.active(), mean_fill(fleet)
    if len(nodes) < 2:
        return True, "there is only one active node that answers" if nodes else "no active node answers"
    far = [number for number in nodes if abs(fleet.fill(number) - mean) > threshold * mean]
    return None if far else (True, f"all {len(nodes)} active nodes are within {threshold:.0%} of the mean")


def _no_move(taken: set[int]) -> str:
    if taken:
        return f"no move of another volume helps, and other tools work on {len(taken)} of them; run it again later"
    return "no move helps: the volumes that are left are too large, or the replication codes keep them where they are"

"""How much the nodes can still take.

Purpose
    What df shows: raw bytes on all nodes together, of which a chunk takes one part for each copy.

Invariants
    RO1  Nothing is promised that writing would refuse: the reserve of a disk is not free, nor what is beyond a node's
         capacity, nor what lies on nodes that take no new chunks.
    RO2  A disk counts once, however many nodes are on it.
    RO3  Copies lie on different disks as long as there are enough of these: what one large disk has beyond all others
         together is of no use.

Concurrency
    Trio thread; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flakefs.engine.nodes import Disk, Node
from flakefs.engine.options import EngineOptions


def room(nodes: Iterable[Node], options: EngineOptions, copies: int) -> tuple[int, int]:
    """(total, free) raw bytes, as the nodes said when last asked, for chunks of so many copies."""
    total = 0
    frees = []
    for disk, group in _by_disk(nodes):
        written = sum(node.written_since_look for node in group)
        free = max(0, disk.free - options.reserve_bytes - written)
        active = [node for node in group if node.record.state == "active"]
        limits = [node.record.capacity for node in group if node.record.capacity is not None]
        total += min(disk.total, sum(limits)) if len(limits) == len(group) else disk.total
        if all(node.record.capacity is not None for node in active):
            free = min(free, sum(max(0, (node.record.capacity or 0) - node.bytes) for node in active))
        frees.append(free)
    return total, usable(frees, copies)


def usable(frees: Sequence[int], copies: int) -> int:
    """Of the free bytes of different disks, what chunks of so many copies can take, all copies together (RO3)."""
    if len(frees) < copies:
        return sum(frees)
    left = sorted(frees)
    more = copies
    while more > 1 and left[-1] * more > sum(left):  # the largest holds one copy of everything
        left.pop()
        more -= 1
    return copies * (sum(left) // more)


def _by_disk(nodes: Iterable[Node]) -> list[tuple[Disk, list[Node]]]:
    """RO2."""
    found: list[tuple[Disk, list[Node]]] = []
    for node in nodes:
        if node.disk is None:
            continue
        group = next((group for disk, group in found if node.disk.same_as(disk)), None)
        if group is None:
            found.append((node.disk, [node]))
        else:
            group.append(node)
    return found

"""Which volume with a given main node takes the next chunks.

Purpose
    What making volumes (engine.growing) and using them (engine.placement) have to see alike.

Invariants
    OF1  A volume is offered only when it is writable, of the right shelf, and all its nodes take chunks. It needs no
         change of its document when one of them does not: a chunk is named only when it lies on all of them, so nothing
         is wrong with the volume, and it is offered again when the node is back.
    OF2  Unless fewer copies are allowed, its nodes keep its code.

Concurrency
    Trio thread; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Collection

from flakefs.engine.nodes import Node
from flakefs.engine.topology import Shelf
from flakefs.engine.volumes import Volume, VolumeMap

VOLUMES_OF_A_NODE = 20
"""About so many volumes hold what a node holds: the steps in which it can be balanced."""


def is_main_here(node: Node, map: VolumeMap) -> bool:
    """May this process write to volumes whose main node is *node*?"""
    return not map.options.write_dc or node.record.dc == map.options.write_dc


def is_full(volume: Volume, map: VolumeMap) -> bool:
    """Should another volume take over? Volumes stay a small part of what a node holds, so that moving one is."""
    options = map.options
    fullest = max((node.bytes for node in volume.nodes), default=0)
    limit = min(max(fullest // VOLUMES_OF_A_NODE, options.volume_min_bytes), options.volume_max_bytes)
    return volume.bytes >= limit


def current_of(
    map: VolumeMap, shelf: Shelf, node: Node, takers: Collection[Node], *, fewer: bool, excluded: Collection[int] = ()
) -> Volume | None:
    """The volume with this main node that takes the next chunks (OF1): the oldest that is not full, else the newest.

    *takers*: the nodes that take chunks. *fewer*: one with fewer copies than wanted does, too (OF2).
    """
    found: Volume | None = None
    for volume in map.shelf(shelf):
        if volume.nodes[0] is not node or volume.record.id in excluded or not (volume.whole or fewer):
            continue
        if not all(other in takers for other in volume.nodes):
            continue
        if found is None or _rank(volume, map) < _rank(found, map):
            found = volume
    return found


def _rank(volume: Volume, map: VolumeMap) -> tuple[bool, bool, int]:
    """The least is used first."""
    full = is_full(volume, map)
    return full, not volume.whole, -volume.record.id if full else volume.record.id

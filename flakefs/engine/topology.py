"""Which nodes take chunks now, and where they stand.

Purpose
    `standing` says whether a node takes new chunks, and if not, why and for how long; `place_of` puts a node's document
    into the words of the placement rules.

Invariants
    TO1  A node takes new chunks exactly when its document says active, it answered when last asked, and it has room on
         its disk and below its capacity.

Concurrency
    Trio thread; nothing here waits.

Not here
    The rules of placement (format.placement), which volume of the takers is chosen (engine.placement).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import NamedTuple

from flakefs.engine.nodes import Node
from flakefs.engine.options import EngineOptions
from flakefs.errors import NoSpace
from flakefs.format.placement import Place
from flakefs.format.records import NodeRecord
from flakefs.mongo.secrets import hosts_part


class Shelf(NamedTuple):
    """The volumes that take chunks of one kind."""

    code: str
    own: bool
    """The kind: chunks whose files ask for a code of their own, or the plain ones."""


class Standing(enum.IntEnum):
    TAKES = 0
    SUSPECT = 1
    """Did not answer; may do so again at any moment."""
    FULL = 2
    OFF = 3
    """Somebody wanted it so (readonly, draining)."""


def standing(node: Node, nodes: Collection[Node], options: EngineOptions) -> tuple[Standing, str]:
    """How *node*, one of *nodes*, stands, and why it does not take chunks (TO1)."""
    if node.record.state != "active":
        return Standing.OFF, f"node {node.record.id} is {node.record.state}"
    if node.problem is not None:
        return Standing.FULL if isinstance(node.problem, NoSpace) else Standing.SUSPECT, str(node.problem)
    if node.disk is None:
        return Standing.SUSPECT, f"{node.title} was not asked yet"
    full = why_full(node, nodes, options)
    return (Standing.TAKES, "") if full is None else (Standing.FULL, full)


def why_full(node: Node, nodes: Iterable[Node], options: EngineOptions) -> str | None:
    """Why *node*, one of *nodes*, has no room for chunks; None when it has."""
    disk = node.disk
    free = None
    if disk is not None:
        free = disk.free - sum(n.written_since_look for n in nodes if n.disk is not None and disk.same_as(n.disk))
    return no_room(node.record, node.bytes, free, options.reserve_bytes)


def no_room(record: NodeRecord, held: int, disk_free: int | None, reserve_bytes: int) -> str | None:
    """Why a node that holds so many bytes, on a disk with so many free (None: unknown), has no room; None: it has."""
    if record.capacity is not None and held >= record.capacity:
        return f"node {record.id} holds {held:,} of the {record.capacity:,} bytes of its capacity"
    if disk_free is not None and disk_free < reserve_bytes:
        return (
            f"the disk of node {record.id} has {max(0, disk_free):,} bytes free, less than the reserve of "
            f"{reserve_bytes:,}"
        )
    return None


def capacity_of(node: Node) -> int:
    """Bytes of chunks it may hold, or as much as its disk is large."""
    if node.record.capacity is not None:
        return node.record.capacity
    return node.disk.total if node.disk else 0


def load_of(node: Node) -> float:
    """The share of its capacity that is taken."""
    return node.bytes / max(capacity_of(node), 1)


@lru_cache(maxsize=4096)
def place_of(record: NodeRecord) -> Place:
    """Where the node of this document stands."""
    return Place(record.id, record.dc, record.rack, server_of(record.uri))


def server_of(uri: str) -> str:
    """The hosts of a MongoDB URI, without login and options: nodes with equal ones are on one server."""
    return hosts_part(uri)

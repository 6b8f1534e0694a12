"""The replication of a file system as a whole: its code in words, whether its nodes can keep it, what lacks copies.

Concurrency
    Blocks; for commands.

Not here
    The rules (format.placement, tools.replicas), codes of folders and files (vfs.replication, api.replication).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flakefs.engine.admin import list_nodes, list_volumes, read_filesystem
from flakefs.engine.topology import place_of
from flakefs.format.placement import copies, why_not
from flakefs.format.records import NodeRecord
from flakefs.mongo.door import Door
from flakefs.tools.replicas import short_volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    code: str
    """Of all content whose files ask for no other."""
    meaning: str
    copies: int
    problem: str
    """What the nodes that take chunks lack for the code; "" when nothing."""
    volumes: int
    short_volumes: tuple[int, ...]
    """Those with fewer copies than their code asks for, or copies in the wrong places."""


def default_replication(door: Door, database: str) -> Replication:
    """Raises NotFormatted."""
    code = read_filesystem(door, database).replication
    nodes = list_nodes(door, database)
    volumes = list_volumes(door, database)
    return Replication(
        code=code,
        meaning=meaning(code),
        copies=copies(code),
        problem=lacking(code, nodes),
        volumes=len(volumes),
        short_volumes=tuple(short.volume for short in short_volumes(nodes, volumes, code)),
    )


def lacking(code: str, nodes: Sequence[NodeRecord]) -> str:
    """What the nodes that take new chunks lack for *code*, in a sentence; "" when nothing."""
    return why_not(code, [place_of(node) for node in nodes if node.state == "active"]) or ""


def meaning(code: str) -> str:
    """*code* in words."""
    far, near, here = map(int, code)
    places = [
        _counted(far, "in another data center", "in other data centers"),
        _counted(near, "on another rack", "on other racks"),
        _counted(here, "on another node of the rack", "on other nodes of the rack"),
    ]
    number = copies(code)
    if number == 1:
        return "one copy"
    return f"{number} copies, {' and '.join(place for place in places if place)}"


def _counted(number: int, one: str, several: str) -> str:
    if not number:
        return ""
    return f"{number} {one if number == 1 else several}"

"""Which volumes have fewer copies than their replication code asks for, or copies in the wrong places.

Concurrency
    Pure.

Not here
    The rule itself (format.placement), whether the chunks are there (tools.nodes), mending (tools.refill).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flakefs.engine.topology import place_of
from flakefs.format.placement import copies, satisfies, why_not
from flakefs.format.records import NodeRecord, VolumeRecord


class Short(NamedTuple):
    """A volume that its present nodes do not satisfy."""

    volume: int
    code: str
    """The replication it should have."""
    copies: int
    """Nodes it has, those without a document not counted."""
    why: str
    """What is missing, in one sentence."""


def wanted_code(volume: VolumeRecord, default_code: str) -> str:
    """A volume of files that asked for no code follows the file system's, also when that was changed later."""
    return volume.code if volume.own else default_code


def short_of(volume: VolumeRecord, nodes: Mapping[int, NodeRecord], default_code: str) -> Short | None:
    """What *volume* lacks; None when nothing."""
    code = wanted_code(volume, default_code)
    places = [place_of(nodes[number]) for number in dict.fromkeys(volume.nodes) if number in nodes]
    if places and satisfies(code, places):
        return None
    if len(places) < copies(code):
        why = f"{len(places)} of the {copies(code)} copies that replication {code} asks for"
    else:
        why = why_not(code, places) or f"replication {code} is not kept"
    return Short(volume.id, code, len(places), why)


def short_volumes(nodes: Iterable[NodeRecord], volumes: Iterable[VolumeRecord], default_code: str) -> list[Short]:
    """All volumes with too few copies, or copies in the wrong places. Only documents are looked at: cheap."""
    known = {node.id: node for node in nodes}
    found = (short_of(volume, known, default_code) for volume in volumes)
    return [short for short in found if short is not None]

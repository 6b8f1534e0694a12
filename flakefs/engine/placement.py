"""Which volume takes new chunks.

Purpose
    Puts together the map of nodes and volumes and the balancer: `choose` for the writer, and the error to raise when
    nobody takes chunks.

Invariants
    PL1  Chunks are offered only to the newest writable volume of a set of nodes, and only when all of these are
         active, answered when last asked, have room on disk and are below their capacity.

Concurrency
    Trio thread; nothing here waits.

Not here
    How a candidate is chosen (engine.balance), the figures (engine.volumes).
"""

from __future__ import annotations

from collections.abc import Collection

from flakefs.engine.balance import Balancer, Candidate
from flakefs.engine.nodes import Node
from flakefs.engine.volumes import Volume, VolumeMap, why_full
from flakefs.errors import FlakeError, NoSpace, Refused, Unavailable


class Placement:
    def __init__(self, map: VolumeMap, balancer: Balancer) -> None:
        self._map = map
        self._balancer = balancer

    def choose(self, stored_bytes: int, excluded: Collection[int]) -> Volume | None:
        """A volume for about *stored_bytes*, or None when no volume but *excluded* ones takes chunks (PL1)."""
        candidates = self._candidates(excluded)
        if not candidates:
            return None
        return self._map.volume_nowait(self._balancer.choose(candidates, stored_bytes).volume)

    def _candidates(self, excluded: Collection[int]) -> list[Candidate]:
        newest: dict[tuple[int, ...], Volume] = {}
        for volume in self._map.volumes():
            record = volume.record
            other = newest.get(record.nodes)
            if record.state == "writable" and (other is None or other.record.id < record.id):
                newest[record.nodes] = volume
        takes = {node for node in self._map.nodes.values() if self._why_not(node) is None}
        candidates = []
        for nodes, volume in newest.items():
            if volume.record.id in excluded or not nodes or len(volume.nodes) != len(nodes):
                continue
            if takes.issuperset(volume.nodes):
                fullest = max(volume.nodes, key=lambda node: node.bytes / max(capacity(node), 1))
                candidates.append(Candidate(volume.record.id, fullest.chunks, fullest.bytes, capacity(fullest)))
        return candidates

    def _why_not(self, node: Node) -> str | None:
        """Why this node takes no chunks; None when it does."""
        if node.record.state != "active":
            return f"node {node.record.id} is {node.record.state}"
        if node.problem is not None:
            return str(node.problem)
        if node.disk is None:
            return f"{node.title} was not asked yet"
        return why_full(node, self._map.nodes.values(), self._map.options)

    def nobody(self) -> FlakeError:
        """The error to raise when no volume takes chunks."""
        nodes = self._map.nodes.values()
        reasons = [reason for node in nodes if (reason := self._why_not(node))]
        reasons += [str(error) for _, error in self._map.unusable.values()]
        why = "; ".join(reasons) or "there is none"
        problems = [node.problem for node in nodes if node.problem is not None or node.disk is None]
        if nodes and len(problems) == len(nodes) and not any(isinstance(problem, NoSpace) for problem in problems):
            refused = all(isinstance(problem, Refused) for problem in problems)
            return Refused(why) if refused else Unavailable(f"no node answers: {why}")
        return NoSpace(f"no node takes new chunks ({why}); add space with: flakefs nodes add")


def capacity(node: Node) -> int:
    """Bytes of chunks it may hold, or as much as its disk is large."""
    if node.record.capacity is not None:
        return node.record.capacity
    return node.disk.total if node.disk else 0

"""Which volume takes new chunks.

Purpose
    Puts together the map of nodes and volumes and the balancer: `choose` for the writer, and the error to raise when
    nobody takes chunks.

Invariants
    PL1  Chunks are offered only to volumes of their shelf whose nodes are all active, answered when last asked, have
         room on disk and are below their capacity: one volume for each main node.
    PL2  Volumes with fewer copies than their code asks for are offered only with the option fewer_copies "warn", and
         only while the nodes that take chunks cannot keep the code.
    PL3  A node that is away for a moment is no reason for NoSpace.

Concurrency
    Trio thread; nothing here waits.

Not here
    How a candidate is chosen (engine.balance), the figures (engine.volumes), making volumes (engine.growing).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from flakefs.engine.balance import Balancer, Candidate, candidate
from flakefs.engine.nodes import Node
from flakefs.engine.offers import current_of, is_main_here
from flakefs.engine.topology import Shelf, Standing, capacity_of, place_of, standing
from flakefs.engine.volumes import Volume, VolumeMap
from flakefs.errors import FlakeError, NoSpace, Refused, Unavailable, UsageError
from flakefs.format.hashing import HASH_BYTES, own_code_of
from flakefs.format.placement import check_code, choose, satisfiable, why_not


class Placement:
    def __init__(self, map: VolumeMap, balancer: Balancer) -> None:
        self._map = map
        self._balancer = balancer
        self._plain = Shelf(map.replication, False)
        self._spare: dict[tuple[Shelf, Node], bool] = {}
        self._spare_version = -1
        """`_spare` holds for this version of the map."""

    def shelf_of(self, name: bytes) -> Shelf:
        """Where a chunk of this name belongs."""
        if len(name) > HASH_BYTES:
            return Shelf(own_code_of(name), True)
        if self._plain.code != self._map.replication:
            self._plain = Shelf(self._map.replication, False)
        return self._plain

    def choose(self, shelf: Shelf, stored_bytes: int, excluded: Collection[int]) -> Volume | None:
        """A volume for about *stored_bytes*, or None when no volume but *excluded* ones takes chunks (PL1)."""
        candidates = self._candidates(shelf, excluded)
        if not candidates:
            return None
        return self._map.volume_nowait(self._balancer.choose(candidates, stored_bytes).volume)

    def _candidates(self, shelf: Shelf, excluded: Collection[int]) -> list[Candidate]:
        takers = self._map.takers()
        fewer = self._fewer(shelf, takers)
        candidates = []
        for node in takers:
            if not is_main_here(node, self._map):
                continue
            volume = current_of(self._map, shelf, node, takers, fewer=fewer, excluded=excluded)
            if volume is not None:
                figures = [(node.chunks, node.bytes, capacity_of(node)) for node in volume.nodes]
                candidates.append(candidate(volume.record.id, figures))
        return candidates

    def _fewer(self, shelf: Shelf, takers: Iterable[Node]) -> bool:
        """PL2."""
        if self._map.options.fewer_copies != "warn":
            return False
        return not satisfiable(shelf.code, [place_of(node.record) for node in takers])

    def replaceable(self, shelf: Shelf, node: Node) -> bool:
        """Could other nodes take what *node* shall take? Then it is not waited for as long as if it were the only one.

        So far as is known without asking: not whether these have a volume already.
        """
        if len(self._map.nodes) == 1:
            return False
        if self._spare_version != self._map.version:
            self._spare.clear()
            self._spare_version = self._map.version
        found = self._spare.get((shelf, node))
        if found is None:
            others = [other for other in self._map.takers() if other is not node]
            found = self._spare[shelf, node] = self._suffices(shelf, others)
        return found

    def _suffices(self, shelf: Shelf, nodes: Collection[Node]) -> bool:
        """Can these nodes keep the code, with a main one that this process may use?"""
        mains = [node for node in nodes if is_main_here(node, self._map)]
        if self._map.options.fewer_copies == "warn":
            return bool(mains)
        places = [place_of(node.record) for node in nodes]
        return any(choose(shelf.code, place_of(main.record), places, lambda place: 0) is not None for main in mains)

    # -- when there is none --

    def check_code(self, code: str) -> None:
        """Raise UsageError when the active nodes, whether they answer now or not, cannot keep *code*."""
        check_code(code)
        active = [node.record for node in self._map.nodes.values() if node.record.state == "active"]
        problem = why_not(code, [place_of(record) for record in active])
        if problem is not None:
            raise UsageError(f"{problem}; add nodes with flakefs nodes add, or choose another code")

    def nobody(self, shelf: Shelf, failure: FlakeError | None = None) -> FlakeError:
        """The error to raise when no volume takes chunks of *shelf*. *failure*: why none could be made."""
        map = self._map
        nodes = map.nodes.values()
        standings = {node: standing(node, nodes, map.options) for node in nodes}
        reasons = [reason for _, reason in standings.values() if reason]
        reasons += [str(error) for _, error in map.unusable.values()]
        active = [node for node, (how, _) in standings.items() if how is not Standing.OFF]
        if active and not self._suffices(shelf, active):  # more nodes are needed, whatever becomes of these
            return NoSpace(self._missing(shelf, active))
        hopeful = [node for node in active if standings[node][0] is not Standing.FULL]
        if hopeful and self._suffices(shelf, hopeful):  # PL3
            problems = [node.problem for node in hopeful if node.problem is not None]
            why = "; ".join(reasons) or str(failure or "no volume could be made")
            if problems and all(isinstance(problem, Refused) for problem in problems):
                return Refused(why)
            return Unavailable(f"no node answers: {why}" if len(problems) == len(nodes) else why)
        why = "; ".join(reasons) or "there is none"
        return NoSpace(f"no node takes new chunks ({why}); add space with: flakefs nodes add")

    def _missing(self, shelf: Shelf, active: Collection[Node]) -> str:
        problem = why_not(shelf.code, [place_of(node.record) for node in active])
        if problem is None:
            center = self._map.options.write_dc
            return (
                f"no node in data center {center!r}, to which this mount's writing is limited, can keep replication "
                f"{shelf.code}: add nodes there with flakefs nodes add, or take the limit away"
            )
        way_out = "choose another code for these files" if shelf.own else "change it with flakefs replication set"
        return f"{problem}; add nodes with flakefs nodes add, or {way_out}"

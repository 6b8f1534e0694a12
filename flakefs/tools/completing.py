"""Gives a volume the further copies that its replication code asks for.

Purpose
    Volumes are short of copies when the code of the file system was raised, when a node was removed by force, or when a
    mount was told to go on with fewer copies than there should be.

Invariants
    CM1  A volume's document names a further node only when every chunk that any other copy has lies there, journaled,
         and nobody inserts any more.
    CM2  A volume whose code cannot be kept by the nodes there are is left as it is: not sealed, and named.
    CM3  Killed at any moment it leaves a copy that no document names; the next run goes on with it.

Concurrency
    Blocks, one thread; the volume's lease keeps others away.

Not here
    Copies beyond what the code asks for: they do no harm. Chunks that single copies lack (tools.refill).
"""

from __future__ import annotations

from collections.abc import Sequence

from flakefs.engine.topology import place_of
from flakefs.errors import Damaged, Unavailable
from flakefs.format.placement import Place, choose, why_not
from flakefs.format.records import VolumeRecord
from flakefs.tools.fleet import Fleet
from flakefs.tools.lease import volume_lease
from flakefs.tools.moving import Watch
from flakefs.tools.rate import Rate
from flakefs.tools.replicas import short_of, wanted_code
from flakefs.tools.sealing import raise_epoch, seal, wait_acknowledged
from flakefs.tools.volume_copies import copy_volume, lacking

COMPARE_TRIES = 3
SAME_SERVER = 10.0
"""Weight of a node on a server that has a copy already: more than any node is full."""


def complete(fleet: Fleet, volume_id: int, watch: Watch, rate: Rate | None = None) -> list[int]:
    """The nodes that hold further copies now. Raises VolumeTaken, and Unavailable when there is no node for one."""
    with volume_lease(fleet.door, fleet.database, volume_id, "making further copies of it") as lease:
        volume = lease.record()
        if not incomplete(fleet, volume):
            return []
        code = wanted_code(volume, fleet.format.replication)
        sources = [fleet.nodes[number] for number in volume.nodes if fleet.answers(number)]
        if not sources:
            raise Unavailable(f"no node that holds volume {volume_id} answers")
        nodes = further_nodes(fleet, volume)  # CM2
        watch.say(f"sealing volume {volume_id}")
        epoch = seal(fleet.door, fleet.database, lease)
        wait_acknowledged(fleet.door, fleet.database, epoch, watch.say, check=lease.check)
        added = [number for number in nodes if number not in volume.nodes]
        uuid = fleet.format.uuid
        for number in added:
            target = fleet.nodes[number]
            for attempt in range(COMPARE_TRIES + 1):
                if attempt and next(lacking(uuid, volume_id, sources, target), None) is None:
                    break
                if attempt == COMPARE_TRIES:
                    raise Damaged(
                        f"the copy of volume {volume_id} on node {number} lacks chunks after {COMPARE_TRIES} tries: "
                        "look at that node, and run the command again"
                    )
                watch.begin(f"volume {volume_id}: a further copy on node {number}", volume.bytes)
                copy_volume(
                    uuid, volume_id, sources, target, chunk_size=fleet.format.chunk_size, check=lease.check,
                    advance=watch.advance, rate=rate,
                )  # fmt: skip
                watch.end()
        if not lease.update({"nodes": nodes, "code": code}, nodes=list(volume.nodes)):  # CM1
            raise Damaged(f"the nodes of volume {volume_id} were changed by somebody else: run flakefs fsck")
        lease.update({"sealed_at": raise_epoch(fleet.door, fleet.database)})
    fleet.moved(volume_id, nodes)
    return added


def incomplete(fleet: Fleet, volume: VolumeRecord) -> bool:
    """Is it short of copies, or named as lying on a node that there is no more?"""
    known = [number for number in volume.nodes if number in fleet.records]
    return bool(known) and (
        len(known) < len(volume.nodes) or short_of(volume, fleet.records, fleet.format.replication) is not None
    )


def further_nodes(fleet: Fleet, volume: VolumeRecord) -> list[int]:
    """Nodes for all copies, those of now included, with as few new ones as possible. Raises Unavailable (CM2)."""
    code = wanted_code(volume, fleet.format.replication)
    kept = [number for number in volume.nodes if number in fleet.records]
    servers = {place_of(fleet.records[number]).server for number in kept}
    new = [
        number for number in fleet.active() if number not in volume.nodes and fleet.room(number) >= volume.bytes
    ]  # fmt: skip
    here = [place_of(fleet.records[number])._replace(server=f"copy {number}") for number in kept]
    there = [place_of(fleet.records[number]) for number in new]

    def weight(place: Place) -> float:
        if place.node in kept:
            return -1.0
        return fleet.fill(place.node) + (SAME_SERVER if place.server in servers else 0.0)

    best: list[int] | None = None
    for main in here:
        chosen = choose(code, main, here + there, weight)
        if chosen is not None:
            nodes = _together(main.node, kept, [place.node for place in chosen])
            best = nodes if best is None or len(nodes) < len(best) else best
    if best is not None:
        return best
    lack = why_not(code, [place_of(record) for record in fleet.records.values() if record.id in {*kept, *new}])
    raise Unavailable(
        f"volume {volume.id} needs further copies and there is no node for them: "
        f"{lack or f'those with room do not keep replication {code}'}; add nodes, or make room"
    )


def _together(main: int, kept: Sequence[int], chosen: Sequence[int]) -> list[int]:
    return list(dict.fromkeys([main, *kept, *chosen]))

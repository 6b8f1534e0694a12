"""Empties a node, so that it can be taken away.

Purpose
    `drain()` moves every replica that lies on a node to the least full node that keeps the replication code.

Invariants
    DR1  When the others cannot take everything, that is said before anything changes.
    DR2  First the node is marked as draining, and everybody who writes knows it: then no new volume is made there.
    DR3  At the end no document names the node, and no collection of the file system is left on it.
    DR4  It can be run again after it was interrupted at any moment: what a killed run left is continued or dropped.

Concurrency
    Blocks. Safe beside mounts and other tools: volumes that one of those works on are waited for.

Not here
    Moving one volume (tools.moving), removing the empty node (tools.remove).
"""

from __future__ import annotations

from collections.abc import Container
from time import monotonic, sleep

from flakefs.engine.admin import set_node
from flakefs.engine.sweep import stored_volumes
from flakefs.errors import FlakeError, NoSpace, Unavailable, UsageError
from flakefs.format import documents as d
from flakefs.format.records import VolumeRecord
from flakefs.tools.fleet import Fleet, replaced
from flakefs.tools.lease import DURABLE, LEASE_SECONDS, VolumeGone, VolumeTaken
from flakefs.tools.moving import Moved, Mover, PlacesChanged, Watch
from flakefs.tools.rate import Rate
from flakefs.tools.reader import Reader
from flakefs.tools.rewriting import drop_unfinished, unfinished_copies
from flakefs.tools.sealing import raise_epoch, wait_acknowledged
from flakefs.tools.volume_copies import drop_volume

TAKEN_SECONDS = 2 * LEASE_SECONDS
"""How long volumes are waited for that other tools work on, when nothing else is left to do."""
TAKEN_PAUSE_SECONDS = 1.0


def drain(fleet: Fleet, number: int, watch: Watch | None = None, rate: Rate | None = None) -> Moved:
    """Empty node *number*. One that does not answer can be drained when all it holds has other copies.

    Raises UsageError when the other nodes cannot take what lies on it.
    """
    fleet.record(number)
    mover = Mover(fleet, watch, rate)
    check_plan(fleet, number)
    stop_volumes(fleet, number, mover.watch)
    seal_all(fleet, number, mover.watch)
    while fleet.on(number):  # a volume may have been in the making when the node's state changed
        empty(mover, number)
        fleet.refresh()
    mover.drop_leftovers(fleet.records)
    if fleet.answers(number):
        drain_rest(mover, number)
    return mover.done


def check_plan(fleet: Fleet, number: int) -> None:
    """DR1: try it on paper."""
    for volume in sorted(fleet.on(number), key=lambda volume: -volume.bytes):
        others = [other for other in volume.nodes if other != number and fleet.answers(other)]
        if not fleet.answers(number) and not others:
            why = f"it does not answer, and volume {volume.id} has no other copy that does"
            raise UsageError(f"node {number} cannot be drained: {why}")
        targets = fleet.targets(volume, number)
        if not targets:
            raise UsageError(
                f"node {number} cannot be drained: {fleet.why_no_target(volume, number)}; add a node first"
            )
        fleet.moved(volume.id, replaced(volume.nodes, number, targets[0]))
    fleet.refresh()


def stop_volumes(fleet: Fleet, number: int, watch: Watch) -> None:
    """DR2."""
    if fleet.records[number].state != "draining":
        set_node(fleet.door, fleet.database, number, state="draining")
    epoch = raise_epoch(fleet.door, fleet.database)
    wait_acknowledged(fleet.door, fleet.database, epoch, watch.say)
    fleet.refresh()


def seal_all(fleet: Fleet, number: int, watch: Watch) -> None:
    """Seal the node's volumes together, so that their moves need not wait one by one (rule SE1)."""
    volumes = fleet.door.client[fleet.database].get_collection(d.VOLUMES, write_concern=DURABLE)

    def seal() -> list[int]:
        volumes.update_many({"nodes": number, "state": "writable"}, {"$set": {"state": "sealed"}})
        unnumbered = {"nodes": number, "state": "sealed", "sealed_at": {"$in": [None, 0]}}
        return [document["_id"] for document in volumes.find(unnumbered, {"_id": 1})]

    sealed = fleet.door.run_sync(seal)
    if sealed:
        epoch = raise_epoch(fleet.door, fleet.database)
        wanted = {"_id": {"$in": sealed}, "state": "sealed", "sealed_at": {"$in": [None, 0]}}
        fleet.door.run_sync(lambda: volumes.update_many(wanted, {"$set": {"sealed_at": epoch}}))
        wait_acknowledged(fleet.door, fleet.database, epoch, watch.say)


def empty(mover: Mover, number: int, *, but: Container[int] = ()) -> None:
    """Move all volumes away, *but* those."""
    fleet = mover.fleet
    taken: dict[int, VolumeTaken] = {}
    patience = monotonic() + TAKEN_SECONDS
    while True:
        fleet.refresh()
        there = [volume for volume in fleet.on(number) if volume.id not in but]
        if not there:
            break
        volume = next((volume for volume in there if volume.id not in taken), None)
        if volume is None:
            if monotonic() > patience:
                raise next(iter(taken.values()))
            mover.watch.say(f"waiting for other tools that work on {len(taken)} of the volumes")
            sleep(TAKEN_PAUSE_SECONDS)
            taken.clear()
            continue
        try:
            _move_away(mover, volume, number)
            patience = monotonic() + TAKEN_SECONDS
        except VolumeTaken as error:
            taken[volume.id] = error
    mover.finish()


def _move_away(mover: Mover, volume: VolumeRecord, number: int) -> None:
    """To the best node; one that fails is used no more."""
    fleet = mover.fleet
    while True:
        targets = fleet.targets(volume, number)
        if not targets:
            why = fleet.why_no_target(volume, number)
            raise UsageError(f"node {number} cannot be emptied further: {why}; add a node and run the command again")
        target = _begun(fleet, volume.id, targets)
        if target is None:
            continue
        try:
            mover.move(volume.id, number, target)
            return
        except (PlacesChanged, VolumeGone):  # another tool was faster
            return
        except NoSpace as error:
            fleet.nodes[target].failure = error
        except Unavailable as error:
            if not fleet.blame(error, {target, *volume.nodes} & fleet.nodes.keys()):
                raise


def _begun(fleet: Fleet, volume: int, targets: list[int]) -> int | None:
    """The target to which a killed run has copied a part already, or else the first that answers (DR4)."""
    name = d.volume_collection(fleet.format.uuid, volume)
    for number in targets:
        node = fleet.nodes[number]
        home = node.door.client[node.record.database]
        try:
            if node.door.run_sync(lambda home=home: home.list_collection_names(filter={"name": name})):  # type: ignore[misc]
                return number
        except FlakeError as error:
            node.failure = error
    return next((number for number in targets if fleet.answers(number)), None)


def drain_rest(mover: Mover, number: int) -> None:
    """DR3: collections that vacuum left unfinished, and of volumes that are no more."""
    fleet, uuid = mover.fleet, mover.fleet.format.uuid
    node = fleet.nodes[number]
    prefix = d.volume_collection(uuid, 0).removesuffix("0")
    for name in unfinished_copies(node, uuid):
        digits = "".join(letter for letter in name.removeprefix(prefix) if letter.isdigit())
        drop_unfinished(node, uuid, int(digits))
    metadata = Reader(fleet.door, fleet.database, None)
    for volume in stored_volumes(node.door, node.record, uuid):
        if volume in fleet.volumes:
            continue  # drop_leftovers() has said why it is kept
        if metadata.collection(d.CHUNKS).find_one({"v": volume}, {"_id": 1}) is None:
            drop_volume(node, uuid, volume)
        else:
            mover.done.kept.append(f"volume {volume} on node {number}: files name it, but it has no document")

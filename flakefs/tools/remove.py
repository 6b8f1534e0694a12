"""Takes a node out of the file system for ever.

Purpose
    `remove()` removes an empty node; and one that is dead, after what lay on it was copied anew from other copies.

Invariants
    RE1  A node that answers is removed only when no volume lies on it: that is what drain is for.
    RE2  A dead node is removed only when every chunk on it has another copy on a node that answers; else the files
         that are damaged without it are named, and only *force* goes on.
    RE3  Its volumes get a copy elsewhere first. With *force*, one that nobody can take goes on with fewer copies, and
         one whose only copy is lost goes on naming the removed node: reading its files says what is missing.
    RE4  The node's id is never used again. Its document goes first, then its mark: adding the same database again
         works whatever was interrupted.
    RE5  When nobody can take what lay on a dead node, that is said before anything changes: it may come back.

Concurrency
    Blocks. Safe beside mounts.

Not here
    Emptying a node that answers (tools.drain).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bson.objectid import ObjectId
from pymongo.database import Database

from flakefs.errors import FlakeError, UsageError
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.format.records import VolumeRecord
from flakefs.tools.chunks import BATCH
from flakefs.tools.drain import drain_rest, empty, seal_all, stop_volumes
from flakefs.tools.fleet import Fleet
from flakefs.tools.lease import DURABLE, volume_lease
from flakefs.tools.lost import files_of
from flakefs.tools.moving import Moved, Mover, Watch
from flakefs.tools.paths import path_of
from flakefs.tools.rate import Rate
from flakefs.tools.reader import Reader
from flakefs.tools.sealing import raise_epoch
from flakefs.tools.volume_copies import check_mark
from flakefs.values import ROOT_INO


@dataclass(slots=True)
class Damage:
    """What is lost with a node."""

    chunks: int = 0
    files: list[tuple[int, bytes | None, int]] = field(default_factory=list)
    """(inode, path or None when it has no name, lost chunks)."""


@dataclass(slots=True)
class Removed:
    """What remove() did."""

    node: int
    removed: bool
    dead: str
    """Why the node counts as dead; "" when it answers."""
    damage: Damage
    """Files that have chunks only on the removed node."""
    moved: Moved
    short: list[int] = field(default_factory=list)
    """Volumes that go on with fewer copies than their code asks for."""


def remove(
    fleet: Fleet, number: int, *, force: bool = False, watch: Watch | None = None, rate: Rate | None = None
) -> Removed:
    """Remove node *number*; with damage and without *force* only say what is damaged. Raises UsageError (RE1)."""
    fleet.record(number)
    if len(fleet.records) == 1:
        raise UsageError(f"node {number} is the only one, and a file system needs a node: add another one first")
    dead = _why_dead(fleet, number)
    if not dead and fleet.on(number):
        _refuse(fleet, number)
    mover = Mover(fleet, watch, rate)
    mover.give_up = force
    result = Removed(number, False, dead, Damage(), mover.done)
    if dead:
        mover.watch.say("looking for other copies of what lies there")
        result.damage = lost_with(fleet, number)
        if result.damage.chunks and not force:
            return result
        if not force:
            for volume in fleet.on(number):
                _check_target(fleet, volume, number)
    stop_volumes(fleet, number, mover.watch)
    if dead:
        seal_all(fleet, number, mover.watch)
        fleet.refresh()
        result.damage = lost_with(fleet, number)  # mounts that reach it, unlike this process, may have written there
        if result.damage.chunks and not force:
            return result
        _copy_anew(mover, number, force, result)
    elif fleet.on(number):
        _refuse(fleet, number)
    mover.drop_leftovers(fleet.records)
    if not dead:
        drain_rest(mover, number)
    _forget(fleet, number, dead)
    result.removed = True
    return result


def _why_dead(fleet: Fleet, number: int) -> str:
    """A node whose server is gone, or whose data is: "" when it is alive."""
    node = fleet.nodes[number]
    if node.failure is None:
        try:
            check_mark(node, fleet.format.uuid)
        except FlakeError as error:
            node.failure = error
    return "" if node.failure is None else str(node.failure)


def _refuse(fleet: Fleet, number: int) -> None:
    count = len(fleet.on(number))
    volumes = f"{count} volumes lie" if count > 1 else "a volume lies"
    raise UsageError(f"{volumes} on node {number}: empty it first with flakefs nodes drain {number}")


# -- what is lost --


def lost_with(fleet: Fleet, number: int) -> Damage:
    """Chunks that have no copy on another node that answers, and the files that need them (RE2)."""
    reader = Reader(fleet.door, fleet.database, None)
    volumes = {volume.id: volume for volume in fleet.on(number)}
    for other in {other for volume in volumes.values() for other in volume.nodes} - {number}:
        if fleet.answers(other):
            _why_dead(fleet, other)
    lost: set[bytes] = set()
    waiting: dict[int, dict[ObjectId, bytes]] = {id: {} for id in volumes}
    for entry in reader.stream(d.CHUNKS, {"v": {"$in": list(volumes)}}, fields={"v": 1, "k": 1}):
        batch = waiting[entry["v"]]
        batch[entry["k"]] = bytes(entry["_id"])
        if len(batch) >= BATCH:
            lost.update(_without_copy(fleet, volumes[entry["v"]], number, batch))
            batch.clear()
    for id, batch in waiting.items():
        lost.update(_without_copy(fleet, volumes[id], number, batch))
    damage = Damage(chunks=len(lost))
    known: dict[int, bytes | None] = {ROOT_INO: b""}
    for ino, names in sorted(files_of(reader, lost).items()):
        damage.files.append((ino, path_of(reader, ino, known), len(names)))
    return damage


def _without_copy(fleet: Fleet, volume: VolumeRecord, number: int, keys: dict[ObjectId, bytes]) -> Iterator[bytes]:
    """Names of the chunks that no other node of the volume has."""
    left = set(keys)
    name = d.volume_collection(fleet.format.uuid, volume.id)
    for other in volume.nodes:
        if left and other != number and fleet.answers(other):
            found = fleet.nodes[other].reader.stream(name, {"_id": {"$in": list(left)}}, fields={"_id": 1})
            left -= {document["_id"] for document in found}
    yield from (keys[key] for key in left)


# -- a dead node's volumes --


def _copy_anew(mover: Mover, number: int, force: bool, result: Removed) -> None:
    """RE3."""
    fleet = mover.fleet
    for volume in fleet.on(number):
        others = [other for other in volume.nodes if other != number]
        if not others:
            if not volume.chunks:
                _drop_document(fleet, volume)
        elif not any(map(fleet.answers, others)) and (force or not volume.chunks):
            _go_on_with(fleet, volume, others)  # nothing to copy from
            result.short.append(volume.id)
        elif not fleet.targets(volume, number):
            if not force:
                _check_target(fleet, volume, number)
            _go_on_with(fleet, volume, others)
            result.short.append(volume.id)
    fleet.refresh()
    lost = {volume.id for volume in fleet.on(number) if len(set(volume.nodes)) == 1}
    empty(mover, number, but=lost)


def _check_target(fleet: Fleet, volume: VolumeRecord, number: int) -> None:
    """Can a copy of the volume be made that replaces the one on *number*? Raises UsageError."""
    others = [other for other in volume.nodes if other != number]
    if any(map(fleet.answers, others)) and not fleet.targets(volume, number):
        why = fleet.why_no_target(volume, number)
        raise UsageError(
            f"what lay on node {number} cannot be copied anew: {why}; add a node first, "
            "or go on with fewer copies with --force"
        )


def _drop_document(fleet: Fleet, volume: VolumeRecord) -> None:
    """A volume without a chunk whose only copy is gone."""
    home = fleet.door.client.get_database(fleet.database, write_concern=DURABLE)
    index, volumes = home[d.CHUNKS], home[d.VOLUMES]
    with volume_lease(fleet.door, fleet.database, volume.id, "removing it with its node") as lease:
        wanted = lease.guard()
        if fleet.door.run_sync(lambda: index.find_one({"v": volume.id}, {"_id": 1})) is None:
            fleet.door.run_sync(lambda: volumes.delete_one(wanted))


def _go_on_with(fleet: Fleet, volume: VolumeRecord, others: list[int]) -> None:
    with volume_lease(fleet.door, fleet.database, volume.id, "taking a removed node out of it") as lease:
        lease.update({"nodes": others}, nodes=list(volume.nodes))


# -- the node itself --


def _forget(fleet: Fleet, number: int, dead: str) -> None:
    """RE4."""
    home = fleet.door.client.get_database(fleet.database, write_concern=DURABLE)
    fleet.door.run_sync(lambda: home[d.NODES].delete_one({"_id": number}))
    raise_epoch(fleet.door, fleet.database)
    if not dead:
        node = fleet.nodes[number]
        database = node.door.client.get_database(node.record.database, write_concern=DURABLE)
        node.door.run_sync(lambda: _unmark(database, fleet.format.uuid, number))


def _unmark(database: Database[Document], uuid: str, number: int) -> None:
    database[d.NODE_MARKER].delete_one({"_id": uuid, "node": number})
    if database[d.NODE_MARKER].find_one({}) is None:
        database.drop_collection(d.NODE_MARKER)

"""Gives disk space of deleted chunks back: rewrites volumes that have become hollow, and drops empty ones.

Purpose
    MongoDB never shrinks the file of a collection. `vacuum()` measures on each node how much of a volume's file holds
    nothing, and writes those anew for which it is worthwhile.

Invariants
    VA1  A volume is rewritten or dropped only under its lease, sealed, and when everybody who writes knows it: nobody
         inserts into it then.
    VA2  A volume is dropped only when every one of its nodes answers, none holds a document of it, and the index names
         none; first the collections, then the document. Its id is never used again.
    VA3  What is deleted but still lies on a node is none of its business: whoever may need it again (a session that
         holds it) finds it afterwards. gc frees it first.
    VA4  Killed anywhere it leaves at most a collection that the next run drops (rewriting RW2). It drops copies that
         killed moves have left, too (moving MO2).

Concurrency
    Blocks, one thread; beside mounts, and beside other tools, which the lease keeps apart.

Not here
    How a collection is written anew (tools.rewriting).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bson.int64 import Int64

from flakefs.engine.sweep import stored_volumes
from flakefs.errors import FlakeError, NoSpace, Refused, Unavailable, UsageError
from flakefs.format import documents as d
from flakefs.format.records import VolumeRecord
from flakefs.mongo.door import Door
from flakefs.tools.chunks import Node, Resolve
from flakefs.tools.fleet import Fleet, open_fleet
from flakefs.tools.lease import DURABLE, Lease, VolumeTaken, volume_lease
from flakefs.tools.moving import Mover, Watch
from flakefs.tools.rate import Rate
from flakefs.tools.reader import Reader
from flakefs.tools.rewriting import SUFFIX, Filling, drop_unfinished, measure, rewrite, unfinished_copies
from flakefs.tools.sealing import seal, wait_acknowledged
from flakefs.tools.together import seal_together
from flakefs.tools.volume_copies import check_mark, drop_volume
from flakefs.values import readable

MIN_GARBAGE = 0.2
WORTH_BYTES = 1024 * 1024
"""Less is not worth a new collection."""
CHECKPOINT_SECONDS = 120.0


@dataclass(slots=True)
class Vacuumed:
    """What vacuum() did."""

    freed_bytes: int = 0
    """On all disks together, as the servers measure their files."""
    rewritten: list[tuple[int, int, int]] = field(default_factory=list)
    """(volume, node, bytes given back)."""
    dropped: list[int] = field(default_factory=list)
    """Volumes that were empty."""
    cleaned: list[str] = field(default_factory=list)
    """Collections that interrupted runs had left."""
    kept: list[str] = field(default_factory=list)
    """Copies left by killed moves that may not go, with the reason."""
    untouched: int = 0
    """Copies of volumes that were not worth it."""
    waiting: list[str] = field(default_factory=list)
    """What could not be done, in sentences."""

    def text(self) -> str:
        lines = [f"dropped {name}, which an interrupted run had left" for name in self.cleaned]
        lines += [f"volume {v} on node {n}: gave back {readable(size)}" for v, n, size in self.rewritten]
        lines += [f"volume {volume}: dropped, it was empty" for volume in self.dropped]
        lines += [f"not dropped: {text}" for text in self.kept]
        lines += self.waiting
        lines.append(f"gave back {readable(self.freed_bytes)}; left {self.untouched} copies of volumes as they are")
        return "\n".join(lines)


def vacuum(
    metadata: Door,
    database: str,
    resolve: Resolve,
    *,
    volumes: Sequence[int] = (),
    min_garbage: float = MIN_GARBAGE,
    watch: Watch | None = None,
    rate: float | None = None,
) -> Vacuumed:
    """All volumes, or those given; rewritten when at least the share *min_garbage* of a file holds nothing.

    Raises UsageError for a volume that there is not.
    """
    with open_fleet(metadata, database, resolve) as fleet:
        for number in volumes:
            if number not in fleet.volumes:
                raise UsageError(f"there is no volume {number}; flakefs volumes list shows them")
        work = _Vacuum(fleet, min_garbage, watch or Watch(), Rate(rate))
        work.prepare()
        work.vacuum([fleet.volumes[number] for number in sorted(volumes or fleet.volumes)])
        return work.done


class _Vacuum:
    """One vacuum()."""

    def __init__(self, fleet: Fleet, min_garbage: float, watch: Watch, rate: Rate) -> None:
        self.done = Vacuumed()
        self._fleet = fleet
        self._min_garbage = min_garbage
        self._watch = watch
        self._rate = rate
        self._uuid = fleet.format.uuid
        self._holding: dict[int, set[int]] = {}
        """Node -> volumes that have a collection there."""

    def prepare(self) -> None:
        """Which nodes can be used; sizes as they are now; what interrupted runs have left (VA4)."""
        for number, node in self._fleet.nodes.items():
            try:
                if node.failure is None:
                    self._watch.say(f"node {number}")
                    check_mark(node, self._uuid)
                    self._checkpoint(node)
                    self._holding[number] = set(stored_volumes(node.door, node.record, self._uuid))
                    self._clean(node)
            except FlakeError as error:
                node.failure = error
            if node.failure is not None:
                self.done.waiting.append(f"node {number} was left out: {node.failure}")
        mover = Mover(self._fleet, self._watch)
        for number, node in self._fleet.nodes.items():
            try:
                mover.drop_leftovers([number])
            except FlakeError as error:
                node.failure = error
                self.done.waiting.append(f"node {number} was left out: {error}")
        self.done.kept = mover.done.kept

    def _checkpoint(self, node: Node) -> None:
        """A file counts as free what was free at the last checkpoint. Who may not ask for one sees an older state."""
        with suppress(Refused):
            node.door.run_sync(lambda: node.door.client.admin.command("fsync"), deadline_seconds=CHECKPOINT_SECONDS)

    def _clean(self, node: Node) -> None:
        for name in unfinished_copies(node, self._uuid):
            number = int(name.removesuffix(SUFFIX).rpartition("_")[2])
            try:
                if number in self._fleet.volumes:
                    with volume_lease(self._fleet.door, self._fleet.database, number, "dropping an unfinished copy"):
                        drop_unfinished(node, self._uuid, number)
                else:
                    drop_unfinished(node, self._uuid, number)
            except VolumeTaken:
                continue  # it is being made
            self.done.cleaned.append(f"{name} on node {node.record.id}")

    def vacuum(self, volumes: Sequence[VolumeRecord]) -> None:
        """Those that are worth it."""
        worthwhile: dict[int, list[int]] = {}
        for volume in volumes:
            self._watch.say(f"volume {volume.id}")
            found = self._measured(volume)
            worth = [number for number, filling in found.items() if self._worthwhile(filling)]
            if self._looks_empty(volume, found):
                worthwhile[volume.id] = []
            elif worth:
                worthwhile[volume.id] = worth
            self.done.untouched += len(found) - len(worth)
        try:
            seal_together(self._fleet.door, self._fleet.database, worthwhile, self._watch.say)
        except Unavailable as error:
            self.done.waiting.append(str(error))
            return
        for number, worth in worthwhile.items():
            try:
                if worth:
                    self._rewrite(number, worth)
                else:
                    self._drop(number)
            except FlakeError as error:
                self.done.waiting.append(str(error))

    def _measured(self, volume: VolumeRecord) -> dict[int, Filling]:
        """Of the copies on nodes that answer."""
        found = {}
        for number in volume.nodes:
            if self._fleet.answers(number):
                node = self._fleet.nodes[number]
                try:
                    found[number] = measure(node, self._uuid, volume.id)
                except FlakeError as error:
                    node.failure = error
                    self.done.waiting.append(f"node {number} was left out: {error}")
        return found

    def _worthwhile(self, filling: Filling) -> bool:
        return filling.free >= max(WORTH_BYTES, self._min_garbage * filling.file)

    def _looks_empty(self, volume: VolumeRecord, found: Mapping[int, Filling]) -> bool:
        """A new volume that waits for its first chunk is not meant."""
        if set(found) != set(volume.nodes) or volume.chunks or any(filling.chunks for filling in found.values()):
            return False
        return volume.state == "sealed" or volume.garbage > 0

    # -- under the lease --

    def _rewrite(self, id: int, numbers: Sequence[int]) -> None:
        with volume_lease(self._fleet.door, self._fleet.database, id, "vacuuming it") as lease:
            volume = self._sealed(lease)
            done = 0
            for number in numbers:
                if number not in volume.nodes:
                    continue  # moved meanwhile
                if self._rewrite_copy(lease, self._fleet.nodes[number], id):
                    done += 1
            if done == len(volume.nodes):
                self._forget_garbage(lease, volume.garbage)

    def _rewrite_copy(self, lease: Lease, node: Node, id: int) -> bool:
        number = node.record.id
        before = measure(node, self._uuid, id)
        self._watch.begin(f"volume {id} on node {number}", before.content)

        def copied(size: int) -> None:
            lease.check()
            self._watch.advance(0, size)
            self._rate.spend(size, lease.check)

        try:
            _check_room(node, before)
            rewrite(node, self._uuid, id, copied)
        except (NoSpace, Unavailable, Refused) as error:
            self.done.waiting.append(f"volume {id} on node {number} was left as it is: {error}")
            with suppress(FlakeError):
                drop_unfinished(node, self._uuid, id)
            return False
        finally:
            self._watch.end()
        self._checkpoint(node)
        freed = max(0, before.file - measure(node, self._uuid, id).file)
        self.done.rewritten.append((id, number, freed))
        self.done.freed_bytes += freed
        return True

    def _drop(self, id: int) -> None:
        """VA2"""
        with volume_lease(self._fleet.door, self._fleet.database, id, "dropping it, for it is empty") as lease:
            volume = self._sealed(lease)
            found = self._measured(volume)
            if not self._looks_empty(volume, found) or self._named(id):
                return
            if any(self._holds(self._fleet.nodes[number], id) for number in volume.nodes):
                return
            for number, node in self._fleet.nodes.items():
                if self._fleet.answers(number) and (number in volume.nodes or id in self._holding.get(number, ())):
                    lease.check()
                    if number in volume.nodes or not self._holds(node, id):
                        drop_volume(node, self._uuid, id)
            documents = self._fleet.door.client[self._fleet.database].get_collection(d.VOLUMES, write_concern=DURABLE)
            wanted = lease.guard() | {"chunks": 0, "state": "sealed"}
            lease.check()
            self._fleet.door.run_sync(lambda: documents.delete_one(wanted))
        self.done.dropped.append(id)
        self.done.freed_bytes += sum(filling.file for filling in found.values())

    def _sealed(self, lease: Lease) -> VolumeRecord:
        """VA1"""
        door, database = self._fleet.door, self._fleet.database
        epoch = seal(door, database, lease)
        wait_acknowledged(door, database, epoch, self._watch.say, check=lease.check)
        return lease.record()

    def _holds(self, node: Node, id: int) -> bool:
        """Is there any document? After a crash the server's count of them may be wrong."""
        return (
            next(node.reader.stream(d.volume_collection(self._uuid, id), fields={"_id": 1}, page=1), None) is not None
        )

    def _named(self, id: int) -> bool:
        """Does the index name a chunk in it? The count of the document is not trusted."""
        reader = Reader(self._fleet.door, self._fleet.database, None)
        return next(reader.stream(d.CHUNKS, {"v": id}, fields={"_id": 1}, page=1), None) is not None

    def _forget_garbage(self, lease: Lease, garbage: int) -> None:
        """What was counted before; what came meanwhile stays counted."""
        documents = self._fleet.door.client[self._fleet.database].get_collection(d.VOLUMES, write_concern=DURABLE)
        change = {"$inc": {"garbage": Int64(-garbage)}}
        self._fleet.door.run_sync(lambda: documents.update_one(lease.guard(), change))


def _check_room(node: Node, filling: Filling) -> None:
    """Both collections are there for a while."""
    stats = node.door.run_sync(lambda: node.door.client[node.record.database].command("dbStats"))
    total, used = int(stats.get("fsTotalSize", 0)), int(stats.get("fsUsedSize", 0))
    if total and total - used < filling.content + filling.content // 8:
        raise NoSpace(f"its disk has {total - used:,} bytes free, and a second copy needs {filling.content:,}")

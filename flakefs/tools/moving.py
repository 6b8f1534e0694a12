"""Moves replicas of volumes from one node to another, while mounts work.

Purpose
    `Mover.move()`: lease, seal, wait until everybody knows, copy, compare, switch the volume's document, and drop the
    old copy. What drain, balance and remove decide goes through it.

Invariants
    MO1  The volume's document names the target only when every chunk that any other copy has lies there, journaled,
         and nobody inserts any more. When the copy that goes does not answer, all that the index names lies there, or
         the caller gives up what does not (`give_up`).
    MO2  A copy is dropped only when, under the volume's lease, its document does not name that node; and what a killed
         tool left is dropped only when all that the index names of it lies on every other copy that there is.
    MO3  A tool may be killed at any moment: the volume then lies where it lay or where it was to go, and at most a copy
         is left that no document names. The next move continues it, or drop_leftovers() finds it.
    MO4  A switched-off copy stays until everybody who writes has seen the switch, or some time, so that few readers
         meet an empty place.

Concurrency
    Blocks, one thread. Several Movers, on any machines: the lease keeps them apart.

Not here
    Copying (tools.volume_copies), which volume goes where (tools.drain, tools.balance).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import NamedTuple

from flakefs.engine.sweep import stored_volumes
from flakefs.errors import Damaged, FlakeError, Unavailable, UsageError
from flakefs.format import documents as d
from flakefs.format.records import VolumeRecord
from flakefs.tools import chunks
from flakefs.tools.fleet import Fleet, replaced
from flakefs.tools.lease import Lease, VolumeGone, VolumeTaken, volume_lease
from flakefs.tools.rate import Rate
from flakefs.tools.reader import Reader
from flakefs.tools.sealing import acknowledged, raise_epoch, seal, wait_acknowledged
from flakefs.tools.volume_copies import copy_volume, drop_volume, lacking

FINISH_SECONDS = 20.0
"""How long those who still read from an old copy are waited for at the end (MO4)."""
COMPARE_TRIES = 3


class PlacesChanged(UsageError):
    """The volume does not lie where it was to be moved from, or lies already where it was to go."""


class Watch:
    """What a person sees of it; this one shows nothing."""

    def say(self, text: str) -> None:
        """What is being done or waited for."""

    def begin(self, text: str, total_bytes: int) -> None:
        """A copy begins."""

    def advance(self, chunks: int, size: int) -> None:
        """A part of it is done."""

    def end(self) -> None:
        """It is done."""


@dataclass(slots=True)
class Moved:
    """What a Mover did."""

    volumes: list[tuple[int, int, int]] = field(default_factory=list)
    """(volume, from node, to node)."""
    chunks: int = 0
    stored_bytes: int = 0
    mended: int = 0
    bad: list[str] = field(default_factory=list)
    """Names of chunks that are damaged in every copy; they were moved as they are."""
    kept: list[str] = field(default_factory=list)
    """Copies left behind, in words, with the reason."""


class _Old(NamedTuple):
    """A copy to be dropped when the epoch is acknowledged."""

    volume: int
    node: int
    epoch: int


class Mover:
    def __init__(self, fleet: Fleet, watch: Watch | None = None, rate: Rate | None = None) -> None:
        self.fleet = fleet
        self.watch = watch or Watch()
        self.done = Moved()
        self.give_up = False
        """Go on although chunks lie only on a node that does not answer: they are lost then."""
        self._rate = rate
        self._old: list[_Old] = []

    def move(self, volume_id: int, source: int, target: int) -> None:
        """Have *target* hold the copy that *source* holds. The old copy goes with this call or a later one, at the
        latest with finish(). Raises VolumeTaken when another tool works on the volume, PlacesChanged when it did.
        """
        what = f"moving it from node {source} to node {target}"
        with volume_lease(self.fleet.door, self.fleet.database, volume_id, what) as lease:
            volume = lease.record()
            _check_places(volume, source, target)
            self.watch.say(f"sealing volume {volume_id}")
            epoch = seal(self.fleet.door, self.fleet.database, lease)
            wait_acknowledged(self.fleet.door, self.fleet.database, epoch, self.watch.say, check=lease.check)
            self._copy(lease, volume, source, target)
            nodes = replaced(volume.nodes, source, target)
            if not lease.update({"nodes": nodes}, nodes=list(volume.nodes)):  # MO1
                raise Damaged(f"the nodes of volume {volume_id} were changed by somebody else: run flakefs fsck")
            epoch = raise_epoch(self.fleet.door, self.fleet.database)
            lease.update({"sealed_at": epoch})
        self.fleet.moved(volume_id, nodes)
        self.done.volumes.append((volume_id, source, target))
        self._old.append(_Old(volume_id, source, epoch))
        self._drop_old(all=False)

    def finish(self) -> None:
        """Drop the old copies that are still there."""
        patience = monotonic() + FINISH_SECONDS
        self._drop_old(all=False)
        while self._old and monotonic() < patience:
            self.watch.say("waiting for those who still use an old copy")
            sleep(0.5)
            self._drop_old(all=False)
        self._drop_old(all=True)

    def drop_leftovers(self, nodes: Iterable[int]) -> None:
        """Drop what killed tools left on *nodes*: copies of volumes that lie elsewhere (MO2)."""
        for number in nodes:
            if not self.fleet.answers(number):
                continue
            node = self.fleet.nodes[number]
            for volume_id in stored_volumes(node.door, node.record, self.fleet.format.uuid):
                volume = self.fleet.volumes.get(volume_id)
                if volume is not None and number not in volume.nodes:
                    self.watch.say(f"dropping what is left of volume {volume_id} on node {number}")
                    with suppress(VolumeTaken):  # who works on it may need that copy
                        self._drop(volume_id, number, compare=True)

    def _copy(self, lease: Lease, volume: VolumeRecord, source: int, target: int) -> None:
        """Until the target has all that the others have."""
        nodes = self.fleet.nodes
        order = [source, *(number for number in volume.nodes if number != source)]
        sources = [nodes[number] for number in order if self.fleet.answers(number)]
        if not sources:
            raise Unavailable(f"no node that holds volume {volume.id} answers: {_failures(self.fleet, order)}")
        uuid, chunk_size = self.fleet.format.uuid, self.fleet.format.chunk_size
        for _ in range(COMPARE_TRIES):
            self.watch.begin(f"volume {volume.id}: node {source} to node {target}", volume.bytes)
            copied = copy_volume(
                uuid, volume.id, sources, nodes[target],
                chunk_size=chunk_size, check=lease.check, advance=self.watch.advance, rate=self._rate,
            )  # fmt: skip
            self.watch.end()
            self.done.chunks += copied.chunks
            self.done.stored_bytes += copied.stored_bytes
            self.done.mended += copied.mended
            self.done.bad += [name.hex() or str(key) for key, name in copied.bad]
            lease.check()
            if next(lacking(uuid, volume.id, sources, nodes[target]), None) is None:
                if not self.fleet.answers(source) and not self.give_up:
                    self._check_named(volume.id, source, target)
                return
        raise Damaged(
            f"the copy of volume {volume.id} on node {target} lacks chunks after {COMPARE_TRIES} tries: "
            "somebody deletes there, or its disk is failing; look at that node, and run the command again"
        )

    def _check_named(self, volume: int, source: int, target: int) -> None:
        """MO1: the others may lack what only *source* has."""
        metadata, node = Reader(self.fleet.door, self.fleet.database, None), self.fleet.nodes[target]
        wanted = {"v": volume}
        for page in metadata.pages(d.CHUNKS, wanted, fields={"k": 1}, page=chunks.KEYS_PAGE):
            missing = {e["k"] for e in page} - chunks.present(
                node, self.fleet.format.uuid, volume, [e["k"] for e in page]
            )
            if missing and chunks.indexed_by_key(metadata, volume, missing):
                raise UsageError(
                    f"node {source} does not answer, and chunks of volume {volume} lie only there: bring it back; "
                    f"if that cannot be, flakefs nodes remove {source} names the files that need them"
                )

    # -- old copies --

    def _drop_old(self, *, all: bool) -> None:
        """Those that nobody reads any more and no other tool works on; or all, and say so of what stays."""
        left = []
        for old in self._old:
            try:
                if all or acknowledged(self.fleet.door, self.fleet.database, old.epoch):
                    self._drop(old.volume, old.node, compare=False)
                else:
                    left.append(old)
            except VolumeTaken as error:
                if all:
                    self.done.kept.append(f"{_place(old.volume, old.node)}: {error}")
                else:
                    left.append(old)
        self._old = left

    def _drop(self, volume_id: int, number: int, *, compare: bool) -> None:
        """MO2. What cannot be dropped is named and left; it can be found again. Raises VolumeTaken."""
        if not self.fleet.answers(number):
            return
        node, uuid = self.fleet.nodes[number], self.fleet.format.uuid
        where = _place(volume_id, number)
        try:
            with volume_lease(
                self.fleet.door, self.fleet.database, volume_id, f"dropping it on node {number}"
            ) as lease:
                volume = lease.record()
                if number in volume.nodes:
                    return
                if compare and (why := self._still_needed(volume, number)):
                    self.done.kept.append(f"{where}: {why}")
                    return
                lease.check()
                drop_volume(node, uuid, volume_id)
        except VolumeTaken:
            raise
        except VolumeGone:  # vacuum has dropped it; nobody makes it again
            index = self.fleet.door.client[self.fleet.database][d.CHUNKS]
            if self.fleet.door.run_sync(lambda: index.find_one({"v": volume_id}, {"_id": 1})) is None:
                drop_volume(node, uuid, volume_id)
            else:
                self.done.kept.append(f"{where}: files name it, but it has no document; run flakefs fsck")
        except FlakeError as error:
            self.done.kept.append(f"{where}: {error}")

    def _still_needed(self, volume: VolumeRecord, number: int) -> str | None:
        """Why a copy that no document names may not go."""
        node, uuid = self.fleet.nodes[number], self.fleet.format.uuid
        if not volume.nodes:
            return "it is the only copy of that volume"
        metadata = Reader(self.fleet.door, self.fleet.database, None)
        for other in volume.nodes:
            if not self.fleet.answers(other):
                return f"node {other}, which has the volume, does not answer"
            missing = list(lacking(uuid, volume.id, [node], self.fleet.nodes[other]))
            if missing and chunks.indexed_by_key(metadata, volume.id, missing):
                return f"node {other} lacks chunks that lie only here; flakefs nodes repair copies them"
        return None


def _check_places(volume: VolumeRecord, source: int, target: int) -> None:
    if source not in volume.nodes:
        raise PlacesChanged(f"volume {volume.id} does not lie on node {source}; it lies on {_named(volume.nodes)}")
    if target in volume.nodes:
        raise PlacesChanged(f"volume {volume.id} lies on node {target} already; it lies on {_named(volume.nodes)}")


def _place(volume: int, node: int) -> str:
    return f"volume {volume} on node {node}"


def _named(nodes: Iterable[int]) -> str:
    return ", ".join(f"node {number}" for number in nodes)


def _failures(fleet: Fleet, nodes: Iterable[int]) -> str:
    reasons = (fleet.nodes[number].failure if number in fleet.nodes else "it is none of the nodes" for number in nodes)
    return "; ".join(str(reason) for reason in reasons)


def move_volume(fleet: Fleet, volume_id: int, source: int, target: int, watch: Watch, rate: Rate | None) -> Moved:
    """Move one volume on demand. Raises UsageError when that would break its replication code, or there is no room."""
    fleet.record(source), fleet.record(target)
    volume = fleet.volumes.get(volume_id)
    if volume is None:
        raise UsageError(f"there is no volume {volume_id}; flakefs volumes list shows them")
    mover = Mover(fleet, watch, rate)
    mover.drop_leftovers([source])
    if target in volume.nodes and source not in volume.nodes:
        return mover.done  # a killed run came so far
    _check_places(volume, source, target)
    _check_target(fleet, volume, source, target)
    mover.move(volume_id, source, target)
    mover.finish()
    return mover.done


def _check_target(fleet: Fleet, volume: VolumeRecord, source: int, target: int) -> None:
    if not fleet.answers(target):
        raise Unavailable(f"node {target} cannot be used: {fleet.nodes[target].failure}")
    if fleet.records[target].state != "active":
        raise UsageError(f"node {target} is {fleet.records[target].state}: it takes no volumes")
    if fleet.room(target) < volume.bytes:
        room = max(0, fleet.room(target))
        raise UsageError(f"node {target} has room for {room:,} bytes, volume {volume.id} holds {volume.bytes:,}")
    if not fleet.keeps_code(volume, replaced(volume.nodes, source, target)):
        raise UsageError(
            f"replication {fleet.code(volume)} of volume {volume.id} would not be kept with node {target} "
            f"in place of node {source}: choose a node of another place"
        )

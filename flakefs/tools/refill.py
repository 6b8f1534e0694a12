"""Brings every volume back to all its copies: what `flakefs nodes repair` does.

Purpose
    A node that was away, lost its disk, or lost chunks gets back from other nodes what it should have; volumes that
    are short of copies get further ones.

Invariants
    RF1  A node is marked again only when its database is empty, or holds nothing but what FlakeFS made: an address may
         lead to a wrong database. And not when chunks lie there alone: their data may still be brought back.
    RF2  Chunks are copied only from copies whose content has the hash of their name.
    RF3  It can be killed anywhere and run again; it works beside mounts that write.
    RF4  `complete` is said only when every named chunk of every volume was found on, or copied to, every node of a
         volume that satisfies its replication.

Concurrency
    Blocks. Changes of a volume are made under its lease.

Not here
    Copies that are there and broken (tools.scrub). Nodes that do not come back (tools.remove).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bson.objectid import ObjectId
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from flakefs.errors import FlakeError, Refused, Unavailable
from flakefs.format import documents as d
from flakefs.format.records import VolumeRecord
from flakefs.mongo.door import Door
from flakefs.tools import chunks, lost
from flakefs.tools.chunks import Node, Resolve, Stretch
from flakefs.tools.completing import complete, further_nodes, incomplete
from flakefs.tools.fleet import Fleet, open_fleet
from flakefs.tools.lease import VolumeTaken, volume_lease
from flakefs.tools.mend_copies import Copies, named_now
from flakefs.tools.moving import Watch
from flakefs.tools.rate import Rate
from flakefs.tools.reader import Reader
from flakefs.tools.together import seal_together
from flakefs.values import readable

OURS = re.compile(rf"vol_[0-9a-f]{{8}}_\d+(_\w+)?|{d.NODE_MARKER}|system\..*")
"""Collections that FlakeFS makes on a node, of whatever file system."""


@dataclass(slots=True)
class Refilled:
    """What repair_replicas() did."""

    marked: list[int] = field(default_factory=list)
    """Nodes that had lost their mark, and everything else perhaps."""
    chunks: int = 0
    """Copied to nodes that lacked them."""
    bytes: int = 0
    volumes: dict[int, list[int]] = field(default_factory=dict)
    """Volumes that got further copies -> where."""
    waiting: list[str] = field(default_factory=list)
    """What could not be done, in sentences."""
    lost: dict[str, int] = field(default_factory=dict)
    """Path of a file -> number of its chunks that no node has whole."""
    lost_chunks: int = 0

    @property
    def complete(self) -> bool:
        """RF4."""
        return not self.waiting and not self.lost_chunks

    def text(self) -> str:
        lines = [f"node {number} is marked again" for number in self.marked]
        lines.append(f"copied {self.chunks} chunks, {readable(self.bytes)}, to nodes that lacked them")
        lines += [f"volume {volume} has a copy on {_named(nodes)} now" for volume, nodes in self.volumes.items()]
        lines += lost.report(self.lost, self.lost_chunks)
        lines += self.waiting
        lines.append("every chunk has all its copies" if self.complete else "not every chunk has all its copies")
        return "\n".join(lines)


def repair_replicas(
    metadata: Door,
    database: str,
    resolve: Resolve,
    *,
    node: int | None = None,
    force: bool = False,
    watch: Watch | None = None,
    rate: Rate | None = None,
    reserve_bytes: int = 0,
) -> Refilled:
    """All volumes; with *node*, only that node's copies. *force* marks an emptied node although chunks lay there alone.

    Raises NotFormatted, UsageError, Unavailable and Refused (of the metadata server).
    """
    with open_fleet(metadata, database, resolve, reserve_bytes=reserve_bytes) as fleet:
        if node is not None:
            fleet.record(node)
        work = Repair(fleet, node, watch or Watch(), rate)
        work.mark(force)
        work.refill()
        work.complete()
        work.name_lost()
        return work.done


class Repair:
    """The steps of one repair_replicas(), for others that need some of them."""

    def __init__(self, fleet: Fleet, only: int | None, watch: Watch, rate: Rate | None) -> None:
        self.done = Refilled()
        self._fleet = fleet
        self._only = only
        self._watch = watch
        self._rate = rate or Rate(None)
        self._uuid = fleet.format.uuid
        self.copies = Copies(self._uuid, fleet.nodes)
        self._reader = Reader(fleet.door, fleet.database, None)
        self.lost: set[bytes] = set()
        """Names of chunks that no node has whole."""

    # -- marks --

    def mark(self, force: bool) -> None:
        """RF1. A node that may not be used has a `failure` after this."""
        emptied = {}
        for number, node in self._fleet.nodes.items():
            if node.failure is None:
                try:
                    if self._unmarked(node):
                        emptied[number] = node
                except FlakeError as error:
                    node.failure = error
        for number, node in emptied.items():
            alone = self._alone(number, emptied)
            if alone and not force:
                node.failure = Refused(
                    f"node {number} has lost its data, and volumes {', '.join(map(str, alone))} lay there alone: bring "
                    "the data of that database back; if there is none, --force gives those chunks up"
                )
            elif self._only in (None, number):
                self._mark(node)
            else:
                node.failure = Refused(f"node {number} has lost its data: flakefs nodes repair without --node mends it")

    def check_marks(self) -> None:
        """The same for who does not mark: a node without its mark has a `failure` after this."""
        for number, node in self._fleet.nodes.items():
            try:
                if node.failure is None and self._unmarked(node):
                    node.failure = Refused(f"node {number} has lost its data: flakefs nodes repair mends it")
            except FlakeError as error:
                node.failure = error

    def _unmarked(self, node: Node) -> bool:
        """Is its mark gone? Raises Refused when the database is somebody else's."""
        marker = node.reader.one(d.NODE_MARKER, self._uuid)
        if marker is not None:
            if marker.get("node") != node.record.id:
                raise Refused(f"{node.door.name} is node {marker.get('node')}: correct the address")
            return False
        home = node.door.client[node.record.database]
        foreign = [n for n in node.door.run_sync(home.list_collection_names) if not OURS.fullmatch(n)]
        if foreign:
            raise Refused(
                f"{node.door.name} bears no mark of this file system and holds collections of another program "
                f"({', '.join(sorted(foreign)[:3])}): the address leads to a wrong database, correct it"
            )
        return True

    def _alone(self, number: int, emptied: Mapping[int, Node]) -> list[int]:
        """Volumes with chunks that no node has but those that were emptied."""
        return [
            volume.id
            for volume in self._fleet.on(number)
            if volume.chunks
            and all(n in emptied for n in volume.nodes)
            and not self._has_all(volume.id, [emptied[n] for n in volume.nodes])
        ]

    def _has_all(self, volume: int, nodes: Sequence[Node]) -> bool:
        """Do they have all that the index names? A collection alone says nothing: mounts may have made it anew."""
        wanted = {"v": volume}
        for page in self._reader.pages(d.CHUNKS, wanted, fields={"k": 1}, page=chunks.BATCH):
            keys = {entry["k"] for entry in page}
            for node in nodes:
                keys -= chunks.present(node, self._uuid, volume, keys)
            if keys:
                return False
        return True

    def _mark(self, node: Node) -> None:
        """First the collections, as they should be made: whoever writes there makes them as he likes."""
        number = node.record.id
        try:
            for volume in self._fleet.on(number):
                self.copies.create(node, volume.id)
            home = node.door.client.get_database(node.record.database, write_concern=WriteConcern("majority", j=True))
            marker = {"_id": self._uuid, "node": number}

            def insert() -> None:
                with suppress(DuplicateKeyError):  # somebody else repairs, too
                    home[d.NODE_MARKER].insert_one(marker)

            node.door.run_sync(insert)
            self.done.marked.append(number)
        except FlakeError as error:
            node.failure = error

    # -- chunks that copies lack --

    def refill(self) -> None:
        nodes = {n: node for n, node in self._fleet.nodes.items() if self._only in (None, n)}
        taken: set[int] = set()
        for stretch in chunks.compare(self._reader, self._uuid, self._fleet.volumes, nodes):
            self._watch.say(f"volume {stretch.volume} on node {stretch.node}")
            node = nodes[stretch.node]
            if not stretch.missing or node.failure or stretch.volume in taken:
                continue
            try:
                self._fill(node, stretch)
            except VolumeTaken as error:
                taken.add(stretch.volume)
                self.done.waiting.append(str(error))
            except FlakeError as error:
                node.failure = error
        for number, node in nodes.items():
            on = self._fleet.on(number)
            if node.failure and on:
                waits = "1 volume waits" if len(on) == 1 else f"{len(on)} volumes wait"
                self.done.waiting.append(f"{waits} for node {number}: {node.failure}")

    def _fill(self, node: Node, stretch: Stretch) -> None:
        number, id = node.record.id, stretch.volume
        missing = stretch.missing.keys() - chunks.present(node, self._uuid, id, stretch.missing)
        refs = named_now(self._reader, id, [stretch.missing[key] for key in missing])
        refs = [ref for ref in refs if ObjectId(ref.key) in missing]
        if not refs:
            return
        with volume_lease(self._fleet.door, self._fleet.database, id, f"refilling it on node {number}") as lease:
            volume = lease.record()
            if number not in volume.nodes:
                return  # moved meanwhile
            self.copies.create(node, id)
            size = sum(ref.length for ref in refs)
            self._watch.begin(f"volume {id}: {len(refs)} chunks to node {number}", size)

            def advance(count: int, size: int) -> None:
                self._watch.advance(count, size)
                self._rate.spend(size, lease.check)
                lease.check()

            filled = self.copies.fill(node, refs, self.sources(volume), advance)
            self._watch.end()
        self.done.chunks += filled.chunks
        self.done.bytes += filled.bytes
        lacking = named_now(self._reader, id, [ref.hash for ref in filled.lacking])
        silent = [n for n in volume.nodes if not self._fleet.answers(n)]
        if lacking and silent:
            self.done.waiting.append(
                f"volume {id}: {len(lacking)} missing on node {number} wait for {_named(silent)}, which may have them"
            )
        else:
            self.lost |= {ref.hash for ref in lacking}

    def sources(self, volume: VolumeRecord) -> list[int]:
        """Nodes to ask: a copy that no document names (a move was killed) may have what the others have lost."""
        return [*volume.nodes, *(number for number in self._fleet.nodes if number not in volume.nodes)]

    # -- volumes that are short of copies --

    def complete(self) -> None:
        self._fleet.refresh()
        short = []
        for volume in sorted(self._fleet.volumes.values(), key=lambda volume: volume.id):
            if self._only is not None and self._only not in volume.nodes:
                continue
            if not volume.nodes:
                self.lost |= lost.chunks_in(self._reader, [volume.id])
            elif not any(number in self._fleet.records for number in volume.nodes):
                said = f"volume {volume.id} lies on {_named(list(volume.nodes))}, of which there is no document"
                self.done.waiting.append(f"{said}: run flakefs fsck")
            elif incomplete(self._fleet, volume):
                try:
                    further_nodes(self._fleet, volume)
                    short.append(volume.id)
                except Unavailable as error:
                    self.done.waiting.append(str(error))
        try:
            seal_together(self._fleet.door, self._fleet.database, short, self._watch.say)
        except Unavailable as error:
            self.done.waiting.append(str(error))
            return
        for number in short:
            try:
                added = complete(self._fleet, number, self._watch, self._rate)
                if added:
                    self.done.volumes[number] = added
            except FlakeError as error:
                self.done.waiting.append(str(error))

    def name_lost(self) -> None:
        self.done.lost_chunks = len(self.lost)
        self.done.lost = lost.paths_of(self._reader, self.lost)


def _named(nodes: list[int]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(map(str, nodes))

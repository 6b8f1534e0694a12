"""The map of nodes and volumes: where chunks are, and how full everything is.

Purpose
    Follows the documents of nodes and volumes, keeps a connection to every node, and counts what lies in each, what is
    in flight included, so that the balancer sees the present. Says in the session's document what is known here.

Invariants
    VO3  A node's figures are: what the volume documents count, plus what was stored and is not counted there yet,
         plus what is being stored. A commit that a look cannot have seen is never forgotten; it may count twice until
         the next look.
    VO4  A session's document names a map epoch only when everything that was planned before is over (engine.epochs).

Concurrency
    Trio thread, except the functions that end in _sync. The figures change between awaits only. A probe of a node is
    done once however many tasks want it.

Not here
    Making volumes (engine.growing), what is sent to a node (engine.nodes), where new chunks go (engine.placement).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import trio
from bson.int64 import Int64
from pymongo.write_concern import WriteConcern

from flakefs.engine.epochs import Epochs
from flakefs.engine.nodes import Node
from flakefs.engine.options import EngineOptions
from flakefs.engine.topology import Shelf, Standing, place_of, standing
from flakefs.errors import Damaged, FlakeError, Unavailable
from flakefs.format.documents import COUNTERS, FORMAT, NODES, SESSIONS, VOLUMES, volume_collection
from flakefs.format.placement import satisfies
from flakefs.format.records import FormatRecord, NodeRecord, VolumeRecord, read_node, read_volume
from flakefs.mongo.door import Door

log = logging.getLogger(__name__)

DISK_SECONDS = 5.0
"""A node's disk is looked at this often when little is written to it,"""
DISK_BYTES = 16 * 1024 * 1024
"""and at every poll after this much."""
MAP = "map"
"""The counter of map epochs, and the field of a session's document."""


class Volume:
    """A volume document and what it does not count yet."""

    __slots__ = ("collection", "counted", "extra", "nodes", "record", "reserved", "whole")

    def __init__(self, record: VolumeRecord, collection: str) -> None:
        self.record = record
        self.collection = collection
        self.nodes: tuple[Node, ...] = ()
        """The main one first."""
        self.whole = False
        """Do the nodes keep the volume's code?"""
        self.extra = [0, 0]
        """(chunks, bytes) stored that the record does not count (VO3)."""
        self.counted = [0, 0]
        """The part of `extra` whose commit happened since the last look began."""
        self.reserved = [0, 0]
        """(chunks, bytes) being stored."""

    @property
    def chunks(self) -> int:
        return self.record.chunks + self.extra[0] + self.reserved[0]

    @property
    def bytes(self) -> int:
        return self.record.bytes + self.extra[1] + self.reserved[1]

    def add(self, figures: list[int], chunks: int, stored_bytes: int) -> None:
        """Change `extra` or `reserved`, in the nodes' figures too."""
        figures[0] += chunks
        figures[1] += stored_bytes
        for node in self.nodes:
            node.chunks += chunks
            node.bytes += stored_bytes


class Documents(NamedTuple):
    """What one look reads, in this order (EP1)."""

    epoch: int
    replication: str
    nodes: list[NodeRecord]
    volumes: list[VolumeRecord]


class VolumeMap:
    def __init__(
        self,
        metadata: Door,
        database: str,
        format: FormatRecord,
        options: EngineOptions,
        *,
        resolve: Callable[[NodeRecord], str],
        session: int | None = None,
    ) -> None:
        """*session*: the epoch of the session that acknowledges map epochs, if any."""
        # Dependencies
        self._metadata = metadata
        self._database = metadata.client[database]
        self._resolve = resolve
        # Constant after construction
        self._format = format
        self.options = options
        self._session = session
        # Mutable; changed only between awaits
        self.replication = format.replication
        """The code of chunks whose files ask for no other."""
        self.epochs = Epochs()
        self.version = 0
        """Raised whenever nodes or volumes may have changed,"""
        self._changed = trio.Event()
        """and then this is set and replaced."""
        self.nodes: dict[int, Node] = {}
        self._volumes: dict[int, Volume] = {}
        self._shelves: dict[Shelf, list[Volume]] = {}
        self.unusable: dict[int, tuple[NodeRecord, FlakeError]] = {}
        """Nodes whose address makes no sense here."""
        self._retired: list[Node] = []
        """Connections to close at the end: somebody may still use them."""
        self._looking = trio.Lock()
        self._looks = 0
        """Looks begun; `_look_failure` is the last one's."""
        self._look_failure: FlakeError | None = None

    # -- following the documents --

    async def look(self) -> None:
        """Read the documents of nodes and volumes now. Calls that wait while one runs share the next."""
        before = self._looks
        async with self._looking:
            if self._looks == before:
                self._looks += 1
                self._look_failure = None
                try:
                    await self._look()
                except FlakeError as error:
                    self._look_failure = error
                except BaseException:
                    self._looks -= 1
                    raise
            if self._look_failure is not None:
                raise self._look_failure.with_traceback(None)

    async def _look(self) -> None:
        settled = {id: tuple(volume.counted) for id, volume in self._volumes.items()}
        found = await self._metadata.run(self._read_sync, abandon=True)
        self.replication = found.replication
        self._take_nodes(found.nodes)
        for record in found.volumes:
            volume = self._volumes.get(record.id)
            if volume is None:
                self._volumes[record.id] = Volume(record, volume_collection(self._format.uuid, record.id))
            else:
                volume.record = record
        for id, (chunks, stored_bytes) in settled.items():
            volume = self._volumes[id]
            for figures in (volume.extra, volume.counted):
                figures[0] -= chunks
                figures[1] -= stored_bytes
        for id in self._volumes.keys() - {record.id for record in found.volumes}:
            del self._volumes[id]
        self._count()
        self.epochs.looked(found.epoch)
        self.tell()

    def _read_sync(self) -> Documents:
        home = self._database
        counter = home[COUNTERS].find_one({"_id": MAP})
        format = home[FORMAT].find_one({"_id": "format"}, {"replication": 1})
        return Documents(
            0 if counter is None else int(counter["next"]) - 1,
            self._format.replication if format is None else str(format["replication"]),
            [read_node(document) for document in home[NODES].find({})],
            [read_volume(document) for document in home[VOLUMES].find({})],
        )

    def _take_nodes(self, records: Sequence[NodeRecord]) -> None:
        self.unusable.clear()
        for record in records:
            node = self.nodes.get(record.id)
            if node and (node.record.uri, node.record.database) == (record.uri, record.database):
                node.record = record
                continue
            if node:
                self._retired.append(self.nodes.pop(record.id))
            try:
                self.nodes[record.id] = Node(
                    record,
                    self._format.uuid,
                    self._resolve,
                    deadline_seconds=self.options.deadline_seconds,
                    threads=self.options.threads,
                )
            except FlakeError as error:
                self.unusable[record.id] = (record, error)
        for id in self.nodes.keys() - {record.id for record in records}:
            self._retired.append(self.nodes.pop(id))

    def _count(self) -> None:
        """The nodes' figures anew, from the volumes (VO3), and which volume takes what."""
        for node in self.nodes.values():
            node.chunks = node.bytes = 0
        self._shelves.clear()
        for volume in self._volumes.values():
            record = volume.record
            volume.nodes = tuple(self.nodes[id] for id in record.nodes if id in self.nodes)
            for node in volume.nodes:
                node.chunks += volume.chunks
                node.bytes += volume.bytes
            if record.state == "writable" and record.nodes and len(volume.nodes) == len(record.nodes):
                volume.whole = satisfies(record.code, [place_of(node.record) for node in volume.nodes])
                self._shelves.setdefault(Shelf(record.code, record.own), []).append(volume)

    def shelf(self, shelf: Shelf) -> Sequence[Volume]:
        """The writable volumes for these chunks, all of whose nodes are known here; whether they answer or not."""
        return self._shelves.get(shelf, ())

    def takers(self) -> list[Node]:
        """The nodes that take new chunks now."""
        nodes = self.nodes.values()
        return [node for node in nodes if standing(node, nodes, self.options)[0] is Standing.TAKES]

    def tell(self) -> None:
        """Nodes or volumes are not what they were."""
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    def change(self) -> trio.Event:
        """Set at the next tell()."""
        return self._changed

    async def poll_forever(self) -> None:
        """Look again and again; a node that does not answer holds nobody up."""
        async with trio.open_nursery() as nursery:
            if self._session is not None:
                nursery.start_soon(self.epochs.run_forever, self._acknowledge)
            while True:
                try:
                    await self.look()
                except FlakeError as error:
                    log.debug("nodes and volumes could not be read: %s", error)
                except Exception:
                    log.exception("bug in FlakeFS while looking at nodes and volumes")
                now = trio.current_time()
                for node in list(self.nodes.values()):
                    due = node.problem or node.written_since_look > DISK_BYTES or now >= node.next_disk_look
                    if node.probing is None and due:
                        nursery.start_soon(self._probe_alive, node)
                await trio.sleep(self.options.poll_seconds)

    async def _acknowledge(self, epoch: int) -> None:
        """VO4."""
        sessions = self._database.get_collection(SESSIONS, write_concern=WriteConcern("majority"))
        update = {"$set": {MAP: Int64(epoch)}}
        await self._metadata.run(lambda: sessions.update_one({"_id": self._session}, update))

    async def _probe_alive(self, node: Node) -> None:
        try:
            await self.probe(node)
        except Exception:
            log.exception("bug in FlakeFS while asking %s", node.title)

    async def probe(self, node: Node) -> None:
        """Ask a node how it is. Its `problem` says what came of it."""
        if node.probing is not None:
            await node.probing.wait()
            return
        done = node.probing = trio.Event()
        written = node.written_since_look
        deadline = node.door.deadline_seconds
        if len(self.nodes) > 1:  # others may do instead, and somebody may be waiting to hear of them
            deadline = min(deadline, self.options.node_patience_seconds)
        try:
            disk = await node.probe(deadline)
            if node.problem is not None:
                log.info("%s answers again", node.title)
            node.problem = None
            node.confirmed = False
            node.disk = disk
            node.written_since_look -= written
            node.next_disk_look = trio.current_time() + DISK_SECONDS
        except FlakeError as error:
            node.confirmed = True
            self.suspect(node, error)
        finally:
            node.asked = True
            node.probing = None
            done.set()
            self.tell()

    async def look_at_all(self) -> None:
        """Documents and all nodes, now; returns when every node answered or failed to."""
        await self.look()
        async with trio.open_nursery() as nursery:
            for node in list(self.nodes.values()):
                nursery.start_soon(self.probe, node)

    def suspect(self, node: Node, error: FlakeError) -> None:
        """*node* failed: no new chunks for it until it answers a probe."""
        if node.problem is None:
            log.info("%s takes no new chunks until it answers: %s", node.title, error)
        node.suspect(error)
        self.tell()

    async def close(self) -> None:
        """End all connections."""

        def close_sync() -> None:
            for node in (*self.nodes.values(), *self._retired):
                node.door.close()

        await trio.to_thread.run_sync(close_sync)

    # -- where chunks are --

    async def volume(self, id: int) -> Volume:
        """The volume of that id; raises Damaged when there is none."""
        volume = self._volumes.get(id)
        if volume is None or not volume.nodes:
            await self.look()  # made by another session a moment ago
            volume = self._volumes.get(id)
            if volume is None:
                raise Damaged(f"there is no volume {id}, though a file names a chunk in it: run flakefs fsck")
            if not volume.nodes:
                self._raise_nodeless(volume)
        return volume

    def _raise_nodeless(self, volume: Volume) -> None:
        for id in volume.record.nodes:
            if id in self.unusable:
                raise Unavailable(f"volume {volume.record.id} lies on node {id}: {self.unusable[id][1]}")
        raise Damaged(f"volume {volume.record.id} lies on no node that there is: run flakefs fsck")

    @property
    def silent_since(self) -> float | None:
        """Since when the server that says where volumes are has not answered (mongo.door)."""
        return self._metadata.silent_since

    def volume_nowait(self, id: int) -> Volume | None:
        return self._volumes.get(id)

    def volumes(self) -> Collection[Volume]:
        return self._volumes.values()

    # -- figures (VO3); the table's ledger is built on these --

    def reserve(self, volume: Volume, chunks: int, stored_bytes: int) -> None:
        """In flight, or (negative) no more."""
        volume.add(volume.reserved, chunks, stored_bytes)

    def added(self, id: int, chunks: int, stored_bytes: int) -> None:
        volume = self._volumes.get(id)
        if volume is not None:
            volume.add(volume.extra, chunks, stored_bytes)
            if chunks > 0:
                for node in volume.nodes:
                    node.written_since_look += stored_bytes

    def counted(self, id: int, stored_bytes: int) -> None:
        volume = self._volumes.get(id)
        if volume is not None:
            volume.counted[0] += 1
            volume.counted[1] += stored_bytes

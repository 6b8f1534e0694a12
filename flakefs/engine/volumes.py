"""The map of nodes and volumes: where chunks are, and where new ones go.

Purpose
    Follows the documents of nodes and volumes, keeps a connection to every node, makes and seals volumes, and counts
    what lies in each, what is in flight included, so that the balancer sees the present.

Invariants
    VO1  A volume's document is written after its collections exist on all its nodes.
    VO2  Every active node that answers and has room has a writable volume within about poll_seconds.
    VO3  A node's figures are: what the volume documents count, plus what was stored and is not counted there yet,
         plus what is being stored. A commit that a look cannot have seen is never forgotten; it may count twice until
         the next look.

Concurrency
    Trio thread, except the functions that end in _sync. The figures change between awaits only. A probe of a node is
    done once however many tasks want it.

Not here
    What is sent to a node (engine.nodes), where new chunks go (engine.placement).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import trio
from pymongo.write_concern import WriteConcern

from flakefs.engine.nodes import Disk, Node
from flakefs.engine.numbers import next_number
from flakefs.engine.options import EngineOptions
from flakefs.errors import Damaged, FlakeError, Unavailable
from flakefs.format.documents import NODES, VOLUMES, volume_collection
from flakefs.format.records import FormatRecord, NodeRecord, VolumeRecord, read_node, read_volume
from flakefs.mongo.door import Door

log = logging.getLogger(__name__)

DISK_SECONDS = 5.0
"""A node's disk is looked at this often when little is written to it,"""
DISK_BYTES = 16 * 1024 * 1024
"""and at every poll after this much."""
DURABLE = WriteConcern(w="majority", j=True)


class Volume:
    """A volume document and what it does not count yet."""

    __slots__ = ("collection", "counted", "extra", "nodes", "record", "reserved")

    def __init__(self, record: VolumeRecord, collection: str) -> None:
        self.record = record
        self.collection = collection
        self.nodes: tuple[Node, ...] = ()
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


def why_full(node: Node, nodes: Iterable[Node], options: EngineOptions) -> str | None:
    """Why *node*, one of *nodes*, has no room for chunks; None when it has."""
    capacity = node.record.capacity
    if capacity is not None and node.bytes >= capacity:
        return f"node {node.record.id} holds {node.bytes:,} of the {capacity:,} bytes of its capacity"
    disk = node.disk
    if disk is None:
        return None
    free = disk.free - sum(n.written_since_look for n in nodes if n.disk is not None and disk.same_as(n.disk))
    if free < options.reserve_bytes:
        return (
            f"the disk of node {node.record.id} has {max(0, free):,} bytes free, less than the reserve of "
            f"{options.reserve_bytes:,}"
        )
    return None


class VolumeMap:
    def __init__(
        self,
        metadata: Door,
        database: str,
        format: FormatRecord,
        options: EngineOptions,
        *,
        resolve: Callable[[NodeRecord], str],
        writable: bool,
    ) -> None:
        # Dependencies
        self._metadata = metadata
        self._database = metadata.client[database]
        self._resolve = resolve
        # Constant after construction
        self._format = format
        self.options = options
        self._writable = writable
        # Mutable; changed only between awaits
        self.nodes: dict[int, Node] = {}
        self._volumes: dict[int, Volume] = {}
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
        nodes, volumes = await self._metadata.run(self._read_sync, abandon=True)
        self._take_nodes(nodes)
        for record in volumes:
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
        for id in self._volumes.keys() - {record.id for record in volumes}:
            del self._volumes[id]
        self._count()

    def _read_sync(self) -> tuple[list[NodeRecord], list[VolumeRecord]]:
        return (
            [read_node(document) for document in self._database[NODES].find({})],
            [read_volume(document) for document in self._database[VOLUMES].find({})],
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
        """The nodes' figures anew, from the volumes (VO3)."""
        for node in self.nodes.values():
            node.chunks = node.bytes = 0
        for volume in self._volumes.values():
            volume.nodes = tuple(self.nodes[id] for id in volume.record.nodes if id in self.nodes)
            for node in volume.nodes:
                node.chunks += volume.chunks
                node.bytes += volume.bytes

    async def poll_forever(self) -> None:
        """Look again and again; a node that does not answer holds nobody up."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    await self.look()
                except FlakeError as error:
                    log.debug("nodes and volumes could not be read: %s", error)
                except Exception:
                    log.exception("bug in FlakeFS while looking at nodes and volumes")
                now = trio.current_time()
                for node in list(self.nodes.values()):
                    if node.probing is None and self._due(node, now):
                        nursery.start_soon(self._probe_alive, node)
                await trio.sleep(self.options.poll_seconds)

    async def _probe_alive(self, node: Node) -> None:
        try:
            await self.probe(node)
        except Exception:
            log.exception("bug in FlakeFS while asking %s", node.title)

    def _due(self, node: Node, now: float) -> bool:
        if node.problem or node.written_since_look > DISK_BYTES or now >= node.next_disk_look:
            return True
        return self._writable and self._lacks_volume(node)

    async def probe(self, node: Node) -> None:
        """Ask a node how it is, and give it a volume when it lacks one. Its `problem` says what came of it."""
        if node.probing is not None:
            await node.probing.wait()
            return
        done = node.probing = trio.Event()
        written = node.written_since_look
        try:
            disk = await node.probe()
            if node.problem is not None:
                log.info("%s answers again", node.title)
            node.problem = None
            node.disk = disk
            node.written_since_look -= written
            node.next_disk_look = trio.current_time() + DISK_SECONDS
            if self._writable and self._lacks_volume(node):
                await self._give_volume(node)
        except FlakeError as error:
            self.suspect(node, error)
        finally:
            node.asked = True
            node.probing = None
            done.set()

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

    async def close(self) -> None:
        """End all connections."""

        def close_sync() -> None:
            for node in (*self.nodes.values(), *self._retired):
                node.door.close()

        await trio.to_thread.run_sync(close_sync)

    # -- making volumes --

    def _current(self, node: Node) -> Volume | None:
        """The newest writable volume that lies on this node alone."""
        mine = [
            v for v in self._volumes.values() if v.record.nodes == (node.record.id,) and v.record.state == "writable"
        ]
        return max(mine, key=lambda volume: volume.record.id, default=None)

    def _lacks_volume(self, node: Node) -> bool:
        if node.record.state != "active" or node.disk is None or why_full(node, self.nodes.values(), self.options):
            return False
        current = self._current(node)
        return current is None or current.bytes >= self.options.volume_max_bytes

    async def _give_volume(self, node: Node) -> None:
        """VO1, then seal what is full."""
        full = self._current(node)

        def make_sync() -> VolumeRecord:
            id = next_number(self._metadata, self._database.name, "volume")
            record = VolumeRecord(id=id, nodes=(node.record.id,), created=time.time_ns())
            name = volume_collection(self._format.uuid, id)
            node.door.run_sync(lambda: node.create_volume_sync(name))
            volumes = self._database.get_collection(VOLUMES, write_concern=DURABLE)
            volumes.insert_one(record.document())
            if full is not None:
                volumes.update_one({"_id": full.record.id, "state": "writable"}, {"$set": {"state": "sealed"}})
            return record

        record = await self._metadata.run(make_sync)
        log.debug("%s got volume %d", node.title, record.id)
        await self.look()

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

    def disks(self) -> list[Disk]:
        """Every disk once."""
        found: list[Disk] = []
        for node in self.nodes.values():
            if node.disk is not None and not any(node.disk.same_as(disk) for disk in found):
                found.append(node.disk)
        return found

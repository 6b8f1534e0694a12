"""Making volumes: every node that takes chunks is the main one of a volume that does.

Purpose
    Watches the map, and gives each node that takes chunks a volume with partners as the replication code wants, when it
    has none whose nodes all take chunks, or only full ones. `provide` is for the writer that finds no volume at all.

Invariants
    VO1  A volume's document is written after its collections exist on all its nodes.
    VO2  Every node that takes chunks, and has the partners that the file system's code asks for, is the main one of a
         volume that takes chunks within about poll_seconds; the same for every code of its own that somebody has
         written with since the engine was opened.
    VO6  A session says that it knows a map only when no volume planned with an older one is in the making: a node that
         is being drained gets none behind the tool's back.
    VO5  A full volume is sealed only after another one was made, and the map epoch is raised after the document.

Concurrency
    Trio thread, except the functions that end in _sync. What is to be made is planned without an await and noted, so
    that nothing is made twice; several sessions may do so, and all use both volumes.

Not here
    Which volume takes a chunk (engine.placement), the rules of codes (format.placement).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import trio
from bson.int64 import Int64
from pymongo.write_concern import WriteConcern

from flakefs.engine.epochs import Ticket
from flakefs.engine.nodes import Node
from flakefs.engine.numbers import next_number
from flakefs.engine.offers import current_of, is_full, is_main_here
from flakefs.engine.topology import Shelf, capacity_of, load_of, place_of
from flakefs.engine.volumes import MAP, Volume, VolumeMap
from flakefs.errors import FlakeError
from flakefs.format.documents import VOLUMES, volume_collection
from flakefs.format.placement import Place, choose, choose_most, copies, satisfiable
from flakefs.format.records import VolumeRecord
from flakefs.mongo.door import Door

log = logging.getLogger(__name__)

EAGER_SECONDS = 0.3
"""So long who needs a volume waits for nodes that were never asked: a better partner may be among them."""
PARTNER_WEIGHT = 0.05
"""Being in one more volume counts as much as this share of the capacity: equally full nodes get partners evenly."""
DURABLE = WriteConcern(w="majority", j=True)


class Order(NamedTuple):
    """A volume to be made."""

    shelf: Shelf
    nodes: tuple[Node, ...]
    instead: Volume | None
    """The full one that it takes over from."""


class Grower:
    def __init__(self, map: VolumeMap, metadata: Door, database: str, uuid: str, nursery: trio.Nursery) -> None:
        # Dependencies
        self._map = map
        self._metadata = metadata
        self._nursery = nursery
        # Constant after construction
        self._database = metadata.client[database]
        self._uuid = uuid
        # Mutable; changed only between awaits
        self._own: set[Shelf] = set()
        """Shelves of codes that files asked for."""
        self._making: dict[tuple[Shelf, int], trio.Event] = {}
        """By shelf and main node."""
        self._warned: set[Shelf] = set()
        self.failure: FlakeError | None = None
        """Why the last attempt came to nothing, if it did;"""
        self._not_before = 0.0
        """the next one waits for a moment then."""

    async def run_forever(self) -> None:
        """VO2."""
        while True:
            change = self._map.change()
            try:
                nodes = self._map.nodes.values()
                # a failure of a moment is no reason to make volumes that are not needed a moment later
                if all(node.asked and (node.problem is None or node.confirmed) for node in nodes):
                    self._start(fewer=self._map.options.fewer_copies == "warn")
            except Exception:
                log.exception("bug in FlakeFS while planning volumes")
            await change.wait()

    async def provide(self, shelves: Iterable[Shelf], enough: Callable[[], bool]) -> None:
        """Look for nodes, and make volumes for *shelves*, until there is *enough* or everything was tried."""
        self._own.update(shelf for shelf in shelves if shelf.own)
        await self._map.look()
        waiting = set(self._map.nodes.values())
        for node in list(waiting):
            self._nursery.start_soon(self._ask, node, waiting)
        begun = trio.current_time()
        while not enough():
            change = self._map.change()
            if not waiting or all(node.asked for node in waiting) or trio.current_time() > begun + EAGER_SECONDS:
                self._start(fewer=not waiting and self._map.options.fewer_copies == "warn")
            if not waiting and not self._making:
                return
            with trio.move_on_after(EAGER_SECONDS):
                await change.wait()

    async def _ask(self, node: Node, waiting: set[Node]) -> None:
        try:
            await self._map.probe(node)
        except Exception:
            log.exception("bug in FlakeFS while asking %s", node.title)
        finally:
            waiting.discard(node)
            self._map.tell()

    # -- planning, without an await --

    def _start(self, *, fewer: bool) -> None:
        """Begin to make what is missing."""
        if trio.current_time() < self._not_before:
            return
        for order in self._plan(fewer=fewer):
            self._making[order.shelf, order.nodes[0].record.id] = trio.Event()
            self._nursery.start_soon(self._make, order, self._map.epochs.begin())

    def _plan(self, *, fewer: bool) -> list[Order]:
        map = self._map
        takers = map.takers()
        by_place = {place_of(node.record): node for node in takers}
        weight = self._weights(takers)
        orders = []
        for shelf in (Shelf(map.replication, False), *self._own):
            possible = satisfiable(shelf.code, by_place)
            if possible:
                self._warned.discard(shelf)
            for place, node in by_place.items():
                if (shelf, node.record.id) in self._making or not is_main_here(node, map):
                    continue
                chosen = choose(shelf.code, place, by_place, weight)
                if chosen is None and fewer and not possible:
                    chosen = choose_most(shelf.code, place, by_place, weight)
                current = current_of(map, shelf, node, takers, fewer=fewer and not possible)
                if chosen is None or (current is not None and not is_full(current, map)):
                    continue
                nodes = tuple(by_place[other] for other in chosen)
                for partner in nodes:
                    weight.volumes[partner.record.id] += 1
                orders.append(Order(shelf, nodes, current))
                if len(nodes) < copies(shelf.code):
                    self._warn(shelf, len(nodes))
        return orders

    def _weights(self, takers: Collection[Node]) -> Weight:
        volumes: Counter[int] = Counter()
        for shelf in (Shelf(self._map.replication, False), *self._own):
            for volume in self._map.shelf(shelf):
                volumes.update(volume.record.nodes)
        largest = max((capacity_of(node) for node in takers), default=1)
        return Weight(
            {node.record.id: load_of(node) for node in takers},
            {node.record.id: largest / max(1, capacity_of(node)) for node in takers},
            volumes,
        )

    def _warn(self, shelf: Shelf, copies: int) -> None:
        if shelf not in self._warned:
            self._warned.add(shelf)
            log.warning(
                "the nodes that take chunks cannot keep replication %s: new chunks get %d %s, which flakefs nodes "
                "repair completes later",
                shelf.code,
                copies,
                "copy" if copies == 1 else "copies",
            )

    # -- making --

    async def _make(self, order: Order, ticket: Ticket) -> None:
        try:
            await self._make_safely(order)
            self.failure = None
        except FlakeError as error:
            self.failure = error
            self._not_before = trio.current_time() + self._map.options.poll_seconds
            log.debug("no volume could be made: %s", error)
        except Exception:
            log.exception("bug in FlakeFS while making a volume")
        finally:
            self._map.epochs.end(ticket)  # VO6
            self._making.pop((order.shelf, order.nodes[0].record.id)).set()
            self._map.tell()

    async def _make_safely(self, order: Order) -> None:
        """VO1, VO5."""
        id = await self._metadata.run(lambda: next_number(self._metadata, self._database.name, "volume"))
        name = volume_collection(self._uuid, id)
        failures: list[FlakeError] = []

        async def create(node: Node) -> None:
            deadline = node.door.deadline_seconds
            if len(self._map.nodes) > len(order.nodes):
                deadline = min(deadline, 2 * self._map.options.node_patience_seconds)
            try:
                await node.door.run(lambda: node.create_volume_sync(name), deadline_seconds=deadline)
            except FlakeError as error:
                failures.append(error)
                self._map.suspect(node, error)

        async with trio.open_nursery() as nursery:
            for node in order.nodes:
                nursery.start_soon(create, node)
        if failures:
            raise failures[0]
        record = VolumeRecord(
            id=id,
            nodes=tuple(node.record.id for node in order.nodes),
            code=order.shelf.code,
            own=order.shelf.own,
            created=time.time_ns(),
        )
        await self._metadata.run(lambda: self._publish_sync(record, order.instead))
        log.debug("volume %d was made on nodes %s", id, ", ".join(map(str, record.nodes)))
        await self._map.look()

    def _publish_sync(self, record: VolumeRecord, full: Volume | None) -> None:
        volumes = self._database.get_collection(VOLUMES, write_concern=DURABLE)
        volumes.insert_one(record.document())
        if full is None:
            return
        sealing = {"_id": full.record.id, "state": "writable"}
        if volumes.update_one(sealing, {"$set": {"state": "sealed"}}).matched_count:
            epoch = next_number(self._metadata, self._database.name, MAP)
            volumes.update_one({**sealing, "state": "sealed"}, {"$set": {"sealed_at": Int64(epoch)}})


class Weight:
    """How much a node has to bear: the share of its capacity that is taken, and the volumes that it is in."""

    def __init__(self, loads: dict[int, float], costs: dict[int, float], volumes: Counter[int]) -> None:
        self._loads = loads
        self._costs = costs
        """Of one more volume: more for the small ones."""
        self.volumes = volumes

    def __call__(self, place: Place) -> float:
        node = place.node
        return self._loads[node] + PARTNER_WEIGHT * self._costs[node] * self.volumes[node]

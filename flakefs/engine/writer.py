"""Storing blocks: what has to be written, and where, until it is.

Purpose
    `store` gives blocks their refs. A batch costs one thread hop for the hashes (none when it is small) and one for
    each volume of one copy that takes part (engine.inserting).

Invariants
    WR1  A block is pinned before its hash is looked up and has its pin until it is settled, or lost it with an error.
    WR2  Of all blocks with one content, one store() looks up and writes at a time; the others wait for it.
    WR3  An insert that failed counts as unknown: its chunks are written again under new keys. Bytes that it may have
         left are deleted if that is possible, else they are a leak.
    WR4  When a store() ends, in whatever way, no entry is left BUSY on its behalf.
    WR5  A failed replica costs no error while other nodes can take the chunks: they go to another volume, as a whole.

Concurrency
    Any number of store() at once. Between the hash and the pins, between a plan and its ticket, and between the end of
    the inserts and their entry in the table, there is no await. A cancelled store() ends after the calls that are under
    way.

Not here
    The states of a chunk (engine.table), durability (engine.barrier), where chunks go (engine.placement), what one
    volume is sent (engine.inserting).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import trio

from flakefs.engine.clock import ServerClock
from flakefs.engine.growing import Grower
from flakefs.engine.inserting import Inserter, Item, Outcome
from flakefs.engine.placement import Placement
from flakefs.engine.table import BUSY, Entry, Table
from flakefs.engine.topology import Shelf
from flakefs.engine.volumes import Volume, VolumeMap
from flakefs.errors import FlakeError, Unavailable
from flakefs.format.hashing import chunk_hash, chunk_name
from flakefs.mongo.door import Door
from flakefs.values import Block, ChunkRef

INLINE_HASH_BYTES = 128 * 1024
"""Hashed on the trio thread up to this size: 20 us, where a hop costs 80."""
RUN_BYTES = 1024 * 1024
"""Blocks that follow each other go to one volume up to this sum, so that small ones share an insert."""
PATIENCE = 2.0
"""A store() or harden() begins no further try after this many deadlines."""
HURRIES = 2
"""After so many failures a node has its whole deadline, whoever else there is: the nodes may be slow, not silent."""
RETRY_SECONDS = 0.1
"""Between two questions whether any node is back; when none is after a deadline, that is the answer."""


Plan = list[tuple[Volume, list[Item]]]
"""Volumes and what each shall take."""


class Flight:
    """The work of one store() on the entries it claimed."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: FlakeError | None = None


class Writer:
    def __init__(
        self,
        metadata: Door,
        database: str,
        codec: str,
        table: Table,
        map: VolumeMap,
        placement: Placement,
        grower: Grower,
        clock: ServerClock,
        discard: Callable[[ChunkRef], None],
    ) -> None:
        # Dependencies
        self._table = table
        self._map = map
        self._placement = placement
        self._grower = grower
        self._discard = discard
        self._inserter = Inserter(metadata, database, codec, map.options, placement, clock)
        # Constant after construction
        self._hashers = trio.CapacityLimiter(map.options.threads)
        # Mutable; changed only between awaits
        self._taken: dict[Block, Flight] = {}
        """Blocks without ref that somebody works on, and whose work it is."""
        self._wanted: list[dict[Block, None]] = []
        """What the running store() calls want; dropped blocks are taken out."""
        self.stored_chunks = 0
        self.stored_bytes = 0
        self.duplicates = 0

    async def store(self, blocks: Iterable[Block], *, at_once: bool = False) -> None:
        """Every block has its ref and a pin on return, except those that were dropped meanwhile. *at_once*: what this
        call writes is not looked up, and durable on return.
        """
        wanted = {block: None for block in blocks if block.ref is None}
        self._wanted.append(wanted)
        try:
            while True:
                mine: list[Block] = []
                others: dict[Flight, None] = {}
                for block in wanted:
                    if block.ref is None:
                        flight = self._taken.get(block)
                        if flight is None:
                            mine.append(block)
                        else:
                            others[flight] = None
                if mine:
                    await self._store_mine(mine, wanted, at_once)
                elif others:
                    for flight in others:
                        await flight.done.wait()
                        if flight.error is not None:
                            raise flight.error.with_traceback(None)
                else:
                    return
        finally:
            self._wanted = [other for other in self._wanted if other is not wanted]

    def forget(self, block: Block) -> None:
        """*block* was dropped: a store() that has not pinned it yet shall not."""
        self._taken.pop(block, None)
        for wanted in self._wanted:
            wanted.pop(block, None)

    async def _store_mine(self, blocks: list[Block], wanted: dict[Block, None], at_once: bool) -> None:
        flight = Flight()
        for block in blocks:
            assert block.sealed, "stored before it was sealed"
            assert block.data is not None, "durable without a ref"
            self._taken[block] = flight
        items: list[Item] = []
        try:
            names = await self._names(blocks)
            for block, name in zip(blocks, names, strict=True):  # no await until all are pinned (WR1)
                if block not in wanted:
                    continue
                entry, claimed = self._table.pin(block, name)
                if claimed:
                    assert block.data is not None
                    entry.owner = flight
                    items.append(Item(entry, block.data))
                    continue
                self.duplicates += 1
                if entry.state is BUSY:
                    assert isinstance(entry.owner, Flight)
                    self._taken[block] = entry.owner
                else:
                    del self._taken[block]
            await self._settle_items(items, look_up=not at_once, journaled=at_once)
        except FlakeError as error:
            flight.error = error
            raise
        finally:
            self._finish(flight, items, blocks)

    async def rewrite(self, entries: Sequence[tuple[Entry, bytes | bytearray]]) -> None:
        """Write entries again that table.lost() made BUSY; those that could not be written are as they were."""
        flight = Flight()
        items = [Item(entry, data) for entry, data in entries]
        for item in items:
            item.entry.owner = flight
        try:
            await self._settle_items(items, look_up=False, journaled=False)
        except FlakeError as error:
            flight.error = error
            raise
        finally:
            self._finish(flight, items, ())

    def _finish(self, flight: Flight, items: Iterable[Item], blocks: Iterable[Block]) -> None:
        """WR4."""
        for item in items:
            if item.entry.state is BUSY and item.entry.owner is flight:
                for block in item.entry.blocks:
                    self._taken.pop(block, None)
                self._table.failed(item.entry)
        for block in blocks:
            if self._taken.get(block) is flight:
                del self._taken[block]
        flight.done.set()

    async def _names(self, blocks: Sequence[Block]) -> list[bytes]:
        contents = [block.data for block in blocks if block.data is not None]
        if sum(map(len, contents)) <= INLINE_HASH_BYTES:
            hashes = [chunk_hash(content) for content in contents]
        else:
            hashes = await trio.to_thread.run_sync(lambda: [chunk_hash(c) for c in contents], limiter=self._hashers)
        return [chunk_name(content_hash, block.code) for content_hash, block in zip(hashes, blocks, strict=True)]

    # -- rounds --

    async def _settle_items(self, items: Sequence[Item], *, look_up: bool, journaled: bool) -> None:
        """Find or write every item; other volumes are tried when one fails."""
        begun, deadline = trio.current_time(), self._map.options.deadline_seconds
        excluded: set[int] = set()
        failure: FlakeError | None = None
        failures = 0
        while items:
            if failure is not None and trio.current_time() > begun + PATIENCE * deadline:
                raise failure
            plan: Plan | FlakeError | None = self._plan(items, excluded)
            if plan is None:
                plan = await self._plan_anew(items, excluded)
            if isinstance(plan, FlakeError):
                if not isinstance(plan, Unavailable) or trio.current_time() > begun + deadline:
                    raise plan
                await trio.sleep(RETRY_SECONDS)  # a node that restarts breaks connections before it answers again
                continue
            ticket = self._map.epochs.begin()
            try:
                outcomes = await self._carry_out(plan, look_up, journaled, failures < HURRIES)
            finally:
                self._map.epochs.end(ticket)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                if outcome.places is None:
                    excluded.add(outcome.volume)
                    failures += 1
                for node, failure in outcome.failed:
                    self._map.suspect(node, failure)
            items = [item for item in items if item.entry.state is BUSY]

    async def _plan_anew(self, items: Sequence[Item], excluded: set[int]) -> Plan | FlakeError:
        """After a look for nodes and volumes, all of them; the reason when there still is no plan."""
        shelves = {self._placement.shelf_of(item.entry.hash) for item in items}

        def possible() -> bool:
            return all(self._placement.choose(shelf, 1, excluded) is not None for shelf in shelves)

        await self._grower.provide(shelves, possible)
        plan = self._plan(items, excluded)
        if plan is None:
            excluded.clear()  # whoever answers now may be tried again
            plan = self._plan(items, excluded)
        if plan is not None:
            return plan
        lacking = next(shelf for shelf in shelves if self._placement.choose(shelf, 1, ()) is None)
        return self._placement.nobody(lacking, self._grower.failure)

    async def _carry_out(self, plan: Plan, look_up: bool, journaled: bool, hurry: bool) -> list[Outcome]:
        outcomes: list[Outcome] = []
        if len(plan) == 1:
            await self._go(outcomes, *plan[0], look_up, journaled, hurry)
        else:
            async with trio.open_nursery() as nursery:
                for volume, share in plan:
                    nursery.start_soon(self._go, outcomes, volume, share, look_up, journaled, hurry)
        return outcomes

    def _plan(self, items: Iterable[Item], excluded: set[int]) -> Plan | None:
        """Volumes and what each shall take, reserved there; None when nobody takes some of them."""
        shares: dict[Volume, list[Item]] = {}
        current: dict[Shelf, tuple[Volume, int]] = {}
        for item in items:
            size = len(item.data)
            shelf = self._placement.shelf_of(item.entry.hash)
            volume, run = current.get(shelf, (None, 0))
            if volume is None or run + size > RUN_BYTES:
                volume = self._placement.choose(shelf, size, excluded)
                run = 0
                if volume is None:
                    for taker, share in shares.items():
                        self._reserve(taker, share, -1)
                    return None
            current[shelf] = volume, run + size
            shares.setdefault(volume, []).append(item)
            self._reserve(volume, (item,), 1)
        return list(shares.items())

    def _reserve(self, volume: Volume, share: Sequence[Item], sign: int) -> None:
        self._map.reserve(volume, sign * len(share), sign * sum(len(item.data) for item in share))

    async def _go(
        self, outcomes: list[Outcome], volume: Volume, share: list[Item], look_up: bool, journaled: bool, hurry: bool
    ) -> None:
        """One try with one volume; never raises a FlakeError, for the sake of nurseries."""
        outcome = Outcome(volume.record.id)  # what is known when it is cancelled
        try:
            outcome = await self._inserter.insert(volume, share, look_up=look_up, journaled=journaled, hurry=hurry)
            outcomes.append(outcome)
        finally:
            self._apply(volume, share, outcome, journaled)
            self._reserve(volume, share, -1)

    def _apply(self, volume: Volume, share: Sequence[Item], outcome: Outcome, journaled: bool) -> None:
        """Tell the table; no await since the last thread ended."""
        for item in share:
            entry = item.entry
            if item.found is None and outcome.places is None:
                if item.key:  # WR3
                    self._discard(ChunkRef(entry.hash, volume.record.id, item.key, len(item.data)))
                    item.key = b""
                continue
            for block in entry.blocks:
                self._taken.pop(block, None)
                if block.data is not None:
                    block.data = item.data  # the same bytes; equal blocks share one copy from here on
            if item.found is not None:
                self.duplicates += 1
                self._table.found(entry, *item.found)
            elif outcome.places is not None and item.stored is not None:
                self.stored_chunks += 1
                self.stored_bytes += len(item.stored)
                ref = ChunkRef(entry.hash, volume.record.id, item.key, len(item.data))
                self._table.written(entry, ref, len(item.stored), outcome.places)
                if journaled:
                    self._table.hardened(entry)

"""The chunk engine: content in, refs out, and back.

Purpose
    Puts the parts together behind the interface that docs/internals.md section 5 describes, and owns their tasks.

Invariants
    EN1  What store() gave a ref stays readable until it is settled, whoever removes what meanwhile (engine.table).
    EN2  What was stored before a harden() that returned is on every replica, whatever server restarted meanwhile
         (engine.barrier).
    EN3  Closing ends in bounded time; what was not deleted by then is a leak that gc frees.

Concurrency
    Trio thread. Any method may be called by any number of tasks; every call may be cancelled and repeated.

Not here
    Names, maps, counts of references (namespace); when content is stored (vfs).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import trio

from flakefs.engine.asking import Asker
from flakefs.engine.balance import load_balancer
from flakefs.engine.barrier import Barrier
from flakefs.engine.cache import ChunkCache
from flakefs.engine.clock import ServerClock
from flakefs.engine.deleter import Deleter
from flakefs.engine.growing import Grower
from flakefs.engine.healing import Healer
from flakefs.engine.memory import keep_freed_memory
from flakefs.engine.options import EngineOptions, EngineStatistics
from flakefs.engine.placement import Placement
from flakefs.engine.reader import Reader
from flakefs.engine.room import room
from flakefs.engine.table import Table
from flakefs.engine.volumes import VolumeMap
from flakefs.engine.writer import Writer
from flakefs.errors import ReadOnly
from flakefs.format.documents import IndexRecord
from flakefs.format.placement import copies
from flakefs.format.records import FormatRecord, NodeRecord
from flakefs.mongo.door import Door
from flakefs.values import Block, ChunkRef, Space

log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""For the deletions that wait when an engine is closed."""


class _Ledger:
    """What the table reports, passed on to the figures and to the deleter."""

    def __init__(self, map: VolumeMap, deleter: Deleter) -> None:
        self._map = map
        self._deleter = deleter

    def added(self, volume: int, stored_bytes: int) -> None:
        self._map.added(volume, 1, stored_bytes)

    def counted(self, volume: int, stored_bytes: int) -> None:
        self._map.counted(volume, stored_bytes)

    def doomed(self, ref: ChunkRef, stored_bytes: int, *, added: bool) -> None:
        if added:
            self._map.added(ref.volume, -1, -stored_bytes)
        self._deleter.doom(ref)


class Engine:
    """Made by open_engine."""

    def __init__(
        self,
        metadata: Door,
        database: str,
        format: FormatRecord,
        options: EngineOptions,
        map: VolumeMap,
        nursery: trio.Nursery,
        *,
        writable: bool,
    ) -> None:
        self._writable = writable
        self._nursery = nursery
        self._map = map
        self._cache = ChunkCache(options.chunk_cache_bytes)
        self._healer = Healer(metadata, database, writable=writable)
        self._asker = Asker(map, nursery, self._healer.found_bad)
        self._reader = Reader(map, self._cache, self._asker)
        self._deleter = Deleter(map, self._reader.reading, metadata=metadata, database=database)
        clock = ServerClock(metadata)
        self._table = Table(_Ledger(map, self._deleter), now=clock.now)
        self._placement = Placement(map, load_balancer(options.balance))
        self._grower = Grower(map, metadata, database, format.uuid, nursery)
        self._writer = Writer(
            metadata, database, format.codec, self._table, map, self._placement, self._grower, clock, self._deleter.doom
        )
        self._barrier = Barrier(self._table, map, self._placement, self._writer, self._cache)

    async def store(self, blocks: Sequence[Block], *, at_once: bool = False) -> None:
        """Give every sealed block of *blocks* a ref; durable only after harden(). Repeatable after an error.

        *at_once*: harden() follows, and the blocks are few and small: each insert is journaled by itself, and what is
        known elsewhere is found out by the commit instead of by a look-up. That saves half of the round trips.

        Raises NoSpace when no node takes chunks, Unavailable when none answers.
        """
        if not self._writable:
            raise ReadOnly("the engine was opened for reading only")
        await self._writer.store(blocks, at_once=at_once)

    async def harden(self) -> None:
        """Everything stored before the call survives any crash on return, and the blocks' data is let go.

        Refs of blocks may change until then. Raises Unavailable or NoSpace; repeatable.
        """
        await self._barrier.harden()

    def settle(self, kept: Iterable[Block], dropped: Iterable[Block], removed: Iterable[IndexRecord]) -> None:
        """A commit went through: *kept* blocks are named by it, *dropped* ones by nobody, *removed* left the index.

        Never waits. Blocks that were never stored or are settled already are passed over.
        """
        table = self._table
        for block in kept:
            table.keep(block)
        for block in dropped:
            self._writer.forget(block)
            table.drop(block)
        for record in removed:
            table.unindexed(record.ref, record.stored_bytes)

    def share(self, shared: bool) -> None:
        """Other sessions write too, or no longer: what this process knows of the index is theirs to change, and bytes
        that leave the index may just have been found equal to theirs.
        """
        self._table.share(shared)
        self._deleter.share(shared)

    def idle(self) -> bool:
        """No block is pinned or about to be."""
        return self._table.empty()

    def lapsed(self) -> bool:
        """Is something pinned that gc may take for a leak (TA5)?"""
        return self._table.lapsed()

    async def fetch(self, ref: ChunkRef) -> bytes:
        """The verified content of a chunk. Raises ChunkMissing, ChunkCorrupt, Unavailable."""
        return await self._reader.fetch(ref)

    async def fetch_many(self, refs: Sequence[ChunkRef]) -> list[bytes]:
        """The same for many, in their order, with fewer queries."""
        return await self._reader.fetch_many(refs)

    def peek(self, ref: ChunkRef) -> bytes | None:
        """The content when it is in memory."""
        return self._reader.peek(ref)

    def prefetch(self, refs: Sequence[ChunkRef]) -> None:
        """Load chunks into memory in the background, as far as there is room; nothing comes of failures."""
        self._reader.prefetch(refs, self._nursery)

    async def space(self) -> Space:
        """What the nodes hold and can take, as they said when last asked (engine.room)."""
        nodes = list(self._map.nodes.values())
        if any(not node.asked for node in nodes):
            await self._map.look_at_all()
        else:
            await trio.lowlevel.checkpoint()
        total, free = room(self._map.nodes.values(), self._map.options, copies(self._map.replication))
        volumes = self._map.volumes()
        return Space(
            total_bytes=total,
            free_bytes=free,
            chunks=sum(volume.chunks for volume in volumes),
            stored_bytes=sum(volume.bytes for volume in volumes),
        )

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            stored_chunks=self._writer.stored_chunks,
            stored_bytes=self._writer.stored_bytes,
            duplicate_chunks=self._writer.duplicates,
            rewritten_chunks=self._barrier.rewritten,
            barriers=self._barrier.barriers,
            fetched_chunks=self._reader.fetched_chunks,
            fetched_bytes=self._reader.fetched_bytes,
            hedged_reads=self._asker.hedged,
            bad_copies=self._healer.found,
            healed_chunks=self._healer.healed,
            cache_hits=self._cache.hits,
            cached_bytes=self._cache.bytes,
            pinned_blocks=self._table.pinned(),
            known_chunks=self._table.known(),
            deleted_chunks=self._deleter.deleted,
            deletions_waiting=self._deleter.waiting(),
            leaked_chunks=self._deleter.leaked,
            suspect_nodes=sum(node.problem is not None for node in self._map.nodes.values()),
        )

    @property
    def replication(self) -> str:
        """The code of chunks whose files ask for no other, as last heard of."""
        return self._map.replication

    def check_code(self, code: str) -> None:
        """Raise UsageError when *code* is none, or the active nodes, as last heard of, cannot keep it."""
        self._placement.check_code(code)

    def check_invariants(self) -> None:
        """For tests; see engine.table."""
        self._table.check_invariants()

    async def _run(self) -> None:
        self._nursery.start_soon(self._map.poll_forever)
        self._nursery.start_soon(self._deleter.run_forever)
        if self._writable:
            self._nursery.start_soon(self._grower.run_forever)
        self._nursery.start_soon(self._healer.run_forever)

    async def _finish(self) -> None:
        """EN3."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._deleter.drain()
        if self._deleter.waiting():
            log.info("%d deletions were left to gc", self._deleter.waiting())


@asynccontextmanager
async def open_engine(
    metadata: Door,
    database: str,
    format: FormatRecord,
    options: EngineOptions,
    *,
    resolve: Callable[[NodeRecord], str],
    writable: bool,
    session: int | None = None,
) -> AsyncIterator[Engine]:
    """An engine for the file system in *database*, with its background tasks.

    *resolve* says which URI leads to a node ("embedded" is known above only). *session*: the epoch of the session in
    whose name it acknowledges changes of the map (engine.epochs). Nodes that do not answer do not keep it from opening.
    An error of the body leaves as it is, not in a group.
    """
    keep_freed_memory()
    map = VolumeMap(metadata, database, format, options, resolve=resolve, session=session)
    problem: Exception | None = None
    try:
        await map.look()
        async with trio.open_nursery() as nursery:
            engine = Engine(metadata, database, format, options, map, nursery, writable=writable)
            await engine._run()
            try:
                yield engine
            except Exception as error:
                problem = error
            finally:
                await engine._finish()
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await map.close()
    if problem is not None:
        raise problem

"""Making stored blocks durable: one journaled write for many inserts.

Purpose
    `harden` proves that everything stored before the call is in the journal of every replica, writes again what is
    not, and then lets go of the blocks' data.

Invariants
    BA1  A block's data is dropped only after, on every replica, a journaled write was acknowledged later than the
         insert, by the very server process that took the insert (ND2), or the insert itself was journaled.
    BA2  What a restarted or failed node took since the last barrier is written again, under a new key.
    BA3  A barrier covers the harden() calls that came before it began, and no later ones.
    BA4  A node for which others can stand in gets node_patience_seconds, and more in proportion to the bytes. When it
         is suspect it is not asked at all. What it took is written again elsewhere. Not so in the later rounds.

Concurrency
    One barrier at a time; calls that arrive while one runs share the next. When the task that runs it is cancelled,
    one of the waiting takes over.

Not here
    Inserts (engine.writer), what a process is (engine.nodes).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable

import trio

from flakefs.engine.cache import ChunkCache
from flakefs.engine.inserting import SLOW_BYTES
from flakefs.engine.nodes import Node
from flakefs.engine.placement import Placement
from flakefs.engine.table import BUSY, FRESH, Entry, Table, content_of
from flakefs.engine.topology import Shelf
from flakefs.engine.volumes import VolumeMap
from flakefs.engine.writer import HURRIES, Writer
from flakefs.errors import FlakeError, Unavailable
from flakefs.values import Block

log = logging.getLogger(__name__)

ROUNDS = 4
"""Barriers in one harden() before a node that restarts again and again is given up."""


class Barrier:
    def __init__(self, table: Table, map: VolumeMap, placement: Placement, writer: Writer, cache: ChunkCache) -> None:
        # Dependencies
        self._table = table
        self._map = map
        self._placement = placement
        self._writer = writer
        self._cache = cache
        # Mutable; changed only between awaits
        self._begun = 0
        self._ended = 0
        """Numbers of the barrier that began last and of the one that ended last, `_failure` is that one's."""
        self._failure: FlakeError | None = None
        self._running: trio.Event | None = None
        self.barriers = 0
        self.rewritten = 0

    async def harden(self) -> None:
        """Everything stored before the call is durable on return."""
        needed = self._begun + 1  # BA3
        while self._ended < needed:
            if self._running is not None:
                await self._running.wait()
                continue
            if not self._table.holds():
                return
            await self._run()
        if self._failure is not None:  # of a later barrier, too: that one covered what this call needs
            raise self._failure.with_traceback(None)

    async def _run(self) -> None:
        """One barrier; cancelled, it counts as never begun for those who wait."""
        ended = self._running = trio.Event()
        self._begun += 1
        failure: FlakeError | None = None
        try:
            await self._prove()
        except FlakeError as error:
            failure = error
        except BaseException:
            self._begun -= 1
            raise
        else:
            self.barriers += 1
        finally:
            self._running = None
            ended.set()
        self._ended = self._begun
        self._failure = failure

    async def _prove(self) -> None:
        entries = self._table.fresh()
        holding = self._table.holding()
        try:
            for number in range(ROUNDS):
                doubtful = await self._without_proof(entries, hurry=number < HURRIES)
                if not doubtful:
                    return
                entries = await self._write_again(doubtful)
                if not entries:
                    return
            raise Unavailable("nodes restart faster than chunks can be made durable on them: look at their logs")
        finally:
            self._let_go(holding)

    async def _without_proof(self, entries: Collection[Entry], *, hurry: bool) -> list[Entry]:
        """Ask all nodes concerned; what they prove is hardened, the rest returned."""
        alive: dict[int, bytes] = {}
        nodes = self._nodes_of(entries, hurry)
        if len(nodes) == 1:
            await self._ask(*nodes[0], alive)
        elif nodes:
            async with trio.open_nursery() as nursery:
                for node, patience in nodes:
                    nursery.start_soon(self._ask, node, patience, alive)
        doubtful = []
        for entry in entries:
            if entry.state is not FRESH:
                continue
            if all(process and alive.get(id) == process for id, process in entry.places):
                self._table.hardened(entry)
            else:
                doubtful.append(entry)
        return doubtful

    def _nodes_of(self, entries: Iterable[Entry], hurry: bool) -> list[tuple[Node, float | None]]:
        """The nodes that hold these, and the seconds that each may take (BA4); None: the deadline of its calls."""
        sizes: Counter[int] = Counter()
        shelves: dict[int, set[Shelf]] = {}
        for entry in entries:
            for id, _ in entry.places:
                sizes[id] += entry.stored_bytes
                shelves.setdefault(id, set()).add(self._placement.shelf_of(entry.hash))
        found: list[tuple[Node, float | None]] = []
        for id, size in sizes.items():
            node = self._map.nodes.get(id)
            if node is None:
                continue
            patience = None
            if hurry and all(self._placement.replaceable(shelf, node) for shelf in shelves[id]):
                patience = self._map.options.node_patience_seconds + size / SLOW_BYTES
            found.append((node, patience))
        return found

    async def _ask(self, node: Node, patience: float | None, alive: dict[int, bytes]) -> None:
        """A journaled write; once more when it failed, the node answers after all, and none can stand in."""
        if patience is not None and node.problem is not None:
            return
        for last in (patience is not None, True):
            try:
                alive[node.record.id] = await node.door.run(node.barrier_sync, deadline_seconds=patience)
                return
            except FlakeError as error:
                self._map.suspect(node, error)
            if last:
                return
            await self._map.probe(node)
            if node.problem is not None:
                return

    async def _write_again(self, entries: Iterable[Entry]) -> list[Entry]:
        """BA2; returns what has to be proven anew."""
        again = []
        for entry in entries:
            if self._table.lost(entry):
                data = content_of(entry)
                assert data is not None, "BA1: the data of a chunk without proof was dropped"
                again.append((entry, data))
        if not again:
            return []
        self.rewritten += len(again)
        log.info("%d chunks are written again: their node restarted or failed before they were durable", len(again))
        await self._writer.rewrite(again)
        return [entry for entry, _ in again]

    def _let_go(self, holding: Iterable[Block]) -> None:
        """BA1: into the cache with the data of what is proven; the rest waits for the next barrier."""
        for block in holding:
            entry = self._table.entry(block)
            if entry is None or block.data is None:
                continue  # settled meanwhile
            if entry.state in (BUSY, FRESH):
                self._table.hold_on(block)
                continue
            self._cache.put(entry.hash, block.data)
            block.data = None

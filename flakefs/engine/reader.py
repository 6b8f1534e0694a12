"""Reading chunks: cache, single flight, replicas, verification.

Purpose
    `fetch` and `fetch_many` for who needs content now, `prefetch` for what will be needed soon.

Invariants
    RD1  No byte leaves here whose content was not hashed after it came from a node, and found to be what the ref says.
    RD2  A chunk is asked for once at a time, however many want it.
    RD3  Every replica is tried before an error. Unavailable beats the others: a node that does not answer may have the
         good copy. Nothing a node says becomes NotFound or an empty answer.
    RD4  prefetch() never waits, raises or warns, keeps at most a quarter of the cache under way, and asks no node that
         is suspect.
    RD5  While no replica answers, who needs a chunk waits and tries again, until error_timeout has passed since it
         asked or since the nodes fell silent: the first reads wait, and those on a node that has been away for longer
         are told at once, until a probe succeeds.

Concurrency
    Trio thread; decoding and hashing in the node's worker threads. From the call of fetch() and fetch_many() to the
    entry in `_flights` there is no await, so the deleter sees every chunk that is being read (engine.deleter).

Not here
    Where volumes are (engine.volumes), repair of a bad copy from a good one (comes with replication).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from random import random
from time import monotonic

import trio

from flakefs.engine.cache import ChunkCache
from flakefs.engine.nodes import Node
from flakefs.engine.volumes import Volume, VolumeMap
from flakefs.errors import ChunkCorrupt, ChunkMissing, Damaged, FlakeError, Refused, Unavailable
from flakefs.format.codec import decode
from flakefs.format.documents import Document, read_chunk
from flakefs.format.hashing import chunk_hash
from flakefs.mongo.patience import LEAST_SECONDS, PAUSE_FIRST_SECONDS, PAUSE_MAX_SECONDS
from flakefs.values import ChunkRef

log = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
"""Plain bytes of one query; chunks of this size or more go alone."""
AHEAD_BYTES = 4 * 1024 * 1024
"""The same for what nobody waits for yet: asking for four chunks of 1 MiB at once costs the mount a fifth less CPU time
than asking four times.
"""
BATCH_CHUNKS = 500
SILENT_SECONDS = 2.0
"""So long a node that has kept a read waiting for its whole deadline gets no further one, unless a probe succeeds: the
read-ahead has often waited already for what a program reads next."""

Answer = bytes | FlakeError
"""Content, or why this node does not give it."""


class Flight:
    """One chunk under way."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | None = None
        """None when the task that was to fetch it was cancelled."""


class Reader:
    def __init__(self, map: VolumeMap, cache: ChunkCache) -> None:
        # Dependencies
        self._map = map
        self._cache = cache
        # Constant after construction
        self._patience = map.options.error_timeout_seconds
        # Mutable; changed only between awaits
        self._flights: dict[ChunkRef, Flight] = {}
        self._ahead_bytes = 0
        self.fetched_chunks = 0
        self.fetched_bytes = 0

    def peek(self, ref: ChunkRef) -> bytes | None:
        """From the cache; never waits."""
        return self._cache.get(ref.hash)

    def reading(self, ref: ChunkRef) -> bool:
        """Is the chunk being read at this moment?"""
        return ref in self._flights

    async def fetch(self, ref: ChunkRef) -> bytes:
        """The content. No checkpoint when it is in the cache."""
        asked = monotonic()
        tries = 0
        while True:
            data = self._cache.get(ref.hash)
            if data is not None:
                return data
            flight = self._flights.get(ref)
            if flight is None:
                flight = self._flights[ref] = Flight()
                await self._bring([ref], {ref: flight}, asked)
            else:
                await flight.done.wait()
            answer = flight.answer
            if isinstance(answer, Unavailable) and await self._wait([ref], asked, tries):
                tries += 1
            elif answer is not None:
                return _content(answer)

    async def fetch_many(self, refs: Sequence[ChunkRef]) -> list[bytes]:
        """The contents in order; small chunks of one volume share a query. Raises the first error."""
        contents: dict[ChunkRef, bytes] = {}
        asked = monotonic()
        tries = 0
        while True:
            mine: dict[ChunkRef, Flight] = {}
            others: dict[ChunkRef, Flight] = {}
            for ref in refs:
                if ref in contents or ref in mine or ref in others:
                    continue
                data = self._cache.get(ref.hash)
                if data is not None:
                    contents[ref] = data
                elif ref in self._flights:
                    others[ref] = self._flights[ref]
                else:
                    mine[ref] = self._flights[ref] = Flight()
            if not mine and not others:
                return [contents[ref] for ref in refs]
            await self._bring_all(mine, asked)
            silent: dict[ChunkRef, Unavailable] = {}
            for ref, flight in (mine | others).items():
                if not flight.done.is_set():
                    await flight.done.wait()
                if isinstance(flight.answer, Unavailable):
                    silent[ref] = flight.answer
                elif flight.answer is not None:
                    contents[ref] = _content(flight.answer)
            if silent:
                if not await self._wait(silent, asked, tries):
                    _content(next(iter(silent.values())))
                tries += 1

    def prefetch(self, refs: Iterable[ChunkRef], nursery: trio.Nursery) -> None:
        """Load into the cache what fits (RD4)."""
        mine: dict[ChunkRef, Flight] = {}
        for ref in refs:
            if ref in self._flights or ref.hash in self._cache:
                continue
            if 4 * (self._ahead_bytes + ref.length) > self._cache.limit_bytes:
                break
            self._ahead_bytes += ref.length
            mine[ref] = self._flights[ref] = Flight()
        for batch in _batches(mine, AHEAD_BYTES):
            nursery.start_soon(self._ahead, batch, mine)

    async def _ahead(self, batch: Sequence[ChunkRef], flights: dict[ChunkRef, Flight]) -> None:
        try:
            await self._bring(batch, flights, None)
        except Exception:
            log.exception("bug in FlakeFS while reading ahead")
        finally:
            self._ahead_bytes -= sum(ref.length for ref in batch)

    # -- waiting (RD5) --

    async def _wait(self, refs: Iterable[ChunkRef], asked: float, tries: int) -> bool:
        """Nobody gave these chunks: pause before the next attempt. False when the time is over."""
        left = min(self._left(self._map.volume_nowait(ref.volume), asked) for ref in refs)
        if left <= 0:
            return False
        pause = min(PAUSE_FIRST_SECONDS * 2 ** min(tries, 10), PAUSE_MAX_SECONDS)
        await trio.sleep(min(pause * (0.5 + random()), left))
        return True

    def _left(self, volume: Volume | None, asked: float) -> float:
        """Seconds until a read of the volume has waited enough."""
        if volume is None or not volume.nodes:  # the metadata server was to tell where it is
            silent = [self._map.silent_since]
            if silent == [None]:
                return 0.0  # it has told: nowhere that can be reached
        else:
            silent = [node.door.silent_since for node in volume.nodes]
        since = max((moment for moment in silent if moment is not None), default=asked)
        return min(asked, since) + self._patience - monotonic()

    # -- flights --

    async def _bring_all(self, flights: dict[ChunkRef, Flight], asked: float) -> None:
        batches = _batches(flights)
        if len(batches) == 1:
            await self._bring(batches[0], flights, asked)
            return
        try:
            async with trio.open_nursery() as nursery:
                for batch in batches:
                    nursery.start_soon(self._bring, batch, flights, asked)
        finally:
            self._land(flights, flights)  # those whose task was cancelled before it began

    async def _bring(self, refs: Sequence[ChunkRef], flights: dict[ChunkRef, Flight], asked: float | None) -> None:
        """Fetch chunks of one volume and land their flights; raises no FlakeError. *asked*: when; None: read-ahead."""
        try:
            try:
                volume = await self._volume(refs[0].volume)
            except FlakeError as error:
                for ref in refs:
                    flights[ref].answer = error
                return
            left = refs
            for node in sorted(volume.nodes, key=lambda node: node.problem is not None):
                answers = await self._ask(node, volume, left, asked)
                for ref, answer in zip(left, answers, strict=True):
                    flights[ref].answer = _better(flights[ref].answer, answer)
                    if isinstance(answer, bytes):
                        self.fetched_chunks += 1
                        self.fetched_bytes += len(answer)
                        self._cache.put(ref.hash, answer)
                left = [ref for ref in left if not isinstance(flights[ref].answer, bytes)]
                if not left:
                    return
        finally:
            self._land(refs, flights)

    def _land(self, refs: Iterable[ChunkRef], flights: dict[ChunkRef, Flight]) -> None:
        for ref in refs:
            flight = flights[ref]
            if self._flights.get(ref) is flight:
                del self._flights[ref]
            flight.done.set()

    async def _volume(self, id: int) -> Volume:
        volume = self._map.volume_nowait(id)
        if volume is not None and volume.nodes:
            return volume
        return await self._map.volume(id)

    async def _ask(self, node: Node, volume: Volume, refs: Sequence[ChunkRef], asked: float | None) -> list[Answer]:
        """One answer for each ref. A node that has just let a read wait in vain is not asked again at once."""
        begun = trio.current_time()
        if node.problem is not None and (asked is None or begun < node.silent_until or self._given_up(node)):
            return [type(node.problem)(str(node.problem))] * len(refs)
        deadline = node.door.deadline_seconds
        if asked is not None:
            deadline = min(deadline, max(self._left(volume, asked), LEAST_SECONDS))

        def read_sync() -> list[Answer]:
            documents = node.read_sync(volume.collection, [ref.key for ref in refs])
            return _verified(refs, documents, f"volume {volume.record.id} on {node.title}")

        try:
            return await node.door.run(read_sync, deadline_seconds=deadline, abandon=True)
        except FlakeError as error:
            if isinstance(error, Unavailable | Refused):
                self._map.suspect(node, error)
                now = trio.current_time()
                if now - begun >= node.door.deadline_seconds / 2:
                    node.silent_until = now + SILENT_SECONDS
            return [error] * len(refs)

    def _given_up(self, node: Node) -> bool:
        """Has it been away for longer than anybody waits (RD5)?"""
        silent = node.door.silent_since
        return silent is not None and monotonic() - silent >= self._patience


def _verified(refs: Sequence[ChunkRef], documents: Iterable[Document], where: str) -> list[Answer]:
    """RD1; runs in a worker thread."""
    by_key = {document["_id"].binary: document for document in documents}
    answers: list[Answer] = []
    for ref in refs:
        name = f"chunk {ref.hash.hex()[:12]} (key {ref.key.hex()})"
        document = by_key.get(ref.key)
        if document is None:
            answers.append(ChunkMissing(f"{name} is missing in {where}: run flakefs fsck and restore a copy"))
            continue
        try:
            chunk = read_chunk(document)
            if not isinstance(chunk.data, bytes):
                raise ChunkCorrupt("its content is no binary data")
            data = decode(chunk.codec, chunk.data, ref.length)
        except (ChunkCorrupt, Damaged) as error:
            answers.append(ChunkCorrupt(f"{name} is damaged in {where}: {error}"))
            continue
        if chunk_hash(data) != ref.hash:
            answers.append(ChunkCorrupt(f"{name} holds other bytes than its hash says in {where}: run flakefs fsck"))
            continue
        answers.append(data)
    return answers


def _better(old: Answer | None, new: Answer) -> Answer:
    """Which of two replicas' answers counts (RD3)."""
    if old is None or isinstance(new, bytes):
        return new
    rank: Callable[[Answer], int] = lambda answer: (  # noqa: E731
        2 if isinstance(answer, Unavailable) else 1 if isinstance(answer, ChunkCorrupt) else 0
    )
    return new if rank(new) > rank(old) else old


def _content(answer: Answer) -> bytes:
    if isinstance(answer, bytes):
        return answer
    raise answer.with_traceback(None)


def _batches(refs: Iterable[ChunkRef], limit_bytes: int = BATCH_BYTES) -> list[list[ChunkRef]]:
    """Chunks of one volume that are worth one query together."""
    batches: list[list[ChunkRef]] = []
    current: dict[int, tuple[list[ChunkRef], int]] = {}
    for ref in refs:
        batch, size = current.get(ref.volume, ([], 0))
        if not batch or size + ref.length > limit_bytes or len(batch) >= BATCH_CHUNKS:
            batch, size = [], 0
            batches.append(batch)
        batch.append(ref)
        current[ref.volume] = batch, size + ref.length
    return batches

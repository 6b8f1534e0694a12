"""Reading chunks: cache, single flight, read-ahead, waiting.

Purpose
    `fetch` and `fetch_many` for who needs content now, `prefetch` for what will be needed soon.

Invariants
    RD1  No byte leaves here whose content was not hashed after it came from a node, and found to be what the ref says
         (engine.copies).
    RD2  A chunk is asked for once at a time, however many want it.
    RD3  Every replica is tried before an error (engine.asking), and nothing a node says becomes NotFound or an empty
         answer.
    RD4  prefetch() never waits, raises or warns, keeps at most a quarter of the cache under way, and asks no node that
         is suspect.
    RD5  While no replica answers, who needs a chunk waits and tries again, until error_timeout has passed since it
         asked or since the nodes fell silent: the first reads wait, and those on a node that has been away for longer
         are told at once, until a probe succeeds.

Concurrency
    Trio thread. From the call of fetch() and fetch_many() to the entry in `_flights` there is no await, so the deleter
    sees every chunk that is being read (engine.deleter).

Not here
    Which replica is asked, and when another one (engine.asking); repair of a bad copy from a good one (engine.healing).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from random import random
from time import monotonic

import trio

from flakefs.engine.asking import Asker
from flakefs.engine.cache import ChunkCache
from flakefs.engine.copies import Answer
from flakefs.engine.volumes import VolumeMap
from flakefs.errors import FlakeError, Unavailable
from flakefs.mongo.patience import PAUSE_FIRST_SECONDS, PAUSE_MAX_SECONDS
from flakefs.values import ChunkRef

log = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
"""Plain bytes of one query; chunks of this size or more go alone."""
AHEAD_BYTES = 4 * 1024 * 1024
"""The same for what nobody waits for yet: asking for four chunks of 1 MiB at once costs the mount a fifth less CPU time
than asking four times.
"""
BATCH_CHUNKS = 500


class Flight:
    """One chunk under way."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | None = None
        """None when the task that was to fetch it was cancelled."""


class Reader:
    def __init__(self, map: VolumeMap, cache: ChunkCache, asker: Asker) -> None:
        # Dependencies
        self._map = map
        self._cache = cache
        self._asker = asker
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
        left = min(self._asker.left(self._map.volume_nowait(ref.volume), asked) for ref in refs)
        if left <= 0:
            return False
        pause = min(PAUSE_FIRST_SECONDS * 2 ** min(tries, 10), PAUSE_MAX_SECONDS)
        await trio.sleep(min(pause * (0.5 + random()), left))
        return True

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
                answers = await self._asker.answers(refs, asked)
            except FlakeError as error:
                answers = dict.fromkeys(refs, error)
            for ref in refs:
                answer = flights[ref].answer = answers[ref]
                if isinstance(answer, bytes):
                    self.fetched_chunks += 1
                    self.fetched_bytes += len(answer)
                    self._cache.put(ref.hash, answer)
        finally:
            self._land(refs, flights)

    def _land(self, refs: Iterable[ChunkRef], flights: dict[ChunkRef, Flight]) -> None:
        for ref in refs:
            flight = flights[ref]
            if self._flights.get(ref) is flight:
                del self._flights[ref]
            flight.done.set()


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

"""Deleting the bytes of chunks that nobody names.

Purpose
    A background task that deletes in batches what the table dooms.

Invariants
    DL1  Bytes are deleted only by key, and keys are never used twice: a deletion can never hit a newer upload.
    DL2  A chunk that is being read is deleted after that, and none sooner than `delay_seconds` after it was doomed:
         who planned a read just before gets its bytes.
    DL4  While sessions share, bytes stay for a grace: another session may just have found its content equal to them.
         Then they go only if the index does not name them (again).
    DL3  A deletion that fails is tried again a few times, then given up: a leak that gc frees. While a node is known
         not to answer, its deletions wait, WAITING_MAX at most, and closing does not try them.

Concurrency
    Trio thread; doom() never waits. drain() may run while run_forever() is cancelled or between two of its batches.

Not here
    What may be deleted (engine.table).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import trio
from bson.binary import Binary
from pymongo.read_concern import ReadConcern

from flakefs.engine.volumes import VolumeMap
from flakefs.errors import FlakeError, Unavailable
from flakefs.format.documents import CHUNKS, read_index
from flakefs.mongo.door import Door
from flakefs.values import ChunkRef

log = logging.getLogger(__name__)

BATCH = 1000
DELAY_SECONDS = 1.0
GRACE_SECONDS = 15 * 60.0
"""Longer than any session takes from finding a chunk in the index until its commit."""
TRIES = 5
RETRY_SECONDS = 1.0
WAITING_MAX = 100_000
"""About 30 MB of memory."""


class Deleter:
    def __init__(
        self,
        map: VolumeMap,
        reading: Callable[[ChunkRef], bool],
        delay_seconds: float = DELAY_SECONDS,
        *,
        metadata: Door | None = None,
        database: str = "",
    ) -> None:
        # Dependencies
        self._metadata = metadata
        self._database = database
        self._map = map
        self._reading = reading
        # Constant after construction
        self._delay_seconds = delay_seconds
        # Mutable; changed only between awaits
        self._waiting: deque[tuple[float, int, ChunkRef]] = deque()
        """(not before, tries so far, what), in the order of the first."""
        self._shared = False
        self._careful = False  # something was doomed while sessions shared
        self._work = trio.Event()
        self._busy = trio.Lock()
        self._failing: set[int] = set()  # volumes whose last deletion failed, which was logged
        self.deleted = 0
        self.leaked = 0

    def doom(self, ref: ChunkRef) -> None:
        """Delete the bytes of *ref* some time soon."""
        delay = GRACE_SECONDS if self._shared else self._delay_seconds
        self._waiting.append((trio.current_time() + delay, 0, ref))
        self._work.set()

    def share(self, shared: bool) -> None:
        """DL4."""
        self._shared = shared
        self._careful = True
        soon = trio.current_time() + (GRACE_SECONDS if shared else self._delay_seconds)
        self._waiting = deque((soon, tries, ref) for _, tries, ref in self._waiting)
        self._work.set()

    def waiting(self) -> int:
        return len(self._waiting)

    async def run_forever(self) -> None:
        while True:
            if not self._waiting:
                self._work = trio.Event()
                await self._work.wait()
            with trio.move_on_at(self._waiting[0][0] if self._waiting else 0):
                self._work = trio.Event()
                while not self._waiting or self._waiting[0][0] > trio.current_time():
                    await self._work.wait()
                    self._work = trio.Event()
            try:
                await self._delete_due(trio.current_time())
            except Exception:
                log.exception("bug in FlakeFS while deleting chunks")

    async def drain(self) -> None:
        """Try everything that waits once, now; for the end, when nobody reads any more."""
        for _ in range(0 if self._shared else len(self._waiting) // BATCH + 1):  # DL4
            await self._delete_due(float("inf"), TRIES - 1)
        self.leaked += len(self._waiting)
        self._waiting.clear()

    async def _delete_due(self, now: float, tries: int = 0) -> None:
        """One batch."""
        async with self._busy:
            by_volume: dict[int, list[tuple[int, ChunkRef]]] = {}
            for _ in range(min(BATCH, len(self._waiting))):
                if self._waiting[0][0] > now:
                    break
                _, tried, ref = self._waiting.popleft()
                if self._reading(ref):  # DL2
                    self._waiting.append((trio.current_time() + self._delay_seconds, tried, ref))
                else:
                    by_volume.setdefault(ref.volume, []).append((max(tried, tries), ref))
            if self._careful:
                await self._spare_indexed(by_volume)
            for volume, chunks in by_volume.items():
                if self._silent(volume):
                    self._later(chunks)
                    continue
                try:
                    done = False
                    done = await self._delete(volume, [ref.key for _, ref in chunks])
                finally:
                    if done:
                        self.deleted += len(chunks)
                    else:
                        self._again(chunks)

    async def _spare_indexed(self, by_volume: dict[int, list[tuple[int, ChunkRef]]]) -> None:
        """Take out what the index names (DL4); all, when it cannot be asked."""
        refs = [ref for chunks in by_volume.values() for _, ref in chunks]
        if not refs or self._metadata is None:
            return
        door = self._metadata
        index = door.client[self._database].get_collection(CHUNKS, read_concern=ReadConcern("majority"))
        try:
            named = await door.run(
                lambda: {
                    read_index(document).ref
                    for document in index.find({"_id": {"$in": [Binary(r.hash) for r in refs]}})
                }
            )
        except FlakeError as error:
            for volume, chunks in by_volume.items():
                (self._later if isinstance(error, Unavailable) else self._again)(chunks)
                by_volume[volume] = []
            return
        for volume, chunks in by_volume.items():
            by_volume[volume] = [(tries, ref) for tries, ref in chunks if ref not in named]

    async def _delete(self, id: int, keys: Sequence[bytes]) -> bool:
        """From every replica; False when one of them failed."""
        try:
            volume = await self._map.volume(id)
            for node in volume.nodes:
                try:
                    await node.door.run(partial(node.delete_sync, volume.collection, keys))
                except Unavailable as error:
                    self._map.suspect(node, error)
                    raise
        except FlakeError as error:
            if id not in self._failing:
                self._failing.add(id)
                log.info("%d chunks of volume %d cannot be deleted now, which is tried again: %s", len(keys), id, error)
            return False
        if id in self._failing:
            self._failing.discard(id)
            log.info("chunks of volume %d can be deleted again", id)
        return True

    def _silent(self, id: int) -> bool:
        """Is one of its nodes known not to answer?"""
        volume = self._map.volume_nowait(id)
        return volume is not None and any(isinstance(node.problem, Unavailable) for node in volume.nodes)

    def _later(self, chunks: Iterable[tuple[int, ChunkRef]]) -> None:
        """Nothing was tried (DL3)."""
        later = trio.current_time() + max(RETRY_SECONDS, self._delay_seconds)
        for tried, ref in chunks:
            if len(self._waiting) < WAITING_MAX:
                self._waiting.append((later, tried, ref))
            else:
                self.leaked += 1

    def _again(self, chunks: Iterable[tuple[int, ChunkRef]]) -> None:
        """DL3."""
        later = trio.current_time() + max(RETRY_SECONDS, self._delay_seconds)
        for tried, ref in chunks:
            if tried + 1 < TRIES:
                self._waiting.append((later, tried + 1, ref))
            else:
                self.leaked += 1

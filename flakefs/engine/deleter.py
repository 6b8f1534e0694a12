"""Deleting the bytes of chunks that nobody names.

Purpose
    A background task that deletes in batches, from all replicas at once, what the table dooms.

Invariants
    DL1  Bytes are deleted only by key, and keys are never used twice: a deletion can never hit a newer upload.
    DL2  A chunk that is being read is deleted after that, and none sooner than `delay_seconds` after it was doomed:
         who planned a read just before gets its bytes.
    DL3  A deletion that fails is tried again a few times, then given up: a leak that gc frees. While a node is known
         not to answer, its own deletions wait, and no others; closing does not try them.
    DL4  While sessions share, bytes stay for a grace: another session may just have found its content equal to them.
         Then they go only if the index does not name them (again).
    DL5  A chunk is deleted from every node that its volume lies on by a look at the map that began after its last
         deletion: when the volume was moved meanwhile, the deletion follows it.
    DL6  At most WAITING_MAX deletions wait; what is doomed beyond is a leak that gc frees.

Concurrency
    Trio thread; doom() never waits. drain() may run while run_forever() is cancelled or between two of its batches.

Not here
    What may be deleted (engine.table).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count

import trio
from bson.binary import Binary
from pymongo.read_concern import ReadConcern

from flakefs.engine.nodes import Node
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
CONFIRM_SECONDS = 2.0
"""So long deletions that are done may wait for a look at the map (DL5), so that one look does for many."""
WAITING_MAX = 100_000
"""About 30 MB of memory."""
NOWHERE: frozenset[int] = frozenset()


class Doomed:
    """A chunk to be deleted."""

    __slots__ = ("done", "ref", "tries")

    def __init__(self, ref: ChunkRef) -> None:
        self.ref = ref
        self.tries = 0
        """Failed ones."""
        self.done = NOWHERE
        """The nodes it was deleted from."""


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
        self._queue: list[tuple[float, int, Doomed]] = []
        """A heap of (not before, running number, what)."""
        self._numbers = count()
        self._held: dict[tuple[int, int], list[Doomed]] = {}
        """What waits for a node that does not answer, by its id and that of the volume."""
        self._unconfirmed: list[Doomed] = []
        """Deleted from every node that the map named (DL5)."""
        self._confirm_at = float("inf")
        self._release_at = float("inf")
        self._shared = False
        self._careful = False  # something was doomed while sessions shared
        self._work = trio.Event()
        self._busy = trio.Lock()
        self._failing: set[int] = set()  # volumes whose last deletion failed, which was logged
        self.deleted = 0
        self.leaked = 0

    def doom(self, ref: ChunkRef) -> None:
        """Delete the bytes of *ref* some time soon."""
        self._push([Doomed(ref)], GRACE_SECONDS if self._shared else self._delay_seconds)
        self._work.set()

    def share(self, shared: bool) -> None:
        """DL4."""
        self._shared = shared
        self._careful = True
        soon = trio.current_time() + (GRACE_SECONDS if shared else self._delay_seconds)
        self._queue = [(soon, number, doomed) for _, number, doomed in self._queue]
        heapify(self._queue)
        self._work.set()

    def waiting(self) -> int:
        return len(self._queue) + sum(map(len, self._held.values()))

    async def run_forever(self) -> None:
        while True:
            while (due := self._due()) > trio.current_time():
                self._work = trio.Event()
                with trio.move_on_at(due):
                    await self._work.wait()
            try:
                await self._delete_due(trio.current_time())
                if trio.current_time() >= self._confirm_at:
                    await self._confirm()
            except Exception:
                log.exception("bug in FlakeFS while deleting chunks")

    def _due(self) -> float:
        """When there is something to do."""
        return min(self._queue[0][0] if self._queue else float("inf"), self._confirm_at, self._release_at)

    async def drain(self) -> None:
        """Try everything that waits once, now; for the end, when nobody reads any more."""
        for last in (False, True):
            self._release()
            for _ in range(0 if self._shared else len(self._queue) // BATCH + 1):  # DL4
                await self._delete_due(float("inf"), TRIES - 1)
            if not last:
                await self._confirm()
        self.leaked += self.waiting()
        self._queue.clear()
        self._held.clear()

    # -- what waits --

    def _push(self, chunks: Iterable[Doomed], seconds: float) -> None:
        """To be deleted after so long (DL6)."""
        due = trio.current_time() + seconds
        room = WAITING_MAX - self.waiting()
        for doomed in chunks:
            if room <= 0:
                self.leaked += 1
                continue
            room -= 1
            heappush(self._queue, (due, next(self._numbers), doomed))

    def _again(self, chunks: Iterable[Doomed]) -> None:
        """A try of these has failed (DL3)."""
        left: list[Doomed] = []
        for doomed in chunks:
            doomed.tries += 1
            if doomed.tries < TRIES:
                left.append(doomed)
            else:
                self.leaked += 1
        self._push(left, self._retry_seconds())

    def _retry_seconds(self) -> float:
        return max(RETRY_SECONDS, self._delay_seconds)

    def _hold(self, node: Node, doomed: Doomed) -> None:
        """Wait for *node*; no try is used up."""
        self._held.setdefault((node.record.id, doomed.ref.volume), []).append(doomed)
        self._release_at = min(self._release_at, trio.current_time() + self._retry_seconds())

    def _release(self) -> None:
        """Try what waits for a node that answers again, or that the volume does not lie on any more."""
        for place in list(self._held):
            node = self._map.nodes.get(place[0])
            volume = self._map.volume_nowait(place[1])
            if node is None or not _away(node) or volume is None or node not in volume.nodes:
                self._push(self._held.pop(place), 0.0)
        self._release_at = trio.current_time() + self._retry_seconds() if self._held else float("inf")

    # -- one batch --

    async def _delete_due(self, now: float, tries: int = 0) -> None:
        async with self._busy:
            if now >= self._release_at:
                self._release()
            by_volume: dict[int, list[Doomed]] = {}
            for _ in range(min(BATCH, len(self._queue))):
                if self._queue[0][0] > now:
                    break
                doomed = heappop(self._queue)[2]
                if self._reading(doomed.ref):  # DL2
                    self._push([doomed], self._delay_seconds)
                else:
                    doomed.tries = max(doomed.tries, tries)
                    by_volume.setdefault(doomed.ref.volume, []).append(doomed)
            if self._careful:
                await self._spare_indexed(by_volume)
            try:
                async with trio.open_nursery() as nursery:
                    for volume in list(by_volume):
                        nursery.start_soon(self._delete, volume, by_volume)
            finally:
                for chunks in by_volume.values():  # cancelled before they were begun
                    self._again(chunks)

    async def _spare_indexed(self, by_volume: dict[int, list[Doomed]]) -> None:
        """Take out what the index names (DL4); all, when it cannot be asked."""
        refs = [doomed.ref for chunks in by_volume.values() for doomed in chunks]
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
            for chunks in by_volume.values():
                if isinstance(error, Unavailable):
                    self._push(chunks, self._retry_seconds())
                else:
                    self._again(chunks)
            by_volume.clear()
            return
        for volume, chunks in by_volume.items():
            by_volume[volume] = [doomed for doomed in chunks if doomed.ref not in named]

    async def _delete(self, id: int, by_volume: dict[int, list[Doomed]]) -> None:
        """The chunks of one volume; takes them out of *by_volume*."""
        chunks = by_volume.pop(id)
        failures: list[FlakeError] = []
        try:
            volume = await self._map.volume(id)
            nodes = volume.nodes
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    if not _away(node):
                        nursery.start_soon(self._delete_from, node, volume.collection, chunks, failures)
            if len(nodes) < len(volume.record.nodes):
                failures.append(Unavailable("one of its nodes has no usable address"))
        except FlakeError as error:
            failures.append(error)
            nodes = ()
        except BaseException:
            self._again(chunks)
            raise
        whole = self._sort(chunks, nodes, failed=bool(failures))
        self._tell(id, len(chunks), failures, whole=whole)

    async def _delete_from(
        self, node: Node, collection: str, chunks: Sequence[Doomed], failures: list[FlakeError]
    ) -> None:
        id = node.record.id
        here = [doomed for doomed in chunks if id not in doomed.done]
        if not here:
            return
        try:
            await node.door.run(partial(node.delete_sync, collection, [doomed.ref.key for doomed in here]))
        except FlakeError as error:
            if isinstance(error, Unavailable):
                self._map.suspect(node, error)
            failures.append(error)
            return
        for doomed in here:
            doomed.done |= {id}

    def _sort(self, chunks: Iterable[Doomed], nodes: Sequence[Node], *, failed: bool) -> bool:
        """After a try: these are done, held by a node that is away, or to be tried again. Are all done?"""
        whole = True
        again: list[Doomed] = []
        for doomed in chunks:
            missing = [node for node in nodes if node.record.id not in doomed.done]
            if not missing and not failed:
                self.deleted += 1
                self._unconfirmed.append(doomed)
                if self._confirm_at == float("inf"):
                    self._confirm_at = trio.current_time() + CONFIRM_SECONDS
                continue
            whole = False
            if missing and all(_away(node) for node in missing) and doomed.tries < TRIES - 1:
                self._hold(missing[0], doomed)
            else:
                again.append(doomed)
        self._again(again)
        return whole

    def _tell(self, id: int, count: int, failures: Sequence[FlakeError], *, whole: bool) -> None:
        if failures and id not in self._failing:
            self._failing.add(id)
            log.info("%d chunks of volume %d cannot be deleted now, which is tried again: %s", count, id, failures[0])
        elif whole and id in self._failing:
            self._failing.discard(id)
            log.info("chunks of volume %d can be deleted again", id)

    async def _confirm(self) -> None:
        """DL5."""
        done, self._unconfirmed = self._unconfirmed, []
        self._confirm_at = float("inf")
        if not done:
            return
        try:
            await self._map.look()
        except FlakeError:
            self._unconfirmed = (done + self._unconfirmed)[:WAITING_MAX]
            self._confirm_at = trio.current_time() + self._retry_seconds()
            return
        moved: list[Doomed] = []
        for doomed in done:
            volume = self._map.volume_nowait(doomed.ref.volume)
            if volume is not None and not doomed.done.issuperset(volume.record.nodes):
                moved.append(doomed)
        self.deleted -= len(moved)
        self._push(moved, 0.0)


def _away(node: Node) -> bool:
    """Is it known not to answer?"""
    return isinstance(node.problem, Unavailable)

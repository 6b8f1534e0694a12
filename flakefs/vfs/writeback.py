"""Written content on its way to the nodes: the queue of sealed blocks, the tasks that store it, and the side of the
commit that knows content.

Purpose
    Full blocks are stored while their file is still being written; a commit then only waits for the rest.

Invariants
    W1  Until it is durable, a block is named by a map, or by a group of the journal, or it is not needed any more; it
        is never held only by a local variable of a task: what could not be stored goes back to the head of the queue.
    W2  Every block that the engine has stored is announced to the namespace with no await in between (adopt), so that
        its pin ends with a commit whatever becomes of the file.
    W3  store() returns only when all its blocks are durable.
    W4  Whenever more than the limit is dirty, something runs that makes it less, or a failure is recorded.

Concurrency
    Trio task only. Runs store_tasks + 1 tasks. seal() and settle() never wait.

Not here
    How blocks are made (vfs.content, vfs.sealing), who waits for room (vfs.budget).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence

import trio

from flakefs.engine import Engine
from flakefs.errors import FlakeError, StoreError
from flakefs.format.documents import IndexRecord
from flakefs.namespace import Inode, Namespace
from flakefs.values import LITERAL_MAX, Block, Source
from flakefs.vfs.budget import Budget
from flakefs.vfs.content import FileContent
from flakefs.vfs.options import VfsOptions
from flakefs.vfs.sealing import has_literals, seal_content

log = logging.getLogger(__name__)

AT_ONCE_BYTES = 64 * 1024
"""A commit with no more content than this stores it in the way that takes the fewest round trips (fsync of a
database); with more, the way that takes the fewest bytes."""
SEVERAL = -1
"""In place of a window: the block holds pieces of several."""
BATCH_BYTES_MIN = 2 * 1024 * 1024
BATCH_BYTES_MAX = 4 * 1024 * 1024
"""In one engine call, when so much waits; within these a sixteenth of the dirty bytes, so that several calls are in
flight. 4 MiB take a tenth less CPU time than 2; with 8 the memory peaks at 336 MiB instead of 285."""
BATCH_BLOCKS = 512
"""Small blocks in one engine call; it looks them up with one query."""
RETRY_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Waits between attempts while the store fails; the last one repeats."""


class Writeback:
    """Content of all files that is not durable yet. The namespace's ContentSide, and the Sink of all FileContents."""

    def __init__(self, engine: Engine, chunk_size: int, options: VfsOptions) -> None:
        # Dependencies
        self.engine = engine
        self._ns: Namespace | None = None
        # Constant after construction
        self.chunk_size = chunk_size
        self.zeros = bytes(chunk_size)
        self._tasks = options.store_tasks
        self._batch_bytes = max(chunk_size, BATCH_BYTES_MIN, min(BATCH_BYTES_MAX, options.dirty_bytes // 16))
        # Mutable
        self.budget = Budget(options.dirty_bytes, options.error_timeout_seconds)
        self.contents: dict[int, FileContent] = {}
        self._queue: deque[tuple[FileContent, int, Block]] = deque()
        self._ripe: dict[FileContent, None] = {}
        self._stored_bytes = 0
        self._in_flight = 0
        self._storing: set[Block] = set()
        self._done = trio.lowlevel.ParkingLot()
        self._work = trio.lowlevel.ParkingLot()
        self._pressure = trio.lowlevel.ParkingLot()
        self._hardening = False
        self.committed = trio.lowlevel.ParkingLot()
        """Woken by every commit that went through."""

    @property
    def ns(self) -> Namespace:
        assert self._ns is not None, "attach() comes first"
        return self._ns

    def attach(self, ns: Namespace) -> None:
        """The namespace is made after its content side; it is told here."""
        self._ns = ns

    # --- files ---

    def content(self, inode: Inode) -> FileContent:
        """The content of a regular file; one object for all who ask while it is in use."""
        found = self.contents.get(inode.ino)
        if found is None or found.inode is not inode:
            if found is not None:
                self.forget(found)
            found = self.contents[inode.ino] = FileContent(inode, self)
        return found

    def idle(self, content: FileContent) -> None:
        """The last handle is closed: what it left open may be stored when enough has come together."""
        if not content.windows and not content.touched and not content.fragmented:
            if self.contents.get(content.inode.ino) is content:
                del self.contents[content.inode.ino]
            return
        if content.inode.size > LITERAL_MAX:
            self._ripe[content] = None
            if self.budget.open_bytes * 4 >= self.budget.limit:
                ripe, self._ripe = self._ripe, {}
                self._seal_early(ripe)

    def forget(self, content: FileContent) -> None:
        """The file does not exist any more."""
        content.forget()
        self._ripe.pop(content, None)
        if self.contents.get(content.inode.ino) is content:
            del self.contents[content.inode.ino]
        self.budget.wake()

    # --- Sink ---

    def queue(self, content: FileContent, window: int, block: Block) -> None:
        """Have a sealed block stored in the background."""
        self._queue.append((content, window, block))
        if self._work:
            self._work.unpark()

    def resident(self, source: Source) -> bytes | bytearray | None:
        """All bytes of *source* when they are in memory."""
        if isinstance(source, Block):
            if source.data is not None:
                return source.data
            return None if source.ref is None else self.engine.peek(source.ref)
        if type(source) is bytes:
            return source
        return self.engine.peek(source)  # type: ignore[arg-type]

    # --- ContentSide ---

    def seal(self) -> list[Block]:
        """At the cut: freeze what is open in all changed files; the blocks that must be durable before the commit."""
        result: list[Block] = []
        for inode in self.ns.dirty_files():
            content = self.contents.get(inode.ino)
            if content is None or content.inode is not inode:
                if inode.map is None or inode.size <= LITERAL_MAX or not has_literals(inode.map):
                    continue
                content = self.content(inode)
            for block in seal_content(content, self.chunk_size, self.resident):
                self.budget.seal(block)
            result += content.undurable()
        self._ripe.clear()
        self.budget.wake()  # literals are not counted
        return result

    async def store(self, blocks: Sequence[Block]) -> None:
        """Make *blocks* durable (W3)."""
        blocks = [block for block in blocks if block.data is not None]
        if not blocks:
            return
        for block in blocks:
            self.budget.seal(block)
        try:
            while todo := [block for block in blocks if block.ref is None]:
                mine = [block for block in todo if block not in self._storing]
                if mine:
                    await self._store_together(mine)
                else:
                    await self._done.park()
            before = self._stored_bytes
            await self.engine.harden()
            self._stored_bytes = max(0, self._stored_bytes - before)
        except FlakeError as error:
            self.budget.failed(error)
            raise
        self.budget.drop_durable()
        self.budget.recovered()

    def share(self, shared: bool) -> None:
        """Other sessions write too, or no longer."""
        self.engine.share(shared)

    def settle(self, kept: Iterable[Block], dropped: Iterable[Block], removed: Iterable[IndexRecord]) -> None:
        """A commit is through."""
        dropped = list(dropped)
        for block in dropped:
            self.budget.drop(block)
        self.engine.settle(kept, dropped, removed)
        if not self._queue and not self._storing:
            self._note_success()
        self._tidy()
        self.committed.unpark_all()

    def at_rest(self) -> bool:
        return self.engine.idle()

    def lapsed(self) -> bool:
        return self.engine.lapsed()

    # --- tasks ---

    async def run(self) -> None:
        """Store in the background until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._tasks):
                nursery.start_soon(self._run_store_task)
            nursery.start_soon(self._run_pressure_task)

    def press(self) -> None:
        """Somebody is about to wait for room (W4)."""
        self._pressure.unpark_all()

    async def _run_store_task(self) -> None:
        attempt = 0
        while True:
            batch = self._take()
            if not batch:
                if not self._storing:
                    self.budget.recovered()  # nothing is left that could not be stored
                if self.budget.waiters:
                    self.press()
                await self._work.park()
                continue
            self._in_flight += 1
            try:
                await self._store([block for _, _, block in batch])
                if self._stored_bytes * 2 >= self.budget.limit:
                    await self._harden()
            except Exception as error:
                self._queue.extendleft(reversed(batch))  # W1
                self._note_failure(error)
                await trio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1
            else:
                attempt = 0
                self._note_success()
            finally:
                self._in_flight -= 1
            if self.budget.waiters:
                self.press()

    def _take(self) -> list[tuple[FileContent, int, Block]]:
        """The next blocks to store in one call; those nobody needs any more are left out."""
        batch: list[tuple[FileContent, int, Block]] = []
        size = 0
        queue = self._queue
        while queue and size < self._batch_bytes and len(batch) < BATCH_BLOCKS:
            content, window, block = queue[0]
            if block.ref is not None or block.data is None or block in self._storing:
                queue.popleft()  # a commit was faster
            elif window != SEVERAL and not content.names(window, block):
                queue.popleft()
                self.budget.drop(block)
            else:
                if batch and size + len(block.data) > self._batch_bytes:
                    break
                size += len(block.data)
                batch.append(queue.popleft())
        return batch

    async def _store(self, blocks: list[Block], *, at_once: bool = False) -> None:
        """engine.store, and the announcement of what came through, also of a part (W2)."""
        self._storing.update(blocks)
        try:
            await self.engine.store(blocks, at_once=at_once)
        finally:
            done = [block for block in blocks if block.ref is not None]
            self.ns.adopt(done)
            self._storing.difference_update(blocks)
            self._stored_bytes += sum(block.ref.length for block in done if block.ref is not None)
            self._done.unpark_all()

    async def _store_together(self, blocks: list[Block]) -> None:
        """Store many blocks by several calls at once; raises the first error when all calls have ended."""
        batches = _batches(blocks, self._batch_bytes)
        if len(batches) == 1:
            await self._store(blocks, at_once=sum(len(block.data or b"") for block in blocks) <= AT_ONCE_BYTES)
            return
        errors: list[FlakeError] = []
        waiting = iter(batches)

        async def work() -> None:
            for batch in waiting:
                if errors:
                    return
                try:
                    await self._store(batch)
                except FlakeError as error:
                    errors.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._tasks, len(batches))):
                nursery.start_soon(work)
        if errors:
            raise errors[0]

    async def _harden(self) -> None:
        """Relieve memory of what is stored; one task at a time, the others go on storing."""
        if self._hardening:
            return
        self._hardening = True
        before = self._stored_bytes
        try:
            await self.engine.harden()
            self._stored_bytes = max(0, self._stored_bytes - before)
            self.budget.drop_durable()
        except FlakeError as error:
            self._note_failure(error)
        finally:
            self._hardening = False

    def _seal_early(self, contents: Iterable[FileContent]) -> None:
        """Seal and queue without a cut."""
        if self.ns.failure is not None or self.ns.read_only:
            return
        for content in contents:
            inode = content.inode
            if inode.size <= LITERAL_MAX or not content.windows or self.contents.get(inode.ino) is not content:
                continue
            self.ns.changed(inode)
            for block in seal_content(content, self.chunk_size, self.resident):
                self.budget.seal(block)
                self.queue(content, SEVERAL, block)

    async def _run_pressure_task(self) -> None:
        """While writers wait: seal early, harden, and at last commit (W4)."""
        while True:
            if not (self.budget.over and self.budget.waiters):
                await self._pressure.park()
                continue
            if not self._queue and not self._in_flight:
                self._seal_early(list(self.contents.values()))
            if self._queue or self._in_flight:
                await self._pressure.park()  # store tasks are busy; they press again when done
                continue
            await self._harden()
            if self.budget.over:
                try:
                    await self.ns.commit()
                except FlakeError as error:
                    self.budget.failed(error)
                    await trio.sleep(RETRY_SECONDS[-1])
            await trio.lowlevel.checkpoint()
            self.budget.wake()

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, FlakeError):
            if self.budget.failure is None:
                log.log(error.log_level, "written content cannot be stored, it is kept and tried again: %s", error)
            self.budget.failed(error)
        else:
            log.error("storing content met a bug in FlakeFS; it is kept and tried again", exc_info=error)
            self.budget.failed(StoreError(f"storing met a bug in FlakeFS: {error!r}"))

    def _note_success(self) -> None:
        if self.budget.failure is not None:
            log.info("written content is stored again")
            self.budget.recovered()

    def _tidy(self) -> None:
        """Let go of files that are closed and durable, or gone."""
        knows = self.ns.knows
        for ino, content in list(self.contents.items()):
            if not knows(content.inode):
                self.forget(content)
            elif not content.windows and not content.handles and not content.fragmented:
                content.undurable()
                if not content.touched:
                    del self.contents[ino]

    def check_invariants(self) -> None:
        self.budget.check_invariants()
        opened = 0
        for content in self.contents.values():
            content.check_invariants()
            opened += sum(window.length for window in content.windows.values())
        assert opened == self.budget.open_bytes, "B1: open bytes drifted"


def _batches(blocks: list[Block], size: int) -> list[list[Block]]:
    """*blocks* in runs of at most BATCH_BLOCKS and about *size* bytes."""
    result: list[list[Block]] = []
    room = 0
    for block in blocks:
        length = len(block.data or b"")
        if not result or room < length or len(result[-1]) >= BATCH_BLOCKS:
            result.append([])
            room = size
        result[-1].append(block)
        room -= length
    return result

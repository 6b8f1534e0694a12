"""The namespace: one object for the layers above.

Purpose
    Puts the parts together and runs their tasks. What a method means is written where it is implemented; here is
    what all have in common.

Invariants
    Q1  Methods that are not async never wait. Async ones wait only for what is not in memory.
    Q2  Inode objects are unique per ino; holding one keeps it in memory.
    Q4  Alone, a change is in memory on return; in shared mode it is committed (namespace.operations).
    Q3  open_namespace() stores everything on the way out, or raises the reason why it could not.
    Q4  A server that is silent does not make a living mount look dead: inode_count() always answers, and soon.

Concurrency
    Belongs to the trio thread; any number of tasks.

Not here
    Meaning of POSIX calls, permissions, content (vfs).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import trio
from pymongo.database import Database

from flakefs.errors import Damaged, FlakeError, NotFormatted, Stale, Unavailable
from flakefs.format.documents import INODES, Document
from flakefs.mongo.door import Door
from flakefs.namespace.cache import STALE, Cache
from flakefs.namespace.changes import Changes
from flakefs.namespace.coherence import Coherence, KernelSide
from flakefs.namespace.entries import Entries
from flakefs.namespace.inode import Inode
from flakefs.namespace.journal import Journal
from flakefs.namespace.numbers import Numbers
from flakefs.namespace.operations import Operations
from flakefs.namespace.options import ContentSide, NamespaceOptions, NamespaceStatistics
from flakefs.namespace.orphans import Orphans
from flakefs.namespace.prefetch import Prefetch
from flakefs.namespace.renames import Meant, Renames
from flakefs.namespace.rollback import Reload
from flakefs.namespace.segments import Segments
from flakefs.namespace.sessions import Session
from flakefs.namespace.shared import Shared, Watch
from flakefs.values import ROOT_INO, Block

log = logging.getLogger(__name__)
T = TypeVar("T")

INODE_BYTES = 512
"""What an inode without extents takes on the metadata's disk, with its indexes; measured: about 200 at rest."""
COUNT_SECONDS = 1.0
"""How long a count of the inodes may take, and how long it is believed."""


def _inodes_and_room(database: Database[Document]) -> tuple[int, int | None]:
    stats = database.command("dbStats")
    total, used = int(stats.get("fsTotalSize", 0)), int(stats.get("fsUsedSize", 0))
    room = max(0, total - used) // INODE_BYTES if total else None
    return database[INODES].estimated_document_count(), room


class Namespace:
    """Names and inodes of one file system. Made by open_namespace()."""

    def __init__(
        self, cache: Cache, journal: Journal, numbers: Numbers, segments: Segments, orphans: Orphans, root: Inode
    ) -> None:
        entries = Entries(cache)
        changes = Changes(cache, entries, numbers, room=journal.room, release_content=orphans.release_content)
        orphans.bury = changes.bury
        changes.unused = orphans.unused
        self.coherence = coherence = Coherence(cache)
        coherence.unnamed = orphans.unnamed
        self.when_rebased: Callable[[Inode], None] = lambda inode: None
        """Written content of the file was laid over what another session stored."""
        journal.reload = Reload(
            cache, changes.bury, lambda inode: self.when_rebased(inode), coherence.drop_attributes
        ).reload
        journal.outlived = coherence.forget_kernel
        self._changes = changes
        self._renames = Renames(changes)
        self._operations = Operations(cache, entries, journal, coherence)
        changes.settled = self._operations.settled
        self._shared: Shared | None = None
        self.root = root
        self.read_only = cache.read_only
        self.shared = cache.shared
        """Other sessions write too."""
        cache.when_shared = self._note_shared
        self._cache = cache
        self._journal = journal
        self._entries = entries
        self._prefetch = Prefetch(entries)
        self._segments = segments
        self._count = 0
        self._count_due = 0.0
        self.inode_room: int | None = None
        """For how many more inodes the metadata's disk had room at the last count; None: the server does not say."""
        # Reading
        self.peek = cache.peek
        self.get = cache.get
        self.peek_child = entries.peek_child
        self.child = entries.child
        self.load = segments.load
        self.patience: Callable[[], float] = cache.patience
        """Seconds that whoever needs an answer of the metadata server waits for one."""
        # Changing
        self.truncate = segments.truncate
        self.changed = cache.changed
        self.accessed = cache.accessed
        self.set_times = cache.times.mark
        self.check_writable = cache.check_writable
        self.room = journal.room
        # Users of inodes
        self.hold = changes.hold
        self.release = changes.release
        self.held: Mapping[int, int] = cache.holds
        """How often each inode is held."""
        self.known: Callable[[int], Inode | None] = cache.known.get
        """The inode as it is in memory, stale or not."""
        # Storing
        self.commit = journal.commit
        self.adopt: Callable[[Iterable[Block]], None] = journal.adopt

    @property
    def failure(self) -> FlakeError | None:
        """Why changes are refused at the moment."""
        return self._cache.failure

    # -- changing names (Q4) --

    async def make(
        self,
        parent: Inode,
        name: bytes,
        *,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
        xattrs: dict[bytes, bytes] | None = None,
        now: int,
    ) -> Inode:
        """A new file of any type; Exists when the name is taken, NotFound when the folder was removed."""

        def make() -> Awaitable[Inode]:
            return self._changes.make(
                parent, name, mode=mode, uid=uid, gid=gid, rdev=rdev, target=target, xattrs=xattrs, now=now
            )

        if not self._cache.shared:
            made = await make()
            if not self._cache.shared or await self._operations.committed(((parent, name),)):
                return made
        return await self._operations.run(make, ((parent, name),))

    async def link(self, inode: Inode, parent: Inode, name: bytes, *, now: int) -> None:
        """A further name for a file."""
        if not self._cache.shared:
            await self._changes.link(inode, parent, name, now=now)
            if not self._cache.shared or await self._operations.committed(((parent, name),)):
                return
        await self._operations.run(
            lambda: self._changes.link(inode, parent, name, now=now), ((parent, name),), (inode,)
        )

    async def unlink(self, parent: Inode, name: bytes, *, now: int) -> Inode:
        """Remove a name of something that is no folder; the inode it named."""
        if not self._cache.shared:
            inode = await self._changes.unlink(parent, name, now=now)
            if not self._cache.shared or await self._operations.committed(((parent, name),)):
                return inode
        return await self._operations.run(lambda: self._changes.unlink(parent, name, now=now), ((parent, name),))

    async def rmdir(
        self, parent: Inode, name: bytes, *, meant: Callable[[Inode], bool] | None = None, now: int
    ) -> Inode:
        """Remove an empty folder; NotMeant when *meant* says no."""
        if not self._cache.shared:
            inode = await self._changes.rmdir(parent, name, meant=meant, now=now)
            if not self._cache.shared or await self._operations.committed(((parent, name),)):
                return inode
        return await self._operations.run(
            lambda: self._changes.rmdir(parent, name, meant=meant, now=now), ((parent, name),)
        )

    async def rename(
        self,
        parent: Inode,
        name: bytes,
        new_parent: Inode,
        new_name: bytes,
        *,
        noreplace: bool = False,
        exchange: bool = False,
        meant: Meant | None = None,
        now: int,
    ) -> None:
        """See rename(2) and renameat2(2), and Renames.rename() for *meant*."""
        names = ((parent, name), (new_parent, new_name))

        async def rename() -> object:
            return await self._renames.rename(
                parent, name, new_parent, new_name, noreplace=noreplace, exchange=exchange, meant=meant, now=now
            )

        if not self._cache.shared:
            await rename()
            if not self._cache.shared or await self._operations.committed(names):
                return
        await self._operations.run(rename, names)

    def knows(self, inode: Inode) -> bool:
        """Is it the one of its number, fresh or not?"""
        return self._cache.known.get(inode.ino) is inode

    # -- shared mode --

    def _note_shared(self, shared: bool) -> None:
        self.shared = shared

    @property
    def trusted(self) -> bool:
        """May what was answered be believed for long?"""
        return self._shared is None or self._shared.trusted

    def stream_lag(self) -> float | None:
        """Seconds that the last change of another session took until it arrived here."""
        return None if self._shared is None else self._shared.lag()

    def membership(self) -> dict[str, Any]:
        """Mode, other sessions, stream: for people."""
        return {} if self._shared is None else self._shared.summary()

    def attach_kernel(self, side: KernelSide) -> None:
        """Tell *side* what others changed."""
        self.coherence.kernel = side

    async def redone(self, change: Callable[[], Awaitable[T]]) -> T:
        """Shared mode: make a change, commit it, and do it again when another session was faster."""
        return await self._operations.run(change)

    async def committed(self) -> bool:
        """The change made just now is committed; False: it was taken back, do it again."""
        return await self._operations.committed(())

    async def looked_up(self, parent: Inode, name: bytes, *, fresh: bool = False) -> Inode | None:
        """child() in shared mode, where what is not committed is shown to nobody. *fresh*: the store is asked."""
        return await self._operations.look_up(parent, name, fresh=fresh)

    async def reread(self, ino: int) -> Inode:
        """The inode, with all that was committed elsewhere before the call; what was written here goes first, but who
        goes on writing keeps nobody waiting.
        """
        cache = self._cache
        for _ in range(2):  # the first may have been cut before the call; what is in the second was not (J2)
            inode = cache.known.get(ino)
            if inode is not None and (inode.dirty or inode.flying):
                await self._journal.commit()
        inode = cache.known.get(ino)
        if inode is not None and (inode.dirty or inode.flying):
            return await cache.get(ino)  # the second met its guard after the call, or had it read again (J7)
        if inode is not None:
            inode.expires = STALE
        found, absent = await cache.fetch((ino,))
        if ino in absent:
            raise Stale(f"there is no inode {ino} any more")
        return found.get(ino) or await cache.get(ino)

    def wrote(self, inode: Inode, start: int, stop: int) -> None:
        """Shared mode: bytes [start, stop) were written and will be answered before they are committed."""
        inode.wrote(start, stop)

    async def listing(self, parent: Inode, after: int, limit: int) -> list[tuple[int, bytes, Inode]]:
        """Names of a folder with cookies > *after*, ascending: (cookie, name, inode), at most *limit*; [] at the
        end.
        """
        result = await self._operations.listing(parent, after, limit)
        if after == 0:
            self._prefetch.listed(parent)
        return result

    def dirty_files(self) -> list[Inode]:
        """Regular files that changed since the last cut."""
        return [inode for inode in self._cache.dirty.values() if inode.map is not None]

    async def inode_count(self) -> int:
        """About how many inodes there are; the last known number while the metadata server does not answer (Q4)."""
        if monotonic() >= self._count_due:
            self._count_due = monotonic() + COUNT_SECONDS  # others need not ask too, nor wait
            cache = self._cache
            with suppress(Unavailable), trio.move_on_after(COUNT_SECONDS):  # a thread may be hard to get
                count = partial(_inodes_and_room, cache.database)
                self._count, self.inode_room = await cache.door.run(count, deadline_seconds=COUNT_SECONDS)
            self._count_due = monotonic() + COUNT_SECONDS
        return self._count

    def statistics(self) -> NamespaceStatistics:
        cache, journal = self._cache, self._journal
        return NamespaceStatistics(
            inodes=len(cache.known),
            cached_units=int(cache.clean.currsize),
            dirty=len(cache.dirty) + len(cache.flying),
            commits=journal.commits,
            documents=journal.documents,
            retries=journal.retries,
            commit_seconds=journal.commit_seconds,
        )


@asynccontextmanager
async def open_namespace(
    metadata: Door,
    database: str,
    *,
    options: NamespaceOptions,
    session: Session,
    content: ContentSide,
    clock: Callable[[], int],
    watch: Watch | None = None,
) -> AsyncIterator[Namespace]:
    """A namespace with its tasks; everything is stored on the way out (Q3)."""
    cache = Cache(metadata, database, options, read_only=not session.writable)
    try:
        root = await cache.get(ROOT_INO)
    except Stale as error:
        raise NotFormatted(f"there is no file system in database {database!r}: run flakefs format") from error
    if root.entries is None:
        raise Damaged("the root folder is not a folder: run flakefs fsck")
    journal = Journal(cache, content, session)
    numbers = Numbers(metadata, database, cache.patience)
    segments = Segments(cache, journal.room)
    orphans = Orphans(cache, segments, epoch=session.epoch)
    namespace = Namespace(cache, journal, numbers, segments, orphans, root)
    if session.writable:
        namespace._shared = shared = Shared(cache, journal, session, namespace.coherence, watch, content)
        shared.when_alone = orphans.sweep
        session.when_fenced = shared.fence
    failed: BaseException | None = None
    async with trio.open_nursery() as nursery:
        if namespace._shared is not None:
            nursery.start_soon(namespace._shared.run_journal)
            nursery.start_soon(namespace._shared.run)
        try:
            async with trio.open_nursery() as helpers:
                helpers.start_soon(_helping, namespace._prefetch.run)
                if session.writable:
                    helpers.start_soon(_helping, numbers.run)
                    helpers.start_soon(_helping, orphans.run)
                try:
                    yield namespace
                except BaseException as error:  # raised below: a nursery would wrap it into a group
                    failed = error
                cache.ending = True
                helpers.cancel_scope.cancel()
        except BaseException as error:  # we are being cancelled
            failed = failed or error
        try:
            with trio.CancelScope(shield=True):
                await _leave(journal, orphans, namespace._shared, session)
        except FlakeError as error:
            if failed is None:
                failed = error
            else:
                log.error("not everything could be stored: %s", error)
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _helping(run: Callable[[], Awaitable[None]]) -> None:
    """A task that the namespace can do without: a bug in it must not end a mount."""
    try:
        await run()
    except Exception:
        log.exception("a background task met a bug in FlakeFS and has ended")


async def _leave(journal: Journal, orphans: Orphans, shared: Shared | None, session: Session) -> None:
    """Store everything; and, if there have been others, do what one does for them before one ends."""
    if shared is not None and shared.switches and not session.fenced:
        with suppress(FlakeError):  # a later session does it too
            await orphans.leave()
    await journal.close()
    if shared is not None:
        await shared.write_times()


__all__ = ["Namespace", "open_namespace"]

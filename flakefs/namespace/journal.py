"""When a group is cut, and what happens when it cannot be stored.

Invariants
    J1  Groups are stored one after the other, each as a whole; what changes meanwhile is in a later one.
    J2  commit() returns only when everything changed before the call is durable.
    J3  Nothing is dropped because it could not be stored: it is tried again for as long as the process lives.
    J4  After error_timeout without success `failure` is set: those who wait are told and changes are refused; both
        end with the first success. Fenced and a failed guard are final. Who asks for a commit while it is set has the
        journal try at once, and waits HURRY_SECONDS for what comes of it: the server may be back.
    J5  A full node (NoSpace) refuses nothing but the commit: the group is taken back, so that removing files can
        help.
    J7  In shared mode a group that meets a conflict is taken back and read again with everything that is not committed:
        operations that wait for it are told (Conflict) and do it again; written content is laid over what is there.
    J6  Every block that is unsettled at a cut is reported kept or dropped exactly once, after its commit.
    J8  In shared mode a change may be stored after all of which somebody was told that it failed (J3): whoever believed
        that, the kernel, is told to forget everything (`outlived`).

Concurrency
    Belongs to the trio thread. run() is one task; commit() and room() any number.

Not here
    The transaction (namespace.commit), what is in a group (namespace.group).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from random import random
from time import monotonic

import trio

from flakefs.errors import Conflict, Fenced, FlakeError, NoSpace, StoreError, Unavailable
from flakefs.namespace.cache import LAZY_SECONDS, Cache
from flakefs.namespace.commit import transact
from flakefs.namespace.group import Group, Outcome, cut, finish, uncut
from flakefs.namespace.inode import Inode
from flakefs.namespace.options import ContentSide
from flakefs.namespace.rollback import roll_back
from flakefs.namespace.sessions import Session
from flakefs.namespace.tickets import Ticket, Tickets
from flakefs.values import Block

log = logging.getLogger(__name__)

PAUSE_FIRST_SECONDS = 0.02
PAUSE_MAX_SECONDS = 2.0
HURRY_SECONDS = 3.0
PAUSE_SHARED_SECONDS = 0.001
"""The first pause after a transaction of another session was in the way."""
TRANSACTION_SECONDS = 30.0
"""Deadline of one attempt; a group of 20,000 documents takes about 2 s."""
REMIND_SECONDS = 60.0
"""A bug that every attempt meets is logged once, and again after this time."""


class Journal:
    def __init__(self, cache: Cache, content: ContentSide, session: Session) -> None:
        self._cache = cache
        self._content = content
        self._session = session
        self._interval = cache.options.commit_interval_seconds
        self._patience = cache.options.error_timeout_seconds
        # Mutable
        self._cuts = 0
        self._done = 0
        self._busy_since: float | None = None  # the first attempt since the last success
        self._trouble: FlakeError | None = None  # of the last attempt
        self._refused: tuple[int, FlakeError] | None = None  # cut that a full node refused
        self._bug: tuple[str, float] = ("", 0.0)  # the last one logged, and when
        self._over = False  # no attempt will be made any more
        self.forsaken = False  # and something that was not stored is not in memory any more
        self._scope = trio.CancelScope(shield=True)
        self._wake = trio.Event()
        self._hurry = trio.Event()  # somebody waits for the next attempt
        self._progress = trio.Event()
        self._flight: dict[Block, None] = {}  # blocks of the running commit
        self._kept: list[set[Block]] = []  # blocks of the last ones
        self._tickets = Tickets()
        self._given_up = 0  # the last cut that somebody was told has failed while shared; 0: all that is stored (J8)
        self.reload: Callable[[list[Inode]], Awaitable[None]]  # set once by whoever builds both
        self.outlived: Callable[[], None] = lambda: None  # the same
        self.commits = 0
        self.conflicts = 0
        self.retries = 0
        self.documents = 0
        self.commit_seconds = 0.0
        self._held = -1  # the last commit after which something had lapsed
        cache.wake = self.wake
        session.idle = self.idle

    # -- for everybody --

    def wake(self) -> None:
        """Commit soon."""
        self._wake.set()

    def adopt(self, blocks: Iterable[Block]) -> None:
        """These were stored before a cut asked for them; the next cut settles them (J6)."""
        cache = self._cache
        for block in blocks:
            if block not in self._flight and not any(block in group for group in self._kept):
                cache.unsettled[block] = None

    async def commit(self) -> None:
        """J2. Raises StoreError or NoSpace when that cannot be within error_timeout."""
        if self._cache.read_only:
            return
        ticket = Ticket(self._cuts + 1 if self._pending else self._cuts)
        await trio.lowlevel.checkpoint()
        if self._done < ticket.need and self._cache.failure is not None:
            await self._second_chance()
        with self._tickets.queued(ticket):
            while self._done < ticket.need:
                if self._done == self._cuts and not self._pending:
                    return  # what was to be in the next group was taken back (J7): nobody would make one
                await self._wait_for(ticket)

    async def commit_changes(self) -> None:
        """The same for an operation in shared mode that has just changed something; raises Conflict when that was
        taken back (J7).
        """
        ticket = Ticket(self._cuts + 1 if self._pending else self._cuts)
        with self._tickets.queued(ticket):
            while self._done < ticket.need and not ticket.lost:
                await self._wait_for(ticket)
        if ticket.lost:
            raise Conflict("another session was first")

    async def _wait_for(self, ticket: Ticket) -> None:
        """Until there is progress of any kind; raises what commit() would."""
        self._raise_failure(ticket.need)
        if self._cuts < ticket.need:
            self.wake()
        with trio.move_on_after(max(0.0, self._remaining()) + 0.01):
            await self._progress.wait()
        self._check_patience()

    async def _second_chance(self) -> None:
        """J4."""
        self._hurry.set()
        with trio.move_on_after(HURRY_SECONDS):
            while self._cache.failure is not None and not self._over:
                await self._progress.wait()

    async def room(self) -> None:
        """Wait while too much is dirty; raises what commit() would."""
        cache = self._cache
        while len(cache.dirty) + len(cache.dirty_links) > cache.options.dirty_documents_max:
            self._raise_failure(self._cuts)
            self.wake()
            with trio.move_on_after(max(0.0, self._remaining()) + 0.01):
                await self._progress.wait()
            self._check_patience()

    def idle(self) -> bool:
        """Nothing waits for a commit, and nothing is pinned."""
        return not self._pending and self._busy_since is None and self._content.at_rest()

    def fence(self) -> None:
        """The session was declared dead: nothing more can be stored."""
        self._end(Fenced("another session declared this one dead and has taken over the file system: mount again"))

    # -- the task --

    async def run(self) -> None:
        """Commit at intervals and when asked to, until close(). Cancelling does not reach it: close() needs it."""
        with self._scope:
            try:
                while not self._over:
                    with trio.move_on_after(self._interval):
                        await self._wake.wait()
                    self._wake = trio.Event()
                    self._cache.mark_lazy(older=LAZY_SECONDS)
                    await self._tickets.gather(self._done, self.commit_seconds)
                    if self._pending:
                        await self._commit_group()
            except Exception as error:
                log.exception("the journal met a bug in FlakeFS")
                self._end(StoreError(f"the journal cannot go on ({error!r}): mount again"))

    async def close(self) -> None:
        """Store everything, and end run(); raises the reason when that is not possible within error_timeout."""
        self._cache.mark_lazy()
        try:
            while self._pending or self._done < self._cuts:
                await self.commit()
        finally:
            self._scope.cancel()

    @property
    def _pending(self) -> bool:
        cache = self._cache
        return bool(cache.dirty or cache.dirty_links or cache.unsettled or self.forsaken)

    async def _commit_group(self) -> None:
        """Everything dirty now is stored on return, or taken back by a full node, or it is over."""
        pause = PAUSE_FIRST_SECONDS
        if self._busy_since is None:
            self._busy_since = monotonic()
        while not self._over:
            self._cuts += 1
            group = cut(self._cache, self._content)
            self._flight = group.unsettled
            try:
                if group.blocks:
                    await self._content.store(group.blocks)
            except NoSpace as error:
                uncut(self._cache, group)
                self._refuse(error)
                return
            except FlakeError as error:
                uncut(self._cache, group)
                pause = await self._try_later(error, pause)
                continue
            except BaseException:
                uncut(self._cache, group)
                raise
            try:
                outcome = await self._store(group)
            except Conflict as error:
                log.debug("a commit is taken back and done again: %s", error)
                await self._roll_back(group)
                if not self._pending:
                    return
                continue
            if outcome is not None:
                self._succeed(group, outcome)
            return

    async def _roll_back(self, group: Group) -> None:
        """J7."""
        self.conflicts += 1
        lost = roll_back(self._cache, group)
        self._tickets.lose(self._cuts)
        self._flight = {}
        pause = PAUSE_FIRST_SECONDS
        while not self._over:
            try:
                await self.reload(lost)
                break
            except FlakeError as error:
                pause = await self._try_later(error, pause)
        if not self._pending:
            self._busy_since = None
            self._done = self._cuts
        self._tell()

    async def _store(self, group: Group) -> Outcome | None:
        """Write the group, however long it takes; None when it is over."""
        if group.empty:
            return Outcome([], list(group.unsettled), {}, [], 0)
        session, cache = self._session, self._cache
        number = session.commits + 1
        attempt = partial(transact, session.driver, cache.database.name, group, epoch=session.epoch, number=number)
        pause = PAUSE_SHARED_SECONDS if group.shared else PAUSE_FIRST_SECONDS
        while not self._over:
            try:
                if self._content.lapsed():
                    self._held = session.commits
                outcome = await cache.door.run(partial(attempt, held=self._held), deadline_seconds=TRANSACTION_SECONDS)
            except (Fenced, Conflict) as error:
                if group.shared and isinstance(error, Conflict):
                    raise
                self._end(error)
                return None
            except FlakeError as error:
                pause = await self._try_later(error, pause)
                continue
            except Exception as error:  # J3: a bug of ours loses nothing either
                self._log_bug(error)
                pause = await self._try_later(StoreError(f"the commit failed: {error!r}"), pause)
                continue
            if outcome is not None:
                session.commits = number
                return outcome
            pause = await self._try_later(Unavailable("other sessions keep changing the same documents"), pause)
        return None

    def _succeed(self, group: Group, outcome: Outcome) -> None:
        finish(self._cache, group, outcome.instead)
        self._content.settle(outcome.kept, outcome.dropped, outcome.removed)
        self._flight = {}
        if outcome.kept:
            self._kept = [*self._kept[-3:], set(outcome.kept)]
        if outcome.instead:
            for block in group.unsettled:
                if block.ref in outcome.instead:
                    block.ref = outcome.instead[block.ref]
        self.commits += 1
        self._tickets.answer(self._done)
        self._done = self._cuts
        self.documents += outcome.documents
        assert self._busy_since is not None
        self.commit_seconds = monotonic() - self._busy_since
        self._busy_since = None
        self._trouble = self._refused = None
        cache = self._cache
        if cache.failure is not None:
            cache.failure = None
            cache.closed = False
            log.info("everything is stored again; changes are possible again")
        if 0 < self._given_up <= self._done:
            self._given_up = 0
            self.outlived()
        self._tell()

    # -- trouble --

    async def _try_later(self, error: FlakeError, pause: float) -> float:
        """Note the failure and wait; the next pause."""
        self._trouble = error
        self.retries += 1
        self._check_patience()
        with trio.move_on_after(pause * (0.5 + random())):
            await self._hurry.wait()
            self._hurry = trio.Event()
            return PAUSE_FIRST_SECONDS
        return min(2 * pause, PAUSE_MAX_SECONDS)

    def _log_bug(self, error: Exception) -> None:
        """With its traceback, which would fill the disk if every attempt wrote it."""
        what, now = repr(error), monotonic()
        if what != self._bug[0] or now >= self._bug[1] + REMIND_SECONDS:
            self._bug = (what, now)
            log.error("a commit met a bug in FlakeFS and is tried again", exc_info=error)

    def _refuse(self, error: NoSpace) -> None:
        """J5."""
        self._refused = (self._cuts, error)
        self._busy_since = None
        self.retries += 1
        self._tell()

    def _remaining(self) -> float:
        """Seconds until those who wait are told."""
        if self._busy_since is None:
            return self._patience
        return self._busy_since + self._patience - monotonic()

    def _check_patience(self) -> None:
        """J4."""
        if self._cache.failure is None and self._remaining() <= 0:
            error = self._trouble or Unavailable(
                f"the store has not taken the changes for {self._patience:g} s: check that the servers run"
            )
            self._fail(error)

    def _fail(self, error: FlakeError) -> None:
        log.warning("changes cannot be stored and are refused until they can: %s", error)
        self._cache.failure = error
        self._cache.closed = True
        self._tell()

    def _end(self, error: FlakeError) -> None:
        """Nothing will be stored any more."""
        if not self._over:
            self._over = True
            self._fail(error)
            self.wake()
            self._hurry.set()

    def _raise_failure(self, need: int) -> None:
        failure = self._cache.failure
        if failure is None and self._refused is not None and self._refused[0] >= need:
            failure = self._refused[1]
        if failure is not None:
            if self._cache.shared:
                self._given_up = max(self._given_up, need)
            kind = type(failure) if isinstance(failure, StoreError | NoSpace) else StoreError
            raise kind(str(failure)) from failure

    def _tell(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

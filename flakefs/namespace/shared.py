"""Alone or shared: who else is there, and what follows from it.

Purpose
    Watches the other sessions. When a second one comes, everything is committed, from then on operations commit before
    they are answered, and only then the newcomer is acknowledged; when the last one has gone, back again.

Invariants
    SM1  A newcomer is acknowledged only when everything that was answered before is committed.
    SM2  What is cached is believed in shared mode only while the stream of the others' news is healthy; what was
         cached before a loss of news never is.
    SM4  A session that was declared dead shows only what is stored, and neither it nor the kernel believes anything for
         longer than DOUBT_SECONDS: nobody tells it of changes, and it does not know since when.
    SM3  Alone mode comes back when no other session lives, and their last news was applied or everything was dropped.

Concurrency
    Belongs to the trio thread; run() is one task with children.

Not here
    Registering, leases (namespace.sessions), what news does (namespace.coherence).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any

import trio

from flakefs.errors import Fenced, FlakeError
from flakefs.mongo.patience import ask
from flakefs.mongo.stream import Stream
from flakefs.namespace.cache import Cache
from flakefs.namespace.coherence import Coherence
from flakefs.namespace.journal import Journal
from flakefs.namespace.options import ContentSide
from flakefs.namespace.rollback import forsake
from flakefs.namespace.sessions import Session
from flakefs.namespace.times import write

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
"""Without a stream."""
RETRY_SECONDS = 0.2
TIMES_SECONDS = 1.0

Watch = Callable[[int], AbstractAsyncContextManager[Stream]]
"""epoch -> the stream of the other sessions' changes."""


class Shared:
    def __init__(
        self,
        cache: Cache,
        journal: Journal,
        session: Session,
        coherence: Coherence,
        watch: Watch | None,
        content: ContentSide,
    ) -> None:
        self._cache = cache
        self._journal = journal
        self._session = session
        self._coherence = coherence
        self._watch = watch
        self._content = content
        # Mutable
        self._stream: Stream | None = None
        self.healthy = False  # news comes
        self._told = False  # our document says that we share, and what we have seen
        self._unheard = set(session.others)  # live others whose end the stream has not told
        self._event = trio.Event()
        self._writing = trio.Lock()  # of times
        self.switches = 0
        self.when_alone: Callable[[], None] = lambda: None  # set once
        session.when_beat = self.look_soon
        session.tell = self.facts
        if session.others:
            self._share()
            self._told = True

    @property
    def trusted(self) -> bool:
        """May caches above believe what they know for long?"""
        return (not self._cache.shared or self.healthy) and not self._cache.dead

    def lag(self) -> float | None:
        """Seconds from a change elsewhere to its arrival here, of the last one; None: none arrived, or none would."""
        return self._stream.lag_seconds if self._stream is not None and self.healthy else None

    def facts(self) -> dict[str, Any]:
        """What the session's document says about it, for `flakefs status`."""
        return {"stream": "healthy" if self.healthy else "broken", "lag": self.lag()}

    def summary(self) -> dict[str, Any]:
        session = self._session
        return {
            "epoch": session.epoch,
            "mode": "shared" if self._cache.shared else "alone",
            "others": sorted(session.others),
            "stream": "healthy" if self.healthy else "broken",
            "lag_seconds": self.lag(),
            "conflicts": self._journal.conflicts,
            "news": self._coherence.applied,
            "switches": self.switches,
        }

    def fence(self) -> None:
        """SM4: the session was declared dead."""
        self._journal.fence()
        self._cache.doubt_for_ever()
        self._coherence.forget_kernel()

    async def run_journal(self) -> None:
        """SM4: what it could not store when it ends because of that is not shown any more either."""
        await self._journal.run()
        if isinstance(self._cache.failure, Fenced):
            self._session.fence()
            self._journal.forsaken = forsake(self._cache)
            self._coherence.forget_kernel()

    def look_soon(self) -> None:
        self._event.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            if self._watch is not None:
                nursery.start_soon(self._follow, self._watch)
            nursery.start_soon(self._write_times)
            self._event.set()
            while True:
                seconds = float("inf") if self.healthy else POLL_SECONDS
                with trio.move_on_after(seconds):
                    await self._event.wait()
                self._event = trio.Event()
                try:
                    await self._look()
                except FlakeError as error:
                    log.info("the other sessions cannot be looked at, it is tried again: %s", error)
                    await trio.sleep(RETRY_SECONDS)
                    self._event.set()

    async def _look(self) -> None:
        session, cache = self._session, self._cache
        if session.fenced:
            await trio.sleep_forever()
        others = await session.look()
        session.others = others
        self._unheard |= others
        if others:
            if not cache.shared:
                self._share()
            top = max(*others, session.sees)
            if top > session.sees or not self._told:
                await self._journal.commit()  # SM1
                await self.write_times()  # the newcomer has had no news of them
                await self._tell(top, True)
        elif cache.shared:
            await self._end_sharing()

    async def _tell(self, sees: int, shared: bool) -> None:
        session = self._session
        if not await session.acknowledge(sees, shared):
            session.fence()
            return
        session.sees = sees
        self._told = shared

    def _share(self) -> None:
        cache = self._cache
        cache.share()
        cache.doubt(not self.healthy)
        self._content.share(True)
        self.switches += 1
        log.info("another session works on the file system: changes are committed before they are answered")

    async def _end_sharing(self) -> None:
        """SM3."""
        cache = self._cache
        await self.write_times()
        await self._journal.commit()
        await self._tell(self._session.sees, False)
        if self._session.fenced:
            return
        if await self._session.look():  # one that came meanwhile may have read that we share: then we do
            self._event.set()
            return
        if self._unheard or not self.healthy:
            self._coherence.drop_all()
        self._unheard.clear()
        cache.end_sharing()
        self._content.share(False)
        self.when_alone()
        self.switches += 1
        log.info("no other session works on the file system any more")

    # -- the stream --

    async def _follow(self, watch: Watch) -> None:
        async with watch(self._session.epoch) as stream:
            self._stream = stream
            async for event in stream.events():
                if event.kind == "change":
                    assert event.document is not None
                    self._take(event.document)
                elif event.kind == "gap":
                    self._coherence.drop_all()
                    self.look_soon()
                else:
                    self._note_health(event.kind == "healthy")

    def _take(self, document: Mapping[str, Any]) -> None:
        if "state" in document:
            if document["state"] == "dead":
                self._unheard.discard(document["_id"])
            self.look_soon()
        try:
            self._coherence.take(document)
        except FlakeError as error:
            log.warning("news of session %s: %s", document["_id"], error)
            self._coherence.drop_all()

    def _note_health(self, healthy: bool) -> None:
        """SM2."""
        self.healthy = healthy
        if self._cache.shared:
            self._coherence.drop_all()
            self._cache.doubt(not healthy)
        self.look_soon()

    # -- times of folders --

    async def _write_times(self) -> None:
        while True:
            await trio.sleep(TIMES_SECONDS)
            self._coherence.doubt_times()
            if self._cache.times.pending:
                try:
                    await self.write_times()
                except FlakeError:
                    await trio.sleep(RETRY_SECONDS)  # they are only times; the journal tells

    async def write_times(self) -> None:
        """Times that shared mode keeps out of guarded documents: all of them are stored on return, also by a session
        that is about to end (P1)."""
        cache = self._cache
        async with self._writing:
            if not cache.times.pending or self._session.fenced:
                return
            times = cache.times.take()
            began = monotonic()
            try:
                await ask(
                    cache.door,
                    lambda: write(cache.database, times),
                    lambda: cache.options.error_timeout_seconds,
                )
            except BaseException:
                cache.times.give_back()
                raise
            cache.times.done()
        log.debug("times of %d inodes were written in %.3f s", len(times), monotonic() - began)


__all__ = ["Shared", "Watch"]

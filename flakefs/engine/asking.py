"""Asking the replicas of a volume until one gives good copies.

Purpose
    `answers` gets chunks of one volume from whichever of its nodes is nearest, asks another one as well when that takes
    unusually long, goes on to the next after any failure, and reports bad copies of which there is a good one.

Invariants
    AS1  Every replica is tried before an error. Unavailable beats the others: a node that does not answer may have the
         good copy.
    AS2  The first good answer counts. Who is slower is not waited for; but a node that has answered nobody for
         OVERDUE_SECONDS is suspect, so that one read pays for it, and the next ones go elsewhere until a probe
         succeeds.
    AS3  Missing everywhere is believed only of nodes that a fresh look at the map still names: a volume may have been
         moved since the last one.
    AS4  A volume of one node is asked in the calling task, with nothing around it.

Concurrency
    Trio thread. Replicas are asked in tasks of the engine's nursery, which may outlive the call: they only read, and
    end when the node answers or is overdue.

Not here
    Single flight and the cache (engine.reader), what a copy is worth (engine.copies), when and in which order
    (engine.hedging, engine.nearness), mending (engine.healing).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

import trio

from flakefs.engine.copies import Answer, Moving, better, is_bad, read_copies_sync
from flakefs.engine.hedging import Budget
from flakefs.engine.nearness import Nearness
from flakefs.engine.nodes import Node
from flakefs.engine.volumes import Volume, VolumeMap
from flakefs.errors import ChunkMissing, FlakeError, Refused, Unavailable
from flakefs.mongo.patience import LEAST_SECONDS
from flakefs.values import ChunkRef

log = logging.getLogger(__name__)

SILENT_SECONDS = 2.0
"""So long a node that has kept a read waiting for its whole deadline gets no further one, unless a probe succeeds: the
read-ahead has often waited already for what a program reads next."""
OVERDUE_SECONDS = 1.0
"""Who has another replica waits no longer for one that answers nobody."""
RECHECK_SECONDS = 0.05
"""So often a read that may not be asked twice (HE2) looks whether that has changed."""

Finding = Callable[[Volume, Node, ChunkRef, Answer], None]


class Asker:
    def __init__(self, map: VolumeMap, nursery: trio.Nursery, found_bad: Finding) -> None:
        """*found_bad*: told of every bad copy of which there is a good one; does not wait."""
        # Dependencies
        self.map = map
        self.nursery = nursery
        self.found_bad = found_bad
        # Constant after construction
        self._patience = map.options.error_timeout_seconds
        # Mutable; changed only between awaits
        self.nearness = Nearness(map.options.dc, map.options.rack)
        self.budget = Budget()
        self.hedged = 0

    def left(self, volume: Volume | None, asked: float) -> float:
        """Seconds until a read of the volume that began at *asked* has waited enough."""
        if volume is None or not volume.nodes:  # the metadata server was to tell where it is
            silent = [self.map.silent_since]
            if silent == [None]:
                return 0.0  # it has told: nowhere that can be reached
        else:
            silent = [node.door.silent_since for node in volume.nodes]
        since = max((moment for moment in silent if moment is not None), default=asked)
        return min(asked, since) + self._patience - monotonic()

    async def answers(self, refs: Sequence[ChunkRef], asked: float | None) -> dict[ChunkRef, Answer]:
        """One for each of these chunks of one volume. *asked*: when the reader began to wait; None: it does not.

        Raises FlakeError when the volume's place is not known.
        """
        volume = await self._volume(refs[0].volume)
        nodes = volume.nodes
        found = await self._ask(volume, refs, asked)
        lost = [ref for ref in refs if is_bad(found[ref]) or isinstance(found[ref], Moving)]
        if lost:  # AS3
            try:
                await self.map.look()
                volume = await self._volume(refs[0].volume)
                if volume.nodes != nodes:
                    found |= await self._ask(volume, lost, asked)
            except FlakeError as error:
                found |= {ref: error for ref in lost if isinstance(found[ref], ChunkMissing)}
        return found

    async def _volume(self, id: int) -> Volume:
        volume = self.map.volume_nowait(id)
        if volume is not None and volume.nodes:
            return volume
        return await self.map.volume(id)

    async def _ask(self, volume: Volume, refs: Sequence[ChunkRef], asked: float | None) -> dict[ChunkRef, Answer]:
        if len(volume.nodes) == 1:  # AS4
            return dict(zip(refs, await self.ask_node(volume.nodes[0], volume, refs, asked), strict=True))
        return await Race(self, volume, refs, asked).run()

    async def ask_node(
        self, node: Node, volume: Volume, refs: Sequence[ChunkRef], asked: float | None
    ) -> Sequence[Answer]:
        """One answer for each ref. A node that has just let a read wait in vain is not asked again at once."""
        begun = trio.current_time()
        if node.problem is not None and (asked is None or begun < node.silent_until or self._given_up(node)):
            return [type(node.problem)(str(node.problem))] * len(refs)
        deadline = node.door.deadline_seconds
        if asked is not None:
            deadline = min(deadline, max(self.left(volume, asked), LEAST_SECONDS))

        def read_sync() -> list[Answer]:
            return read_copies_sync(node, volume.collection, volume.record.id, refs)

        try:
            return await node.door.run(read_sync, deadline_seconds=deadline, abandon=True)
        except Moving as error:
            return [error] * len(refs)
        except FlakeError as error:
            if isinstance(error, Unavailable | Refused):
                self.map.suspect(node, error)
                now = trio.current_time()
                if now - begun >= node.door.deadline_seconds / 2:
                    node.silent_until = now + SILENT_SECONDS
            return [error] * len(refs)

    def _given_up(self, node: Node) -> bool:
        """Has it been away for longer than anybody waits (RD5)?"""
        silent = node.door.silent_since
        return silent is not None and monotonic() - silent >= self._patience

    def overdue(self, node: Node, begun: float) -> None:
        """*node* has not answered a read since *begun*: when it has answered nobody, it is suspect (AS2)."""
        if node.problem is None and node.door.answered < begun:
            silent = f"{monotonic() - begun:.1f} s"
            error = Unavailable(f"{node.title} has answered nobody for {silent}: check that it runs and can be reached")
            self.map.suspect(node, error)
        if node.problem is not None:
            node.silent_until = trio.current_time() + SILENT_SECONDS


class _Ask(NamedTuple):
    """One replica that has been asked and has not answered."""

    begun: float
    """Monotonic, as in the door."""
    delay: float
    """Seconds after which that is slow (HE1)."""
    scope: trio.CancelScope


class Race:
    """Chunks of one volume being asked of its replicas."""

    def __init__(self, asker: Asker, volume: Volume, refs: Sequence[ChunkRef], asked: float | None) -> None:
        # Constant after construction
        self._asker = asker
        self._volume = volume
        self._asked = asked
        # Mutable; changed only between awaits
        self._answers: dict[ChunkRef, Answer] = {}
        self._left = list(refs)
        """Chunks without a good answer."""
        self._out: dict[Node, _Ask] = {}
        self._bad: list[tuple[Node, ChunkRef, Answer]] = []
        """Not reported yet, as no good copy has been seen."""
        self._news = trio.Event()
        self._bug: Exception | None = None

    async def run(self) -> dict[ChunkRef, Answer]:
        asker = self._asker
        asker.budget.earn()
        queue = deque(asker.nearness.order(self._volume.nodes, monotonic()))
        try:
            while self._left:
                if self._bug is not None:
                    raise self._bug
                wait = self._until_next(queue[0]) if queue else float("inf")
                if wait <= 0:
                    self._start(queue.popleft())
                elif self._out:
                    self._news = trio.Event()
                    with trio.move_on_after(wait):
                        await self._news.wait()
                else:
                    break
            return self._answers
        finally:
            now = monotonic()
            for node, ask in self._out.items():
                ask.scope.deadline = trio.current_time() + max(0.0, ask.begun + self._limit(node) - now)

    def _limit(self, node: Node) -> float:
        """Seconds after which it is overdue (AS2)."""
        return min(OVERDUE_SECONDS, self._asker.map.options.node_patience_seconds, node.door.deadline_seconds)

    def _until_next(self, next: Node) -> float:
        """Seconds until *next* is asked, as far as is known; 0: now."""
        if all(node.problem is not None for node in self._out):
            return 0.0  # also when nobody is being asked
        node, newest = max(self._out.items(), key=lambda item: item[1].begun)
        waited = monotonic() - newest.begun
        left = self._limit(node) - waited
        if left <= 0:
            self._asker.overdue(node, newest.begun)
        elif next.problem is not None:
            return left
        elif waited < newest.delay:
            return min(left, newest.delay - waited)
        elif not self._asker.budget.spend():
            return min(left, RECHECK_SECONDS)
        self._asker.hedged += 1
        self._note(node, newest)
        return 0.0

    def _note(self, node: Node, ask: _Ask, refs: Sequence[ChunkRef] | None = None) -> None:
        if node.problem is not None:
            return  # NE3
        now = monotonic()
        size = sum(ref.length for ref in (self._left if refs is None else refs))
        self._asker.nearness.pace(node).note(now - ask.begun, size, now)

    def _start(self, node: Node) -> None:
        refs = tuple(self._left)
        delay = self._asker.nearness.pace(node).delay(sum(ref.length for ref in refs))
        self._out[node] = _Ask(monotonic(), delay, trio.CancelScope())
        self._asker.nursery.start_soon(self._ask, node, refs)

    async def _ask(self, node: Node, refs: Sequence[ChunkRef]) -> None:
        ask = self._out[node]
        answers: Sequence[Answer] = [Unavailable(f"{node.title} was not waited for")] * len(refs)
        try:
            with ask.scope:
                answers = await self._asker.ask_node(node, self._volume, refs, self._asked)
            if ask.scope.cancelled_caught:
                self._asker.overdue(node, ask.begun)
            elif not isinstance(answers[0], FlakeError):
                self._note(node, ask, refs)
        except Exception as error:
            self._bug = error  # for whoever reads, not for the engine
            if not self._left:
                log.exception("bug in FlakeFS while reading from another replica")
        finally:
            del self._out[node]
            self._take(node, refs, answers)
            self._news.set()

    def _take(self, node: Node, refs: Sequence[ChunkRef], answers: Sequence[Answer]) -> None:
        for ref, answer in zip(refs, answers, strict=True):
            self._answers[ref] = better(self._answers.get(ref), answer)
            if is_bad(answer):
                self._bad.append((node, ref, answer))
        self._left = [ref for ref in self._left if not isinstance(self._answers[ref], bytes)]
        unproved: list[tuple[Node, ChunkRef, Answer]] = []
        for bad in self._bad:
            if isinstance(self._answers[bad[1]], bytes):
                self._asker.found_bad(self._volume, *bad)
            else:
                unproved.append(bad)
        self._bad = unproved

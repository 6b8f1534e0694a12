"""Frees chunks that no index entry names.

Purpose
    Chunks are stored before the commit that names them, and deleted after the commit that forgets them. A crash in
    between leaves bytes that nobody can reach. collect() finds and deletes them.

Invariants
    G1  A chunk is deleted only when it is older than the grace time and the index, asked right before, does not name
        it.
    G2  A session that is marked alive but has not been heard of keeps its chunks: the grace time counts back from its
        last heart-beat.
    G3  Without a grace time it works only while it is the one writer, and asks that again after it has listed what lies
        on a node: so nothing in the list can be waiting for the commit of somebody who came later.
    G4  It can be run again at any time, also after it was interrupted.
    G5  A session may hold an old chunk that lost its index entry and gets it back by a later commit. So an unnamed
        chunk is deleted only when every writing session, since a look that found it unnamed, has shown that it did not
        hold it then: by a heart-beat that says it is idle, or by a commit whose `held` is below the number of commits
        before the look. When sessions came or ended meanwhile, it looks again.

Why G5 suffices
    Let the look be between the commits `before` and `after` of a session. If that held the chunk, unnamed, it goes on
    to do so until it drops it or a commit names it. Each commit until then, that one included, carries `held` >=
    `before`, for it says what was held when the one before it was settled; and `held` never falls, so it does not
    matter whether the chunk was named and forgotten again since. So once a commit beyond `after`, or an idle
    heart-beat, is seen with `held` < `before`, the session did not hold it or has dropped it. What is unnamed and held
    by nobody stays so: nobody can find it in the index, and keys are never used twice.

Concurrency
    Blocks; for commands and worker threads. Safe beside live mounts with the default grace time. Waits for writing
    sessions up to REST_SECONDS a time.

Not here
    Orphans, counts and index entries (tools.repair).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from time import monotonic, sleep

import trio
from bson.objectid import ObjectId

from flakefs.errors import Fenced, FlakeError, NotFormatted
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.format.records import read_format, read_node, read_volume
from flakefs.mongo.door import Door
from flakefs.namespace.sessions import open_session
from flakefs.tools import chunks
from flakefs.tools.chunks import Node, Resolve, born, open_nodes
from flakefs.tools.exclusive import Writer, exclusively
from flakefs.tools.holders import Holder, holders, server_time
from flakefs.tools.reader import Reader
from flakefs.values import readable

GRACE_SECONDS = 3600.0
GRACE_MIN_SECONDS = 900.0
"""A shorter one is refused while somebody writes: a commit may be tried again for minutes."""
DELETE_SECONDS = 60.0
REST_SECONDS = 60.0
"""How long sessions are waited for; they beat every 5 s."""
POLL_SECONDS = 0.25
TOGETHER = 100_000
"""So many chunks wait for the sessions together."""

Progress = Callable[[str], None]


@dataclass(slots=True)
class Freed:
    """What collect() did."""

    chunks: int = 0
    bytes: int = 0
    young: int = 0
    """Unnamed chunks left alone because of their age."""
    held: int = 0
    """Unnamed chunks left alone because a session did not show that it does without them (G5)."""
    holder: str = ""
    """That session, in words."""
    unreachable: dict[int, str] = field(default_factory=dict)
    """Nodes that could not be looked at: id -> why."""

    def text(self) -> str:
        lines = [f"freed {self.chunks} chunks, {readable(self.bytes)}"]
        if self.young:
            lines.append(f"left {self.young} chunks that are younger than the grace time")
        if self.held:
            lines.append(
                f"{self.held} chunks are left, because the session {self.holder} has not come to rest; run gc again"
            )
        lines += [f"node {node} was left out: {why}" for node, why in self.unreachable.items()]
        return "\n".join(lines)


def collect(
    metadata: Door,
    database: str,
    resolve: Resolve,
    *,
    grace_seconds: float = GRACE_SECONDS,
    progress: Progress | None = None,
    own_epoch: int | None = None,
) -> Freed:
    """Delete unnamed chunks older than *grace_seconds*, on all nodes that answer.

    A grace time below GRACE_MIN_SECONDS takes a writing session, for it could take chunks from under a writer: raises
    HeldElsewhere when there is one. *own_epoch* is the session of a caller who has one already.
    """
    reader = Reader(metadata, database, None)
    if grace_seconds < GRACE_MIN_SECONDS and own_epoch is None:

        def alone(writer: Writer) -> Freed:
            again = partial(collect, grace_seconds=grace_seconds, progress=progress, own_epoch=writer.epoch)
            return again(metadata, database, resolve)

        return exclusively(metadata, database, "gc", alone)
    writers = [holder for holder in holders(reader) if holder.writes and holder.epoch != own_epoch]
    document = reader.one(d.FORMAT, "format")
    if document is None:
        raise NotFormatted(f"there is no file system in database {database}; flakefs format makes one")
    uuid = read_format(document, database).uuid
    volumes = {volume.id: volume for volume in map(read_volume, reader.all(d.VOLUMES))}
    oldest = _oldest(server_time(metadata), grace_seconds, writers)
    sweep = _Sweep(reader, uuid, own_epoch, progress or (lambda _: None))
    freed = sweep.freed
    with open_nodes(map(read_node, reader.all(d.NODES)), resolve) as nodes:
        for stretch in chunks.compare(reader, uuid, volumes, nodes):
            sweep.progress(f"volume {stretch.volume} on node {stretch.node}")
            old = {key for key in stretch.extra if oldest is None or born(key) < oldest}
            freed.young += len(stretch.extra) - len(old)
            sweep.add(_Share(nodes[stretch.node], stretch.volume, old))
        sweep.free()
        freed.unreachable = {number: str(node.failure) for number, node in nodes.items() if node.failure}
    return freed


def _still_alone(reader: Reader, epoch: int) -> None:
    """G3."""
    own = reader.one(d.SESSIONS, epoch)
    if own is None or own.get("state") != "alive":
        raise Fenced(f"another session has taken over {reader.database}; run the command again when it has ended")


def _oldest(now: datetime, grace_seconds: float, writers: list[Holder]) -> datetime | None:
    """Chunks born before this may go; None: all may, for nobody else writes and nothing is asked to be kept."""
    if not writers and grace_seconds <= 0:
        return None  # whatever clock the keys were made by
    beats = [holder.beat for holder in writers if holder.beat is not None]  # G2
    return min([now, *beats]) - timedelta(seconds=grace_seconds)


@dataclass(slots=True)
class _Share:
    """Chunks of one volume on one node."""

    node: Node
    volume: int
    keys: set[ObjectId]


class _Sweep:
    """Unnamed old chunks, gathered and then deleted."""

    def __init__(self, reader: Reader, uuid: str, own_epoch: int | None, progress: Progress) -> None:
        self.freed = Freed()
        self.progress = progress
        self._reader = reader
        self._uuid = uuid
        self._own_epoch = own_epoch
        self._shares: list[_Share] = []
        self._gathered = 0
        self._buried = False

    def add(self, share: _Share) -> None:
        if share.keys:
            self._shares.append(share)
            self._gathered += len(share.keys)
        if self._gathered >= TOGETHER:
            self.free()

    def free(self) -> None:
        """Delete what was gathered, or leave it (G5)."""
        deadline = monotonic() + (0.0 if self.freed.held else REST_SECONDS)
        while self._shares:
            if self._own_epoch is not None:
                _still_alone(self._reader, self._own_epoch)
                break
            before = {holder.epoch: holder.commits for holder in self._writers()}
            for share in self._shares:
                self._each(share, self._look)
            self._shares = [share for share in self._shares if share.keys]
            if not self._shares:
                break
            restless = self._wait(before, deadline)
            if restless is None:
                break
            if monotonic() > deadline:
                self.freed.held += sum(len(share.keys) for share in self._shares)
                self.freed.holder = restless
                self._shares = []
        for share in self._shares:
            self._each(share, self._delete)
        self._shares, self._gathered = [], 0

    def _writers(self) -> list[Holder]:
        return [holder for holder in holders(self._reader) if holder.writes and holder.epoch != self._own_epoch]

    def _each(self, share: _Share, work: Callable[[_Share, dict[ObjectId, int]], None]) -> None:
        """Give *work* the unnamed ones of *share* with their sizes, in batches, and keep them in it."""
        unnamed: set[ObjectId] = set()
        try:
            for described in chunks.describe(share.node, self._uuid, share.volume, share.keys):
                labels = {key: label for key, label, _ in described}
                indexed = chunks.still_indexed(self._reader, share.volume, labels)
                sizes = {key: size for key, _, size in described if key not in indexed}
                unnamed |= sizes.keys()
                work(share, sizes)
        except FlakeError as error:
            share.node.failure = error
            unnamed.clear()
        share.keys = unnamed

    def _look(self, share: _Share, sizes: dict[ObjectId, int]) -> None:
        """Only to see what is unnamed."""

    def _delete(self, share: _Share, sizes: dict[ObjectId, int]) -> None:
        """Right after the index was asked (G1)."""
        if not sizes:
            return
        wanted: Document = {"_id": {"$in": list(sizes)}}
        collection = share.node.reader.collection(d.volume_collection(self._uuid, share.volume))
        result = share.node.door.run_sync(lambda: collection.delete_many(wanted), deadline_seconds=DELETE_SECONDS)
        self.freed.chunks += result.deleted_count
        self.freed.bytes += sum(sizes.values())

    def _wait(self, before: dict[int, int], deadline: float) -> str | None:
        """None when every session has shown that it held nothing at the look just made, else who has not (G5)."""
        since = server_time(self._reader.door)
        after = {holder.epoch: holder.commits for holder in self._writers()}
        while True:
            found = self._writers()
            if {holder.epoch for holder in found} != before.keys():
                return "that has begun or ended meanwhile"
            restless = [holder for holder in found if not _has_spoken(holder, after.get(holder.epoch, 0), since)]
            if not restless:
                return next((holder.words for holder in found if _held_since(holder, before[holder.epoch])), None)
            late = monotonic() > deadline
            if not self._buried and any(not holder.lives and (holder.here or late) for holder in restless):
                self._bury()
            elif late:
                return restless[0].words
            else:
                self.progress(f"waiting for the session {restless[0].words} to come to rest")
                sleep(POLL_SECONDS)

    def _bury(self) -> None:
        """Have the sessions of dead processes declared dead: whoever registers does so."""
        self._buried = True

        async def register() -> None:
            door, database = self._reader.door, self._reader.database
            session = await open_session(door, database, kind="tool", writable=False, where="gc")
            await session.close()

        with suppress(FlakeError):
            trio.run(register)


def _has_spoken(holder: Holder, after: int, since: datetime) -> bool:
    """Has it said, since a look that ended at *since* with its commit *after*, what it holds?"""
    committed = holder.held is not None and holder.commits > after
    return committed or (holder.idle and holder.beat is not None and holder.beat > since)


def _held_since(holder: Holder, before: int) -> bool:
    return holder.held is not None and holder.held >= before

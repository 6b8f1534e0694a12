"""What `flakefs status` shows: the file system, its nodes with their space, and who uses it.

Invariants
    V1  A node that does not answer is part of the answer, not an error: status is for when things are wrong.
    V2  So is one that answers and does not bear our mark: its disk was emptied, or its address leads elsewhere.
    V3  `no_room` says something exactly when a node is active, so that writing is wanted, and writing finds no room by
        the limits that the engine keeps, as documents and disks are at this moment.

Concurrency
    Blocks; for commands.

Not here
    Printing (cli.status), checking (tools.fsck).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flakefs.app.stack import Resolve
from flakefs.engine.admin import list_nodes, list_volumes, read_filesystem
from flakefs.engine.options import EngineOptions
from flakefs.engine.topology import no_room, place_of
from flakefs.errors import FlakeError, Unavailable, UsageError
from flakefs.format.documents import INODES, NODE_MARKER, SESSIONS
from flakefs.format.placement import satisfiable
from flakefs.format.records import FormatRecord, NodeRecord, VolumeRecord
from flakefs.mongo.clients import connect, redacted, server_time
from flakefs.mongo.door import Door
from flakefs.namespace.sessions import boot_id, declare_dead, process_lives
from flakefs.tools.replicas import short_volumes

NODE_SECONDS = 3.0
"""How long one node is asked: status has to answer while nodes are down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node, what we count on it, and what its disk says."""

    id: int
    uri: str
    """Without password."""
    database: str
    state: str
    dc: str
    rack: str
    capacity: int | None
    """Bytes of stored chunks it may hold; None: as much as the disk has room for."""
    volumes: int
    chunks: int
    stored_bytes: int
    garbage_bytes: int
    disk_total: int | None
    disk_free: int | None
    problem: str
    """Why it is of no use at the moment: it does not answer, or does not bear our mark. "" when all is well."""
    answers: bool
    full: str
    """Why it has no room for chunks; "" when it has, or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """A session that is marked alive."""

    epoch: int
    kind: str
    mode: str
    host: str
    pid: int
    where: str
    beat_seconds: float
    """Since its last sign of life, by the server's clock."""
    here: bool
    """On this machine, in a place where its process can be seen."""
    lives: bool
    """Here: its process is there. Elsewhere: its lease has not run out."""
    late: bool
    """Its lease has run out: others may declare it dead."""
    shared: bool
    """It commits each change before it is answered, because it knows of another one."""
    stream: str
    """Whether it hears of what others change: healthy, broken, or "" before its first sign of life."""
    lag_seconds: float | None
    """How long the last change of another session took until it arrived there; None where there is no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    metadata: str
    database: str
    server_version: str
    format: FormatRecord
    names: int
    """Of files and folders, the top one included, about."""
    file_bytes: int | None
    """What all files hold, holes left out; None when it takes too long to add up."""
    chunks: int
    stored_bytes: int
    volumes: int
    short_volumes: tuple[int, ...]
    """Those with fewer copies than their replication code asks for, or copies in the wrong places."""
    silent_nodes: tuple[int, ...]
    """Those that do not answer, or do not bear our mark."""
    silent_volumes: tuple[int, ...]
    """Those of which one of these has a copy."""
    nodes: tuple[NodeStatus, ...]
    sessions: tuple[SessionStatus, ...]
    no_room: str
    """Why new content finds no room (V3); "" when it does."""


def overview(door: Door, database: str, resolve: Resolve, metadata: str, options: EngineOptions) -> Overview:
    """Everything of one file system. *metadata* is how to name its server. Raises NotFormatted."""
    record = read_filesystem(door, database)
    volumes = list_volumes(door, database)
    nodes = list_nodes(door, database)
    statuses = tuple(node_status(node, volumes, resolve, record.uuid, options.reserve_bytes) for node in nodes)
    silent = tuple(status.id for status in statuses if status.problem)
    return Overview(
        metadata=metadata,
        database=database,
        server_version=door.run_sync(lambda: str(door.client.server_info()["version"])),
        format=record,
        names=door.run_sync(lambda: door.client[database][INODES].estimated_document_count()),
        file_bytes=_file_bytes(door, database),
        chunks=sum(volume.chunks for volume in volumes),
        stored_bytes=sum(volume.bytes for volume in volumes),
        volumes=len(volumes),
        short_volumes=tuple(short.volume for short in short_volumes(nodes, volumes, record.replication)),
        silent_nodes=silent,
        silent_volumes=tuple(volume.id for volume in volumes if set(volume.nodes).intersection(silent)),
        nodes=statuses,
        sessions=tuple(sessions(door, database)),
        no_room=_no_room(record.replication, nodes, statuses, options),
    )


def _no_room(code: str, nodes: list[NodeRecord], statuses: tuple[NodeStatus, ...], options: EngineOptions) -> str:
    """V3. A node that does not answer is no reason: it may have room."""
    active = [(node, status) for node, status in zip(nodes, statuses, strict=True) if node.state == "active"]
    hopeful = [place_of(node) for node, status in active if not status.full]
    if not active or (hopeful and (options.fewer_copies == "warn" or satisfiable(code, hopeful))):
        return ""
    why = "; ".join(status.full for _, status in active if status.full)
    if not why:
        return ""  # too few nodes for the code, full or not: the line on replication says so
    return f"new content finds no room ({why}): free some with flakefs gc, or add space with flakefs nodes add"


def _file_bytes(door: Door, database: str) -> int | None:
    def add_up() -> int:
        pipeline = [{"$group": {"_id": None, "bytes": {"$sum": "$used"}}}]
        with door.client[database][INODES].aggregate(pipeline) as cursor:
            return sum(int(row["bytes"]) for row in cursor)

    try:
        return door.run_sync(add_up)
    except Unavailable:
        return None


def node_status(
    node: NodeRecord, volumes: list[VolumeRecord], resolve: Resolve, uuid: str, reserve_bytes: int
) -> NodeStatus:
    """Counts of a node, and its disk if it answers (V1, V2). *uuid* is the file system's."""
    own = [volume for volume in volumes if node.id in volume.nodes]
    total = free = None
    held = sum(volume.bytes for volume in own)
    problem, answers, full = "", False, ""
    try:
        total, free, ours = _ask(node, resolve, uuid)
        answers = True
        full = no_room(node, held, free if total else None, reserve_bytes) or ""
        if not ours:
            problem = (
                f"node {node.id} bears no mark of this file system: its disk was emptied (flakefs nodes "
                "repair fills it), or its address leads elsewhere"
            )
    except FlakeError as error:
        problem = str(error)
    return NodeStatus(
        id=node.id,
        uri=redacted(node.uri),
        database=node.database,
        state=node.state,
        dc=node.dc,
        rack=node.rack,
        capacity=node.capacity,
        volumes=len(own),
        chunks=sum(volume.chunks for volume in own),
        stored_bytes=held,
        garbage_bytes=sum(volume.garbage for volume in own),
        disk_total=total,
        disk_free=free,
        problem=problem,
        answers=answers,
        full=full,
    )


def _ask(node: NodeRecord, resolve: Resolve, uuid: str) -> tuple[int, int, bool]:
    """(total, free) bytes of the disk below a node, as its server says, and whether it bears our mark."""
    client = connect(resolve(node), purpose="status", deadline_seconds=NODE_SECONDS)
    door = Door(client, name=f"node {node.id}", deadline_seconds=NODE_SECONDS)
    try:
        stats: dict[str, Any] = door.run_sync(lambda: client[node.database].command("dbStats"))
        marker = door.run_sync(lambda: client[node.database][NODE_MARKER].find_one({"_id": uuid}))
    finally:
        door.close()
    total = int(stats.get("fsTotalSize", 0))
    ours = marker is not None and marker.get("node") == node.id
    return total, max(0, total - int(stats.get("fsUsedSize", 0))), ours


def sessions(door: Door, database: str) -> list[SessionStatus]:
    """Sessions marked alive, by the metadata server's clock."""

    def read() -> tuple[datetime, list[dict[str, Any]]]:
        return server_time(door.client), list(
            door.client[database][SESSIONS].find({"state": "alive"}, {"news": 0}).sort("_id")
        )

    now, documents = door.run_sync(read)
    return [_session(document, now) for document in documents]


def fence(door: Door, database: str, epoch: int, *, force: bool) -> str:
    """Declare a session dead: it can commit nothing any more. What was done, in a sentence.

    Raises UsageError when there is none of that number, and, without *force*, when it is not late and its process may
    be there.
    """
    found = next((session for session in sessions(door, database) if session.epoch == epoch), None)
    if found is None:
        raise UsageError(f"no session {epoch} is marked alive; `flakefs sessions` lists them")
    words = f"session {epoch} ({found.kind} {found.where or '-'} on host {found.host}, process {found.pid})"
    if found.lives and not found.late and not force:
        raise UsageError(
            f"{words} is alive, it was heard of {found.beat_seconds:.0f} s ago: end its process, or fence it with "
            "--force; what it has not stored then is lost"
        )
    document = door.run_sync(lambda: door.client[database][SESSIONS].find_one({"_id": epoch, "state": "alive"}))
    if document is None or not door.run_sync(lambda: declare_dead(door.client[database], document)):
        raise Unavailable(f"{words} has ended or was heard of this very moment: look again")
    return f"{words} is declared dead"


def _session(document: dict[str, Any], now: datetime) -> SessionStatus:
    beat = document.get("beat")
    age = (now - _utc(beat)).total_seconds() if isinstance(beat, datetime) else float("inf")
    here = document.get("boot") == boot_id()
    late = age > float(document.get("lease", 0))
    return SessionStatus(
        epoch=int(document["_id"]),
        kind=str(document.get("kind", "?")),
        mode=str(document.get("mode", "?")),
        host=str(document.get("host", "?")),
        pid=int(document.get("pid", 0)),
        where=str(document.get("where", "")),
        beat_seconds=max(0.0, round(age, 1)),
        here=here,
        lives=process_lives(int(document["pid"]), int(document["start"])) if here else not late,
        late=late,
        shared=bool(document.get("shared")),
        stream=str(document.get("stream", "")),
        lag_seconds=document.get("lag") if document.get("shared") else None,
    )


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

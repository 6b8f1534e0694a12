"""The few and small documents: format, nodes, volumes, sessions.

Invariants
    As in format.documents (D1 to D4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bson.int64 import Int64

from flakefs.errors import Damaged
from flakefs.format.documents import UNREADABLE, Document
from flakefs.format.version import FORMAT_VERSION, check_version


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRecord:
    """What was chosen when the file system was made; never changes, but for the replication."""

    uuid: str
    chunk_size: int
    """Bytes: a power of two, 64 KiB to 8 MiB."""
    codec: str
    created: int
    """Nanoseconds since the epoch."""
    hash: str = "blake3"
    replication: str = "000"
    """Copies in other data centers, on other racks, on other nodes of the rack; one digit each (format.placement). For
    files that ask for no other; `flakefs replication set` may change it."""
    version: int = FORMAT_VERSION

    def document(self) -> Document:
        return {
            "_id": "format",
            "version": self.version,
            "uuid": self.uuid,
            "chunk_size": self.chunk_size,
            "hash": self.hash,
            "codec": self.codec,
            "replication": self.replication,
            "created": Int64(self.created),
        }


def read_format(document: Mapping[str, Any], where: str) -> FormatRecord:
    """Decode; raises FormatUnsupported for a version this program does not know."""
    try:
        check_version(document["version"], where)
        return FormatRecord(
            uuid=document["uuid"],
            chunk_size=document["chunk_size"],
            codec=document["codec"],
            created=int(document["created"]),
            hash=document["hash"],
            replication=document["replication"],
            version=document["version"],
        )
    except UNREADABLE as error:
        raise Damaged(f"the format document of {where} cannot be read ({error!r}); run flakefs fsck") from error


NODE_STATES = ("active", "readonly", "draining")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A storage node; its id is unique, never changed and never given twice."""

    id: int
    uri: str
    """MongoDB URI, or "embedded" for the node that FlakeFS starts itself."""
    database: str
    state: str = "active"
    """active: takes new chunks; readonly: takes none; draining: takes none, and what it has is moved away."""
    dc: str = ""
    rack: str = ""
    capacity: int | None = None
    """Bytes of stored chunks it may hold; None: as much as its disk has room for."""
    added: int = 0

    def document(self) -> Document:
        document: Document = {
            "_id": self.id,
            "uri": self.uri,
            "database": self.database,
            "state": self.state,
            "dc": self.dc,
            "rack": self.rack,
            "added": Int64(self.added),
        }
        if self.capacity is not None:
            document["capacity"] = Int64(self.capacity)
        return document


def read_node(document: Mapping[str, Any]) -> NodeRecord:
    try:
        capacity = document.get("capacity")
        return NodeRecord(
            id=document["_id"],
            uri=document["uri"],
            database=document["database"],
            state=document["state"],
            dc=document["dc"],
            rack=document["rack"],
            capacity=None if capacity is None else int(capacity),
            added=int(document["added"]),
        )
    except UNREADABLE as error:
        raise Damaged(f"node document {document.get('_id')} cannot be read ({error!r}); run flakefs fsck") from error


class Work(NamedTuple):
    """The lease of a tool that works on a volume."""

    by: str
    what: str
    until: Any
    """A date (datetime) by the clock of the metadata server; the lease is over then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """A collection of chunks that lies on one or more nodes."""

    id: int
    nodes: tuple[int, ...]
    """The main one first."""
    state: str = "writable"
    """writable, or sealed: takes no new chunks."""
    code: str = "000"
    """The replication that is wanted for it. It may have fewer copies at the moment."""
    own: bool = False
    """Holds chunks whose names have a code of their own (format.hashing), else only chunks with plain names."""
    chunks: int = 0
    """Indexed chunks in it."""
    bytes: int = 0
    """Stored bytes of the indexed chunks, on each replica."""
    garbage: int = 0
    """Stored bytes of chunks that lost their index entry since the volume was made."""
    created: int = 0
    sealed_at: int = 0
    """The map epoch of the last sealing or change of nodes: a session that has acknowledged it knows of it; 0: none."""
    work: Work | None = None

    def document(self) -> Document:
        document: Document = {
            "_id": self.id,
            "nodes": list(self.nodes),
            "state": self.state,
            "code": self.code,
            "chunks": Int64(self.chunks),
            "bytes": Int64(self.bytes),
            "garbage": Int64(self.garbage),
            "created": Int64(self.created),
        }
        if self.own:
            document["own"] = True
        if self.sealed_at:
            document["sealed_at"] = Int64(self.sealed_at)
        if self.work is not None:
            document["work"] = self.work._asdict()
        return document


def read_volume(document: Mapping[str, Any]) -> VolumeRecord:
    try:
        work = document.get("work")
        return VolumeRecord(
            id=document["_id"],
            nodes=tuple(document["nodes"]),
            state=document["state"],
            code=document["code"],
            chunks=int(document["chunks"]),
            bytes=int(document["bytes"]),
            garbage=int(document["garbage"]),
            created=int(document["created"]),
            own=bool(document.get("own", False)),
            sealed_at=int(document.get("sealed_at", 0)),
            work=None if work is None else Work(str(work["by"]), str(work["what"]), work["until"]),
        )
    except UNREADABLE as error:
        raise Damaged(f"volume document {document.get('_id')} cannot be read ({error!r}); run flakefs fsck") from error

"""Every document FlakeFS stores in the metadata database and on nodes, encoded and decoded.

Purpose
    The only module that knows field names. docs/internals.md section 2 has the same table for people.

Invariants
    D1  decode(encode(x)) == x for every document type, names and contents of any bytes included.
    D2  Integers that may pass 32 bits are stored as Int64, always, so that queries by type and range hold.
    D3  An absent optional field means its default: no xattrs, no extents, nothing used.
    D4  A document that cannot be decoded raises Damaged, whatever is wrong with it.

A change here is a change of format: raise FORMAT_VERSION and keep a reader for the old one.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.errors import Damaged
from flakefs.format.names import from_stored, to_stored
from flakefs.values import Block, ChunkRef, Extent

Document = dict[str, Any]

INODES = "inodes"
EXTENTS = "extents"
CHUNKS = "chunks"
VOLUMES = "volumes"
NODES = "nodes"
SESSIONS = "sessions"
ORPHANS = "orphans"
FORMAT = "format"
COUNTERS = "counters"
WORK = "work"
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What decoding a document with missing fields or wrong types can raise."""
METADATA_COLLECTIONS = (INODES, EXTENTS, CHUNKS, VOLUMES, NODES, SESSIONS, ORPHANS, FORMAT, COUNTERS, WORK)
NODE_MARKER = "flakefs_node"


class InodeFields(Protocol):
    """What an inode document is made from; see InodeRecord for units. Only read."""

    @property
    def ino(self) -> int: ...

    @property
    def parent(self) -> int: ...

    @property
    def name(self) -> bytes: ...

    @property
    def mode(self) -> int: ...

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...

    @property
    def rdev(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def nlink(self) -> int: ...

    @property
    def used(self) -> int: ...

    @property
    def atime(self) -> int: ...

    @property
    def mtime(self) -> int: ...

    @property
    def ctime(self) -> int: ...

    @property
    def btime(self) -> int: ...

    @property
    def xattrs(self) -> dict[bytes, bytes]: ...

    @property
    def target(self) -> bytes: ...

    @property
    def mset(self) -> int: ...

    @property
    def aset(self) -> int: ...


class InodeRecord(NamedTuple):
    """A decoded inode document."""

    ino: int
    parent: int
    """Ino of the folder of the first name; 0 for the root, -ino when there is no name."""
    name: bytes
    mode: int
    """Type and permission bits as in stat(2)."""
    uid: int
    gid: int
    rdev: int
    size: int
    """Bytes; for a symlink the length of its target."""
    nlink: int
    used: int
    """Bytes that extents cover."""
    atime: int
    """Nanoseconds since the epoch, as the other times."""
    mtime: int
    ctime: int
    btime: int
    xattrs: dict[bytes, bytes]
    target: bytes
    version: int
    extents: list[Extent]
    """Of segment 0."""
    mset: int = 0
    """Not 0: a folder's mtime is one that a program has set, and no name has changed since. The mark of that setting,
    see namespace.times.
    """
    aset: int = 0
    """Any inode: the same of atime and reads."""


class LinkRecord(NamedTuple):
    """A further hard link: (parent, name) also leads to *ino*. Its own id is negative."""

    id: int
    parent: int
    name: bytes
    ino: int
    version: int


class IndexRecord(NamedTuple):
    """An entry of the de-duplication index."""

    ref: ChunkRef
    stored_bytes: int
    refs: int
    """Extents that name the chunk."""


class ChunkRecord(NamedTuple):
    """A chunk as a node stores it."""

    key: bytes
    hash: bytes
    codec: str
    data: bytes


def inode_document(node: InodeFields, extents: Iterable[Extent], version: int) -> Document:
    """The whole document of an inode whose first segment has *extents*."""
    document: Document = {
        "_id": Int64(node.ino),
        "p": Int64(node.parent),
        "n": to_stored(node.name),
        "mode": node.mode,
        "uid": Int64(node.uid),
        "gid": Int64(node.gid),
        "size": Int64(node.size),
        "nlink": Int64(node.nlink),
        "atime": Int64(node.atime),
        "mtime": Int64(node.mtime),
        "ctime": Int64(node.ctime),
        "btime": Int64(node.btime),
        "v": Int64(version),
    }
    if stat.S_ISREG(node.mode):
        if node.used:
            document["used"] = Int64(node.used)
        stored = [extent_document(extent) for extent in extents]
        if stored:
            document["e"] = stored
    elif stat.S_ISLNK(node.mode):
        document["target"] = Binary(node.target)
    elif node.rdev:
        document["rdev"] = Int64(node.rdev)
    if node.mset:
        document["mset"] = Int64(node.mset)
    if node.aset:
        document["aset"] = Int64(node.aset)
    if node.xattrs:
        document["xattrs"] = [{"n": Binary(name), "v": Binary(value)} for name, value in sorted(node.xattrs.items())]
    return document


def read_inode(document: Mapping[str, Any]) -> InodeRecord:
    """Decode a document with a positive id. Raises Damaged when a field is missing or of a wrong type."""
    try:
        get = document.get
        return InodeRecord(
            int(document["_id"]),
            int(document["p"]),
            from_stored(document["n"]),
            document["mode"],
            int(document["uid"]),
            int(document["gid"]),
            int(get("rdev", 0)),
            int(document["size"]),
            int(document["nlink"]),
            int(get("used", 0)),
            int(document["atime"]),
            int(document["mtime"]),
            int(document["ctime"]),
            int(document["btime"]),
            {bytes(x["n"]): bytes(x["v"]) for x in get("xattrs", ())},
            bytes(get("target", b"")),
            int(document["v"]),
            [read_extent(e) for e in get("e", ())],
            int(get("mset", 0)),
            int(get("aset", 0)),
        )
    except UNREADABLE as error:
        raise Damaged(f"inode document {document.get('_id')} cannot be read ({error!r}); run flakefs fsck") from error


def link_document(link: LinkRecord) -> Document:
    """A further hard link."""
    return {
        "_id": Int64(link.id),
        "p": Int64(link.parent),
        "n": to_stored(link.name),
        "i": Int64(link.ino),
        "v": Int64(link.version),
    }


def read_link(document: Mapping[str, Any]) -> LinkRecord:
    """Decode a document with a negative id."""
    try:
        return LinkRecord(
            int(document["_id"]),
            int(document["p"]),
            from_stored(document["n"]),
            int(document["i"]),
            int(document["v"]),
        )
    except UNREADABLE as error:
        raise Damaged(f"link document {document.get('_id')} cannot be read ({error!r}); run flakefs fsck") from error


def extent_document(extent: Extent) -> Document:
    """One extent; a Block must have its ref."""
    offset, length, source, start = extent
    if isinstance(source, Block):
        assert source.ref is not None, "a block is written into a map document only after it was stored"
        source = source.ref
    if isinstance(source, ChunkRef):
        return {
            "o": Int64(offset),
            "l": length,
            "s": start,
            "v": source.volume,
            "k": ObjectId(source.key),
            "h": Binary(source.hash),
            "z": source.length,
        }
    return {"o": Int64(offset), "l": length, "d": Binary(source[start : start + length])}


def read_extent(document: Mapping[str, Any]) -> Extent:
    """Decode one extent."""
    literal = document.get("d")
    if literal is not None:
        return Extent(int(document["o"]), document["l"], bytes(literal), 0)
    ref = ChunkRef(bytes(document["h"]), document["v"], document["k"].binary, document["z"])
    return Extent(int(document["o"]), document["l"], ref, document["s"])


def segment_id(ino: int, segment: int) -> Document:
    """`_id` of a later segment (>= 1) of a file's map."""
    return {"i": Int64(ino), "s": Int64(segment)}


def segment_document(ino: int, segment: int, extents: Iterable[Extent], version: int) -> Document:
    """A later segment of a file's map; one without extents has no document."""
    return {
        "_id": segment_id(ino, segment),
        "e": [extent_document(extent) for extent in extents],
        "v": Int64(version),
    }


def read_segment(document: Mapping[str, Any]) -> tuple[int, int, list[Extent], int]:
    """(ino, segment, extents, version)."""
    try:
        key = document["_id"]
        return int(key["i"]), int(key["s"]), [read_extent(e) for e in document["e"]], int(document["v"])
    except UNREADABLE as error:
        raise Damaged(f"segment document {document.get('_id')} cannot be read ({error!r}); run flakefs fsck") from error


def index_document(ref: ChunkRef, stored_bytes: int, count: int) -> Document:
    """An entry of the de-duplication index."""
    return {
        "_id": Binary(ref.hash),
        "v": ref.volume,
        "k": ObjectId(ref.key),
        "z": ref.length,
        "w": stored_bytes,
        "r": Int64(count),
    }


def read_index(document: Mapping[str, Any]) -> IndexRecord:
    """Decode an index entry."""
    try:
        ref = ChunkRef(bytes(document["_id"]), document["v"], document["k"].binary, document["z"])
        return IndexRecord(ref, int(document["w"]), int(document["r"]))
    except UNREADABLE as error:
        raise Damaged(f"index entry {document.get('_id')!r} cannot be read ({error!r}); run flakefs fsck") from error


def chunk_document(key: bytes, content_hash: bytes, codec: str, data: bytes) -> Document:
    """A chunk on a node. Written once, never updated. Plain bytes are stored as Binary ones are, without two copies."""
    return {"_id": ObjectId(key), "h": content_hash, "c": codec, "d": data}


def read_chunk(document: Mapping[str, Any]) -> ChunkRecord:
    """Decode a chunk of a node; raises Damaged when it is no chunk document."""
    try:
        label, data = document["h"], document["d"]
        if not (isinstance(label, bytes) and isinstance(data, bytes)):  # bytes() of a number would allocate that many
            raise TypeError("its label or its content is no binary data")
        return ChunkRecord(document["_id"].binary, bytes(label), document["c"], data)
    except UNREADABLE as error:
        raise Damaged(f"chunk document {document.get('_id')} cannot be read ({error!r})") from error


def volume_collection(uuid: str, volume: int) -> str:
    """Name of a volume's collection on its nodes."""
    return f"vol_{uuid.replace('-', '')[:8]}_{volume}"

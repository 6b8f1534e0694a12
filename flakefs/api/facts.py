"""Everything that is known about a file: attributes, checksum, chunks with their reference counts and nodes.

Purpose
    The fields people ask such a file system for: file id, name, checksum, reference counts, chunk ids, volume and node,
    extension, MIME type.

Invariants
    E1  Reference counts, volumes and nodes are those of the last commit; content that is on its way is stored first.
    E2  The checksum says what it covers: "content" (BLAKE3 of the bytes, as b3sum prints it) or "map" (BLAKE3 over
        offset, length, place in the chunk and hash of every extent). Two files with one map checksum are equal; equal
        files that were written in different steps may differ in theirs.

Concurrency
    Trio thread; the index is asked in a worker thread through the engine's or namespace's door.
"""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from flakefs.api.paths import base, reach
from flakefs.api.pieces import extents, settled
from flakefs.format.documents import CHUNKS, VOLUMES, InodeRecord, read_index
from flakefs.format.hashing import chunk_hash, content_hash_of, own_code_of
from flakefs.format.records import VolumeRecord, read_volume
from flakefs.mongo.door import Door
from flakefs.mongo.patience import ask
from flakefs.namespace import Inode
from flakefs.values import Block, ChunkRef, Extent
from flakefs.vfs import FileSystem

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the inode itself says."""

    path: bytes
    file_id: int
    """Inode number, unique in the file system and never used again."""
    kind: str
    """One of KINDS: file, folder, symlink..."""
    mode: int
    """Type and permission bits as in stat(2)."""
    uid: int
    gid: int
    size: int
    """Bytes."""
    used: int
    """Bytes that are no holes."""
    links: int
    """Number of names; of a folder 2 + its sub-folders."""
    atime: int
    """Nanoseconds since the epoch, as the other times."""
    mtime: int
    ctime: int
    btime: int
    target: bytes = b""
    """Where a symlink points."""
    rdev: int = 0

    @property
    def name(self) -> str:
        return os.fsdecode(base(self.path)) or "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFacts:
    """One extent of a file and the chunk it is taken from."""

    offset: int
    """File bytes [offset, offset + length) ..."""
    length: int
    start: int
    """... are bytes of the chunk from here on."""
    chunk: str
    """Id (key in its volume)."""
    hash: str
    """BLAKE3 of the content of the whole chunk."""
    replication: str
    """The code of the volume it lies in; what the files that name it asked for, if they did."""
    references: int
    """Extents of the whole file system that name the chunk."""
    stored_bytes: int
    """Bytes on each node that has it."""
    volume: int
    nodes: tuple[int, ...]
    """All that have a copy, the main one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts(Entry):
    """An Entry with what its content is made of."""

    checksum: str
    """"" for what has no content."""
    checksum_of: str
    """content or map (E2)."""
    chunks: tuple[ChunkFacts, ...]
    literal: bool
    """The content lies in the inode document itself."""
    extension: str
    """Without the dot; "" when there is none."""
    mime_type: str
    attributes: dict[bytes, bytes]
    """Extended attributes."""


def entry(inode: Inode | InodeRecord, path: bytes) -> Entry:
    """The Entry of *inode*, reached by *path*."""
    return Entry(**_attributes(inode, path))


def _attributes(inode: Inode | InodeRecord, path: bytes) -> dict[str, Any]:
    return {
        "path": path,
        "file_id": inode.ino,
        "kind": KINDS.get(stat.S_IFMT(inode.mode), "unknown"),
        "mode": inode.mode,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "used": inode.used,
        "links": inode.nlink,
        "atime": inode.atime,
        "mtime": inode.mtime,
        "ctime": inode.ctime,
        "btime": inode.btime,
        "target": inode.target,
        "rdev": inode.rdev,
    }


async def facts(fs: FileSystem, path: bytes, door: Door, database: str, *, follow: bool = False) -> Facts:
    """Everything about *path*."""
    inode = await reach(fs, path, follow=follow)
    if stat.S_ISREG(inode.mode):
        await settled(fs, inode)
    async with aclosing(extents(fs, inode)) as stream:
        found = [extent async for extent in stream]
    value, covers = checksum(found, inode.size) if stat.S_ISREG(inode.mode) else ("", "")
    chunks = await ask(door, lambda: chunk_facts(door, database, found), fs.ns.patience)
    extension, mime_type = kind_of_content(base(path), inode.mode)
    return Facts(
        **_attributes(inode, path),
        checksum=value,
        checksum_of=covers,
        chunks=tuple(chunks),
        literal=any(isinstance(extent.source, bytes) for extent in found),
        extension=extension,
        mime_type=mime_type,
        attributes=dict(inode.xattrs),
    )


def checksum(found: Sequence[Extent], size: int) -> tuple[str, str]:
    """(hex digest, "content" or "map") of a file (E2)."""
    if not found and size == 0:
        return chunk_hash(b"").hex(), "content"
    if len(found) == 1 and found[0].offset == 0 and found[0].length == size and found[0].start == 0:
        source = found[0].source
        if isinstance(source, bytes):
            return chunk_hash(source[:size]).hex(), "content"
        if isinstance(source, ChunkRef) and source.length == size:
            return content_hash_of(source.hash).hex(), "content"
    lines = [b"flakefs map %d\n" % size]
    for offset, length, source, start in found:
        assert not isinstance(source, Block)
        name = content_hash_of(source.hash) if isinstance(source, ChunkRef) else chunk_hash(source)
        lines.append(b"%d %d %d %s\n" % (offset, length, start, name.hex().encode()))
    return chunk_hash(b"".join(lines)).hex(), "map"


def chunk_facts(door: Door, name: str, found: Iterable[Extent], batch: int = 1000) -> list[ChunkFacts]:
    """One ChunkFacts for each extent that names a chunk, with what the index says about it. Blocks: in a door call."""
    database = door.client[name]
    named = [(extent, extent.source) for extent in found if isinstance(extent.source, ChunkRef)]
    hashes = list({ref.hash for _, ref in named})
    index = {}
    for start in range(0, len(hashes), batch):
        for document in database[CHUNKS].find({"_id": {"$in": hashes[start : start + batch]}}):
            record = read_index(document)
            index[record.ref.hash] = record
    volumes: dict[int, VolumeRecord] = {}
    wanted = list({ref.volume for _, ref in named})
    for document in database[VOLUMES].find({"_id": {"$in": wanted}}) if wanted else ():
        volume = read_volume(document)
        volumes[volume.id] = volume
    result = []
    for extent, ref in named:
        known = index.get(ref.hash)
        result.append(
            ChunkFacts(
                offset=extent.offset,
                length=extent.length,
                start=extent.start,
                chunk=ref.key.hex(),
                hash=content_hash_of(ref.hash).hex(),
                replication=own_code_of(ref.hash) or (volumes[ref.volume].code if ref.volume in volumes else ""),
                references=known.refs if known else 0,
                stored_bytes=known.stored_bytes if known else 0,
                volume=ref.volume,
                nodes=volumes[ref.volume].nodes if ref.volume in volumes else (),
            )
        )
    return result


def kind_of_content(name: bytes, mode: int) -> tuple[str, str]:
    """(extension, MIME type) by the name; folders and special files have the inode/ types that file(1) prints."""
    special = {
        stat.S_IFDIR: "inode/directory",
        stat.S_IFLNK: "inode/symlink",
        stat.S_IFIFO: "inode/fifo",
        stat.S_IFSOCK: "inode/socket",
        stat.S_IFCHR: "inode/chardevice",
        stat.S_IFBLK: "inode/blockdevice",
    }.get(stat.S_IFMT(mode))
    text = os.fsdecode(name)
    extension = text.lstrip(".").rpartition(".")
    ending = extension[2] if extension[1] else ""
    if special:
        return ("" if stat.S_ISDIR(mode) else ending), special
    return ending, mimetypes.guess_type(text, strict=False)[0] or "application/octet-stream"

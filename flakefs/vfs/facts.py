"""What FlakeFS knows about a file, as text: read as user.flakefs.* attributes, printed by `flakefs stat`.

Concurrency
    Nothing waits: only what is in memory is told.

Not here
    Facts that cost queries: reference counts, the checksum of the whole content (tools).
"""

from __future__ import annotations

import mimetypes
import stat

from flakefs.format.hashing import content_hash_of, own_code_of
from flakefs.namespace import Inode
from flakefs.values import Block, ChunkRef, Source
from flakefs.vfs.replication import FACT, own_code

CHUNKS_LISTED = 500
"""Attribute values are bounded; a longer list ends with "..."."""


def facts(inode: Inode, chunk_size: int, default_code: str) -> dict[bytes, bytes]:
    """Fact by name (without "user.flakefs.")."""
    result = {b"id": b"%d" % inode.ino, b"version": b"%d" % inode.version, b"created": b"%d" % inode.btime}
    if inode.name:
        result[b"name"] = inode.name
    if stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode):
        result[FACT] = (own_code(inode) or default_code).encode()
    if stat.S_ISREG(inode.mode):
        name = inode.name.decode(errors="surrogateescape")
        _, dot, extension = name.lstrip(".").rpartition(".")
        if dot:
            result[b"extension"] = extension.encode(errors="surrogateescape")
        result[b"mime"] = (mimetypes.guess_type(name, strict=False)[0] or "application/octet-stream").encode()
        result[b"chunk_size"] = b"%d" % chunk_size
        result[b"stored"] = b"%d" % inode.used
        result[b"chunks"] = _chunks(inode)
    return result


def _chunks(inode: Inode) -> bytes:
    """A line for each extent of the loaded segments: file offset, length, then where the bytes are."""
    lines: list[str] = []
    the_map = inode.map
    for number in sorted(the_map.segments()) if the_map is not None else ():
        for offset, length, source, start in the_map.segment(number) if the_map is not None else ():
            if len(lines) == CHUNKS_LISTED:
                lines.append("...")
                return "\n".join(lines).encode()
            lines.append(f"{offset} {length} {_place(source, start)}")
    return "\n".join(lines).encode()


def _place(source: Source, start: int) -> str:
    if isinstance(source, Block):
        if source.ref is None:
            return "memory"
        source = source.ref
    if isinstance(source, ChunkRef):
        code = own_code_of(source.hash)
        return (
            f"volume={source.volume} chunk={source.key.hex()} from={start} hash={content_hash_of(source.hash).hex()}"
            + (f" replication={code}" if code else "")
        )
    return "inode"

"""How far long work has come: documents of the collection `work`.

Invariants
    As in format.documents (D1 to D4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bson.binary import Binary
from bson.errors import InvalidId
from bson.int64 import Int64
from bson.objectid import ObjectId

from flakefs.errors import Damaged
from flakefs.format.documents import UNREADABLE, Document

SCRUB = "scrub"
"""`_id` of the one scrub that goes on, or was interrupted."""
KEY_BYTES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubRecord:
    """Copies are read volume by volume, node by node in it, and key by key."""

    began: int
    """Nanoseconds since the epoch."""
    boot: str
    """With pid and start: the process that does it (namespace.sessions)."""
    pid: int
    start: int
    host: str
    volume: int = 0
    node: int = 0
    key: ObjectId | None = None
    """Up to here, included, everything is read; None: nothing of this copy."""
    doubts: tuple[ObjectId, ...] = ()
    """Keys of this copy that are read, and not yet looked for in the index."""
    read: int = 0
    """Copies of chunks, so far; the other sums, too."""
    size: int = 0
    """Their stored bytes."""
    mended: int = 0
    extra: int = 0
    lost: tuple[bytes, ...] = ()
    """Names of chunks without a good copy."""

    def document(self) -> Document:
        document: Document = {
            "_id": SCRUB,
            "began": Int64(self.began),
            "boot": self.boot,
            "pid": Int64(self.pid),
            "start": Int64(self.start),
            "host": self.host,
            "volume": self.volume,
            "node": self.node,
            "doubts": Binary(b"".join(key.binary for key in self.doubts)),
            "read": Int64(self.read),
            "bytes": Int64(self.size),
            "mended": Int64(self.mended),
            "extra": Int64(self.extra),
            "lost": [Binary(name) for name in self.lost],
        }
        if self.key is not None:
            document["key"] = self.key
        return document


def read_scrub(document: Mapping[str, Any]) -> ScrubRecord:
    try:
        doubts = bytes(document["doubts"])
        key = document.get("key")
        return ScrubRecord(
            began=int(document["began"]),
            boot=str(document["boot"]),
            pid=int(document["pid"]),
            start=int(document["start"]),
            host=str(document["host"]),
            volume=int(document["volume"]),
            node=int(document["node"]),
            key=None if key is None else ObjectId(key),
            doubts=tuple(ObjectId(doubts[n : n + KEY_BYTES]) for n in range(0, len(doubts), KEY_BYTES)),
            read=int(document["read"]),
            size=int(document["bytes"]),
            mended=int(document["mended"]),
            extra=int(document["extra"]),
            lost=tuple(bytes(name) for name in document["lost"]),
        )
    except (*UNREADABLE, InvalidId) as error:
        raise Damaged(f"the document of the scrub cannot be read ({error!r}); start it anew with --restart") from error

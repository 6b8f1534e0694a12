"""Plain content of chunks in memory.

Invariants
    CA1  At most `limit_bytes` of content; what is larger than a quarter of it is not kept.
    CA2  Content is kept under its hash, so it is right whatever becomes of the chunk it came from.

Concurrency
    Trio thread; nothing waits.
"""

from __future__ import annotations

from cachetools import LRUCache


class ChunkCache:
    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.hits = 0
        self._contents: LRUCache[bytes, bytes] = LRUCache(max(limit_bytes, 1), getsizeof=len)

    def get(self, content_hash: bytes) -> bytes | None:
        data = self._contents.get(content_hash)
        if data is not None:
            self.hits += 1
        return data

    def put(self, content_hash: bytes, data: bytes | bytearray) -> None:
        if 4 * len(data) <= self.limit_bytes:
            self._contents[content_hash] = data if isinstance(data, bytes) else bytes(data)

    def __contains__(self, content_hash: bytes) -> bool:
        return content_hash in self._contents

    @property
    def bytes(self) -> int:
        return int(self._contents.currsize)

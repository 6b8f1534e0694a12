"""find: a query to MongoDB, read in batches.

Invariants
    Q1  Memory holds one batch, however many files fit.

Concurrency
    The cursor is used by one worker thread at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from flakefs.api.facts import KINDS, Entry, entry
from flakefs.api.paths import reach
from flakefs.api.portal import Portal
from flakefs.errors import UsageError
from flakefs.format.documents import InodeRecord
from flakefs.mongo.door import Door
from flakefs.mongo.patience import ask
from flakefs.namespace import queries
from flakefs.vfs import FileSystem

BATCH = 500
LETTERS = {KINDS[bits]: letter for letter, bits in queries.TYPES.items()}
"""From the kind of an Entry to what the query calls it."""


class Query(NamedTuple):
    """What is looked for; None: anything."""

    name: str | None = None
    kind: str | None = None
    size_min: int | None = None
    size_max: int | None = None
    newer: int | None = None
    older: int | None = None


def found(portal: Portal, door: Door, database: str, top: bytes, query: Query) -> Iterator[Entry]:
    """Entries at and below the path *top*."""
    if query.kind is not None and query.kind not in LETTERS:
        raise UsageError(f"the kind {query.kind!r} is unknown; use one of {', '.join(LETTERS)}")
    portal.call(reach, top)
    return _entries(portal, door, database, b"/" + b"/".join(part for part in top.split(b"/") if part), query)


def _entries(portal: Portal, door: Door, database: str, top: bytes, query: Query) -> Iterator[Entry]:
    below = top.rstrip(b"/") + b"/"

    def begin() -> tuple[Iterator[tuple[bytes, InodeRecord]], list[Entry]]:
        rows = queries.find(
            door.client[database],
            name=query.name,
            type=LETTERS[query.kind] if query.kind is not None else None,
            size_min=query.size_min,
            size_max=query.size_max,
            newer=query.newer,
            older=query.older,
        )
        return rows, batch(rows)

    def batch(rows: Iterator[tuple[bytes, InodeRecord]]) -> list[Entry]:
        return [entry(record, path) for path, record in itertools.islice(rows, BATCH)]

    async def first(fs: FileSystem) -> tuple[Iterator[tuple[bytes, InodeRecord]], list[Entry]]:
        return await ask(door, begin, fs.ns.patience)

    async def further(_fs: FileSystem) -> list[Entry]:  # of a cursor that can only go on
        return await door.run(partial(batch, rows))

    rows, entries = portal.call(first)
    while entries:
        yield from (e for e in entries if e.path == top or e.path.startswith(below))
        entries = portal.call(further)

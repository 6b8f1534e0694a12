"""Numbers that are given once and never again: ids of inodes, volumes, nodes and sessions.

Invariants
    NU1  No number is returned twice, whoever asks, crashes and retries included: the counter passes it first, durably.
         Some may never be used.

Concurrency
    Synchronous, for any thread; inside a door call.
"""

from __future__ import annotations

from pymongo import ReturnDocument
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from flakefs.format.documents import COUNTERS, Document

FIRST = 1


def next_number(database: Database[Document], counter: str, count: int = 1) -> int:
    """The first of *count* fresh numbers of *counter* (NU1); the others follow it."""
    assert count >= 1
    counters = database.get_collection(COUNTERS, write_concern=WriteConcern("majority", j=True))
    document = counters.find_one_and_update(
        {"_id": counter}, raised(count), upsert=True, return_document=ReturnDocument.AFTER
    )
    assert document is not None, "an upsert answers with a document"
    return int(document["next"]) - count


def raised(count: int) -> list[Document]:
    """The update that takes *count* numbers; a missing counter begins at FIRST."""
    return [{"$set": {"next": {"$add": [{"$toLong": {"$ifNull": ["$next", FIRST]}}, {"$toLong": count}]}}}]

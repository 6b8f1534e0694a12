"""Numbers that are given once and never again: ids of nodes, volumes, inodes, sessions.

Invariants
    NU1  No number is returned twice, whoever asks, crashes and retries included; some may never be used.

Concurrency
    Synchronous, for any thread.
"""

from __future__ import annotations

from pymongo import ReturnDocument
from pymongo.write_concern import WriteConcern

from flakefs.format.documents import COUNTERS
from flakefs.mongo.door import Door

FIRST = 1


def next_number(metadata: Door, database: str, counter: str, count: int = 1) -> int:
    """The first of *count* fresh numbers of *counter*; the others follow it."""
    assert count >= 1

    def take() -> int:
        counters = metadata.client[database].get_collection(COUNTERS, write_concern=WriteConcern("majority", j=True))
        document = counters.find_one_and_update(
            {"_id": counter},
            [{"$set": {"next": {"$add": [{"$toLong": {"$ifNull": ["$next", FIRST]}}, count]}}}],
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        assert document is not None, "an upsert answers with a document"
        return int(document["next"]) - count

    return metadata.run_sync(take)

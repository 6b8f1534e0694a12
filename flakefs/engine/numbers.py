"""Ids of nodes and volumes, through the metadata's door (mongo.counters).

Concurrency
    Synchronous, for any thread.
"""

from __future__ import annotations

from flakefs.mongo import counters
from flakefs.mongo.counters import FIRST
from flakefs.mongo.door import Door

__all__ = ["FIRST", "next_number"]


def next_number(metadata: Door, database: str, counter: str, count: int = 1) -> int:
    """The first of *count* fresh numbers of *counter*; the others follow it."""
    return metadata.run_sync(lambda: counters.next_number(metadata.client[database], counter, count))

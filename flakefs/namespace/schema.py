"""Collections and indexes of the metadata database, and the first folder.

Invariants
    B1  create() may be repeated: what is there stays.
"""

from __future__ import annotations

import os
import stat
import time

from bson.int64 import Int64
from pymongo import ASCENDING, IndexModel
from pymongo.database import Database

from flakefs.format.documents import (
    COUNTERS,
    INODES,
    METADATA_COLLECTIONS,
    Document,
    inode_document,
)
from flakefs.namespace.inode import Inode
from flakefs.values import ROOT_INO

NAME_INDEX = "names"
PAGE_INDEX = "pages"
LINK_INDEX = "links"


def create(database: Database[Document]) -> None:
    """Make the collections, the indexes, the root folder (owned by the caller) and the counters."""
    there = set(database.list_collection_names())
    for name in METADATA_COLLECTIONS:
        if name not in there:
            database.create_collection(name)
    database[INODES].create_indexes(
        [
            IndexModel([("p", ASCENDING), ("n", ASCENDING)], name=NAME_INDEX, unique=True),
            IndexModel([("p", ASCENDING), ("_id", ASCENDING)], name=PAGE_INDEX),
            IndexModel([("i", ASCENDING)], name=LINK_INDEX, partialFilterExpression={"i": {"$exists": True}}),
        ]
    )
    for counter, first in (("ino", ROOT_INO + 1), ("session", 1)):
        database[COUNTERS].update_one({"_id": counter}, {"$setOnInsert": {"next": Int64(first)}}, upsert=True)
    now = time.time_ns()
    root = Inode(
        ROOT_INO, 0, b"", stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), 0, 0, 2, now, now, now, now, {}, b"", 1
    )
    document = inode_document(root, (), 1)
    ino = document.pop("_id")
    database[INODES].update_one({"_id": ino}, {"$setOnInsert": document}, upsert=True)

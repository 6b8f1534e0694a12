"""Queries about the names in folders.

Concurrency
    Run in worker threads.

Not here
    What becomes of the answers (namespace.entries).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from bson.int64 import Int64
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from flakefs.errors import Unavailable
from flakefs.format.documents import INODES, Document, InodeRecord, LinkRecord, read_inode, read_link
from flakefs.format.names import to_stored
from flakefs.values import ROOT_INO

T = TypeVar("T")

FEW = 2_000
"""Entries that are fetched without counting first."""

LISTING_BYTES = 16 * 1024 * 1024
"""Literal content of a folder that is kept whole; one with more is read page by page like a large one, because all of
it would be in memory at once.
"""

Record = InodeRecord | LinkRecord


def read_record(document: Document) -> Record:
    return read_inode(document) if document["_id"] > 0 else read_link(document)


def read_folder(db: Database[Document], ino: int, most: int) -> list[Record] | None:
    """Everything in a folder; None when it is more than *most*, or too many bytes."""
    query = {"p": Int64(ino)}
    documents = list(db[INODES].find(query, limit=FEW + 1, batch_size=FEW + 2))
    if len(documents) <= FEW:
        return [read_record(document) for document in documents]
    documents.clear()
    if db[INODES].count_documents(query, limit=most + 1) > most:
        return None
    records: list[Record] = []
    literal = 0
    for document in db[INODES].find(query, batch_size=FEW):
        literal += sum(len(extent.get("d", b"")) for extent in document.get("e", ()))
        if literal > LISTING_BYTES:
            return None
        records.append(read_record(document))
    return records


def look_up(db: Database[Document], ino: int, name: bytes, most: int) -> tuple[bool, list[Record]]:
    """(whether it is the whole folder, records): all when there are at most *most*, else the one of that name."""
    if most:
        documents = list(db[INODES].find({"p": Int64(ino)}, limit=most + 1, batch_size=most + 2))
        if len(documents) <= most:
            return True, [read_record(document) for document in documents]
    document = db[INODES].find_one({"p": Int64(ino), "n": to_stored(name)})
    return False, [] if document is None else [read_record(document)]


def read_name(
    db: Database[Document], ino: int, name: bytes, moment: ClientSession
) -> tuple[Record | None, InodeRecord | None]:
    """The record of that name, and the inode that it leads to."""
    document = db[INODES].find_one({"p": Int64(ino), "n": to_stored(name)}, session=moment)
    if document is None:
        return None, None
    record = read_record(document)
    if isinstance(record, InodeRecord):
        return record, record
    target = db[INODES].find_one({"_id": Int64(record.ino)}, session=moment)
    return record, None if target is None else read_inode(target)


def lies_inside(db: Database[Document], places: Sequence[tuple[int, bytes]], moment: ClientSession) -> bool:
    """Does the folder of one of two names lie inside what the other one leads to?"""
    inodes = db[INODES]
    for (folder, name), (other, _) in (places, places[::-1]):
        moved = inodes.find_one({"p": Int64(folder), "n": to_stored(name)}, {"_id": 1}, session=moment)
        at = other
        while moved is not None and at > ROOT_INO:
            if at == moved["_id"]:
                return True
            above = inodes.find_one({"_id": Int64(at)}, {"p": 1}, session=moment)
            at = 0 if above is None else int(above["p"])
    return False


def read_page(db: Database[Document], ino: int, after: int, limit: int) -> list[Record]:
    """The *limit* records with the smallest abs(_id) > after."""
    up = db[INODES].find({"p": Int64(ino), "_id": {"$gt": Int64(after)}}).sort("_id", 1).limit(limit)
    down = db[INODES].find({"p": Int64(ino), "_id": {"$lt": Int64(-after)}}).sort("_id", -1).limit(limit)
    documents = sorted([*up, *down], key=lambda document: abs(document["_id"]))[:limit]
    return [read_record(document) for document in documents]


def at_one_moment(db: Database[Document], query: Callable[[ClientSession], T]) -> T:
    """Run *query* in a transaction that only reads. A find without one may see one document before somebody's commit
    and the next after it; one with read concern "snapshot" may see a moment before a commit that was answered.
    """
    with db.client.start_session() as session:
        session.start_transaction(read_concern=ReadConcern("local"))
        try:
            return query(session)
        except OperationFailure as error:
            if error.has_error_label("TransientTransactionError"):  # it changed nothing, so it can be repeated
                raise Unavailable(
                    f"the metadata server gave up a read ({error.code}): it will be asked again"
                ) from error
            raise
        finally:
            session.abort_transaction()

"""One group as one transaction.

Invariants
    T1  The transaction first raises `commits` in its own session's document, guarded by "alive" and by the number
        before: so a group is applied exactly once, and a session that was declared dead writes nothing.
    T2  Every change of an inode, link or segment is guarded by the version seen; a guard that fails undoes all
        (Conflict).
    T3  Names: deletions first, then names that others of the group want are freed, then everything takes its place.
    T5  In shared mode the transaction also writes what changed into the session document (format.news), and insists
        that every folder whose names change is there. An exclusive one writes the documents of all live sessions: it
        and any other commit exclude each other, so what it reads (a folder is empty, it lies outside of another) holds.
    T4  What an attempt found out about chunks is kept in the group just before it commits, and changes nothing
        else: a failed attempt leaves no trace.

Concurrency
    Runs in a worker thread; reads the group, writes only `group.outcome`.

Not here
    Retrying (namespace.journal), what a group is (namespace.group), counting (namespace.references).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Any

import bson
from bson.binary import Binary
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from flakefs.errors import Conflict, Fenced
from flakefs.format.documents import (
    CHUNKS,
    EXTENTS,
    INODES,
    ORPHANS,
    SESSIONS,
    Document,
    InodeRecord,
    inode_document,
    link_document,
    segment_document,
    segment_id,
)
from flakefs.format.names import to_stored
from flakefs.mongo.pinned import Command, abort, one_connection
from flakefs.namespace.group import Action, Group, InodeChange, Outcome
from flakefs.namespace.inode import ASKED_ATIME, ASKED_MTIME
from flakefs.namespace.maps import resolved
from flakefs.namespace.references import Delta, Plan, plan, write
from flakefs.namespace.sharing import check_folders, named_folders, telling
from flakefs.namespace.times import FolderChange
from flakefs.values import Block, ChunkRef

BATCH_STATEMENTS = 5_000
BATCH_BYTES = 8 * 1024 * 1024
MERGED_MAX = 16
"""So many new documents of a small group go with its updates as one command. (Servers insert faster than they upsert
where there are many; where there are few the commands are what costs.)"""
FEW_EXTENTS = 8
"""An inode with more extents, of which none changed, is updated field by field instead of as a whole."""
OPTIONAL = ("xattrs", "mset", "aset")
"""Fields of every kind of inode that are absent when there is nothing to say."""
LIST_OF = {"insert": "documents", "update": "updates", "delete": "deletes"}
DUPLICATE_KEY = 11000

Place = tuple[int, bytes]


def transact(
    session: ClientSession, database: str, group: Group, *, epoch: int, number: int, held: int = -1
) -> Outcome | None:
    """Store *group* as commit *number* of the session. None: others were in the way, try again at once. *held*: the
    last commit after which chunks were pinned that gc may take for leaks (rule O10 in docs/format.md).

    Raises Fenced, Conflict (a guard failed); driver errors pass and leave the outcome open: call again with the same
    arguments, and it finds out (T1).
    """
    delta = Delta()
    for change in group.inodes:
        for segment in change.segments:
            delta.add(segment)
    db: Database[Document] = session.client[database]
    abort(session)
    session.start_transaction(
        read_concern=ReadConcern("local"),
        write_concern=WriteConcern("majority", j=True),
        read_preference=ReadPreference.PRIMARY,
    )
    news = telling(group, number) if group.shared else None
    try:
        with one_connection(session, database) as command:
            attempt = _Attempt(db, session, command)
            if not attempt.claim(epoch, number, held, news):
                abort(session)
                return _already(db, group, epoch, number)
            chunks = plan(db, session, delta)
            if group.exclusive:
                attempt.exclude(epoch)
            attempt.store(group, chunks, epoch)
            if group.shared:
                check_folders(db, session, group)
            group.outcome = _outcome(group, delta, chunks, attempt.documents)
        session.commit_transaction()
    except _Transient:
        return None
    except PyMongoError as error:
        if error.has_error_label("TransientTransactionError") and isinstance(error, OperationFailure):
            return None
        raise
    finally:
        abort(session)
    return group.outcome


class _Transient(Exception):
    """Another transaction was in the way."""


class _Attempt:
    """The statements of one transaction, sent in few commands."""

    def __init__(self, db: Database[Document], session: ClientSession, command: Command) -> None:
        self._db = db
        self._session = session
        self._command = command
        self.documents = 0
        self._upserted = 0

    def claim(self, epoch: int, number: int, held: int, news: Binary | None) -> bool:
        """T1. False: the session is dead, or this commit is through already."""
        fields: Document = {"commits": Int64(number), "idle": False, "held": Int64(held)}
        if news is not None:
            fields["news"] = news
        statement = {
            "q": {"_id": epoch, "state": "alive", "commits": Int64(number - 1)},
            "u": {"$set": fields, "$currentDate": {"beat": True}},
        }
        return self.send("update", SESSIONS, [statement]) == 1

    def exclude(self, epoch: int) -> None:
        """T5."""
        others = {"state": "alive", "mode": "rw", "_id": {"$ne": epoch}}
        self.send("update", SESSIONS, [{"q": others, "u": {"$inc": {"x": Int64(1)}}, "multi": True}])

    def store(self, group: Group, chunks: Plan, epoch: int) -> None:
        deletes: list[Any] = []
        frees: list[Any] = []
        inserts: list[RawBSONDocument] = []
        updates: list[Any] = []
        wanted = _wanted(group)
        for change in group.inodes:
            record = change.record
            guard = {"_id": Int64(record.ino), "v": Int64(record.version)}
            if change.action is Action.DELETE:
                deletes.append({"q": guard, "limit": 1})
                continue
            if change.action is Action.INSERT:
                inserts.append(_encoded(_document(change, chunks.instead, 1)))
                continue
            if change.was in wanted and change.was != (record.parent, record.name):
                frees.append({"q": guard, "u": {"$set": {"p": Int64(-record.ino), "n": ""}}})
            counted = group.shared and record.ino not in group.absolute
            updates.append({"q": guard, "u": _update(change, chunks.instead, counted)})
        for taken in group.links:
            link = taken.record
            guard = {"_id": Int64(link.id), "v": Int64(link.version)}
            if taken.action is Action.DELETE:
                deletes.append({"q": guard, "limit": 1})
            elif taken.action is Action.INSERT:
                inserts.append(_encoded(link_document(link._replace(version=1))))
            else:
                if taken.was in wanted and taken.was != (link.parent, link.name):
                    frees.append({"q": guard, "u": {"$set": {"p": Int64(-link.id), "n": ""}}})
                changed = {"p": Int64(link.parent), "n": to_stored(link.name), "v": Int64(link.version + 1)}
                updates.append({"q": guard, "u": {"$set": changed}})
        self.guarded("delete", INODES, deletes)
        updates += (_folder_statement(folder) for folder in named_folders(group))
        if inserts and len(inserts) <= MERGED_MAX and (frees or updates):
            added = [{"q": {"_id": document["_id"]}, "u": document, "upsert": True} for document in inserts]
            self.guarded("update", INODES, [*frees, *added, *updates], new=len(added))
        else:
            self.guarded("update", INODES, frees)
            self.guarded("insert", INODES, inserts)
            self.guarded("update", INODES, updates)
        self._segments(group, chunks.instead)
        self._orphans(group, epoch)
        write(chunks, self.send)

    def _segments(self, group: Group, instead: dict[ChunkRef, ChunkRef]) -> None:
        deletes: list[Any] = []
        inserts: list[Any] = []
        updates: list[Any] = []
        for change in group.inodes:
            ino = change.record.ino
            for number, new, _, version in change.segments:
                if number == 0:
                    continue
                guard = {"_id": segment_id(ino, number), "v": Int64(version)}
                if new:
                    document = segment_document(ino, number, resolved(new, instead) if instead else new, version + 1)
                    if version:
                        updates.append({"q": guard, "u": document})
                    else:
                        inserts.append(_encoded(document))
                elif version:
                    deletes.append({"q": guard, "limit": 1})
        self.guarded("delete", EXTENTS, deletes)
        self.guarded("insert", EXTENTS, inserts)
        self.guarded("update", EXTENTS, updates)

    def _orphans(self, group: Group, epoch: int) -> None:
        come: list[Document] = [{"_id": Int64(c.record.ino), "session": epoch} for c in group.inodes if c.orphan > 0]
        if come and group.shared:
            mine = {c.record.ino for c in group.inodes if c.orphan == 2}
            others = self._db[SESSIONS].find(
                {"state": "alive", "mode": "rw", "_id": {"$ne": epoch}}, {"_id": 1}, session=self._session
            )
            waits = [document["_id"] for document in others]
            for document in come:
                document["waits"] = [*waits, epoch] if document["_id"] in mine else waits
        go = [{"q": {"_id": Int64(c.record.ino)}, "limit": 1} for c in group.inodes if c.orphan < 0]
        self.send("delete", ORPHANS, go)
        self.send("insert", ORPHANS, come)

    def guarded(self, kind: str, collection: str, statements: list[Any], *, new: int = 0) -> None:
        """Send, and insist that each statement found its document, but for those of *new* ones (T2)."""
        before = self._upserted
        matched = self.send(kind, collection, statements)
        if matched != len(statements) or self._upserted - before != new:
            raise Conflict(
                f"{len(statements) - matched} documents in {collection} were changed by somebody else meanwhile"
            )

    def send(self, kind: str, collection: str, statements: list[Any]) -> int:
        """Statements as few commands; how many documents matched."""
        matched = 0
        for batch in _batches(statements):
            reply = self._command({kind: collection, LIST_OF[kind]: batch, "ordered": True})
            for error in reply.get("writeErrors", ()):
                if error.get("code") == DUPLICATE_KEY and collection == CHUNKS:
                    raise _Transient  # somebody indexed the same content first
                if error.get("code") == DUPLICATE_KEY:
                    raise Conflict(f"somebody else made a document in {collection} first: {error.get('errmsg')}")
                raise OperationFailure(str(error.get("errmsg")), error.get("code"), error)
            matched += reply["n"]
            self._upserted += len(reply.get("upserted", ()))
        self.documents += matched
        return matched


def _already(db: Database[Document], group: Group, epoch: int, number: int) -> Outcome | None:
    """Why the claim failed: this commit went through before (its outcome), or Fenced."""
    majority = db[SESSIONS].with_options(read_concern=ReadConcern("majority"))
    document = majority.find_one({"_id": epoch})
    if document is not None and document["state"] == "alive":
        if document["commits"] == number and group.outcome is not None:
            return group.outcome
        if document["commits"] == number - 1:
            return None
    raise Fenced(
        "another session declared this one dead and has taken over the file system: "
        "what is not stored yet cannot be stored any more; unmount, and mount again"
    )


def _outcome(group: Group, delta: Delta, chunks: Plan, documents: int) -> Outcome:
    kept: list[Block] = []
    dropped: list[Block] = []
    for block in group.unsettled:
        named = block in delta.named and block.ref not in chunks.instead
        (kept if named else dropped).append(block)
    return Outcome(kept, dropped, chunks.instead, chunks.removed, documents)


def _wanted(group: Group) -> set[Place]:
    """The places that documents of the group come to and did not have before."""
    wanted: set[Place] = set()
    for change in group.inodes:
        place = (change.record.parent, change.record.name)
        if change.action is Action.INSERT or (change.action is Action.UPDATE and change.was not in (None, place)):
            wanted.add(place)
    for taken in group.links:
        place = (taken.record.parent, taken.record.name)
        if taken.action is Action.INSERT or (taken.action is Action.UPDATE and taken.was not in (None, place)):
            wanted.add(place)
    return wanted


def _document(change: InodeChange, instead: dict[ChunkRef, ChunkRef], version: int) -> Document:
    record: InodeRecord = change.record
    extents = resolved(record.extents, instead) if instead else record.extents
    return inode_document(record, extents, version)


def _folder_statement(folder: FolderChange) -> Document:
    """T5: finds the folder only while it has a name. One that changes nothing writes nothing, and so lets the commits
    of others pass."""
    change = {"$inc": {"nlink": folder.nlink}} if folder.nlink and folder.alive else {"$unset": {"none": ""}}
    return {"q": {"_id": Int64(folder.inode.ino), "p": {"$gte": 0}}, "u": change}


def _update(change: InodeChange, instead: dict[ChunkRef, ChunkRef], counted: bool) -> Document | RawBSONDocument:
    """The whole new document, or the fields without the extents when those are many and did not change."""
    record = change.record
    version = record.version + 1
    if counted and record.nlink and stat.S_ISDIR(record.mode):
        return _folder_update(record, version, change.asked)
    if len(record.extents) <= FEW_EXTENTS or any(segment.number == 0 for segment in change.segments):
        return _encoded(_document(change, instead, version))
    return _fields_update(record, version, {"_id"})


def _folder_update(record: InodeRecord, version: int, asked: int) -> Document:
    """All but what is counted, or raised, outside of the guard: of such times only those that were asked for."""
    others = {"_id", "nlink"}
    if not asked & ASKED_MTIME:
        others |= {"mtime", "mset"}
    if not asked & ASKED_ATIME:
        others |= {"atime", "aset"}
    return _fields_update(record, version, others)


def _fields_update(record: InodeRecord, version: int, others: set[str]) -> Document:
    """All fields but the extents and *others*."""
    fields = inode_document(record, (), version)
    update: Document = {"$set": {name: value for name, value in fields.items() if name not in others}}
    absent = [name for name in OPTIONAL if name not in fields and name not in others]
    if absent:
        update["$unset"] = dict.fromkeys(absent, "")
    return update


def _encoded(document: Document) -> RawBSONDocument:
    """Encoded once, with a known size."""
    return RawBSONDocument(bson.encode(document))


def _batches(statements: list[Any]) -> Iterator[list[Any]]:
    """Batches that fit a command."""
    batch: list[Any] = []
    size = 0
    for statement in statements:
        length = _size(statement)
        if batch and (size + length > BATCH_BYTES or len(batch) >= BATCH_STATEMENTS):
            yield batch
            batch, size = [], 0
        batch.append(statement)
        size += length
    if batch:
        yield batch


def _size(statement: Any) -> int:
    """About the bytes of a statement."""
    if isinstance(statement, RawBSONDocument):
        return len(statement.raw)
    update = statement.get("u")
    if isinstance(update, RawBSONDocument):
        return len(update.raw) + 100
    return _guess(update) + 200 if update else 200


def _guess(value: Any) -> int:
    """Bytes of a small document that is not encoded yet, generously."""
    if isinstance(value, dict):
        return sum(_guess(part) + 20 for part in value.values())
    if isinstance(value, str | bytes):
        return 4 * len(value)
    if isinstance(value, Iterable):
        return sum(_guess(part) + 20 for part in value)
    return 16

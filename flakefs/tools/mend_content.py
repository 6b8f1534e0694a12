"""Mends counters, the index of chunks and the counts of volumes, one finding at a time.

Invariants
    M3  An index entry or locator is written only after the chunk it names was read and its hash was right.
    M4  As M2: each function can be repeated.

Concurrency
    Blocks; inside exclusively().

Not here
    Names (tools.mend_names). Content that is gone or wrong: nothing here changes a file that names it.
"""

from __future__ import annotations

from collections.abc import Mapping

from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId
from pymongo.client_session import ClientSession
from pymongo.database import Database

from flakefs.engine.sweep import stored_volumes
from flakefs.errors import FlakeError
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.format.verifying import verify
from flakefs.tools.chunks import Node
from flakefs.tools.exclusive import Writer
from flakefs.tools.problems import Problem
from flakefs.values import ChunkRef


class ContentMender:
    """Needs the nodes, to look at chunks before it believes in them."""

    def __init__(self, writer: Writer, uuid: str, nodes: Mapping[int, Node]) -> None:
        self._writer = writer
        self._uuid = uuid
        self._nodes = nodes

    def counter(self, problem: Problem) -> None:
        key, following = problem.facts["name"], Int64(problem.facts["next"])
        self._writer.write(
            lambda database, session: _upsert(database, d.COUNTERS, key, {"next": following}, session),
        )

    def session(self, problem: Problem) -> None:
        key = problem.facts["epoch"]
        self._writer.write(lambda database, session: _set(database, d.SESSIONS, key, {"state": "dead"}, session))

    def empty_segment(self, problem: Problem) -> None:
        wanted = {"_id": problem.facts["id"], "e": []}
        self._writer.write(lambda database, session: _drop(database, d.EXTENTS, wanted, session))

    def count(self, problem: Problem) -> None:
        """A reference count."""
        fields = {"r": Int64(problem.facts["count"])}
        key = Binary(problem.facts["hash"])
        self._writer.write(lambda database, session: _set(database, d.CHUNKS, key, fields, session))

    def unused(self, problem: Problem) -> None:
        """An entry nobody names goes; the chunk itself is garbage then, and freed at the end."""

        def change(database: Database[Document], session: ClientSession) -> None:
            entry = database[d.CHUNKS].find_one_and_delete({"_id": Binary(problem.facts["hash"])}, session=session)
            if entry is not None:
                size = Int64(entry["w"])
                counts = {"chunks": Int64(-1), "bytes": Int64(-size), "garbage": size}
                database[d.VOLUMES].update_one({"_id": entry["v"]}, {"$inc": counts}, session=session)

        self._writer.write(change)

    def unindexed(self, problem: Problem) -> None:
        """An entry for a chunk that files name and that is really there (M3); else nothing can be done."""
        ref: ChunkRef = problem.facts["ref"]
        size = self._stored_size(ref)
        if size is None:
            return
        entry = d.index_document(ref, size, problem.facts["count"])

        def change(database: Database[Document], session: ClientSession) -> None:
            if database[d.CHUNKS].find_one({"_id": entry["_id"]}, session=session) is None:
                database[d.CHUNKS].insert_one(entry, session=session)
                counts = {"chunks": Int64(1), "bytes": Int64(size)}
                database[d.VOLUMES].update_one({"_id": ref.volume}, {"$inc": counts}, session=session)

        self._writer.write(change)

    def locator(self, problem: Problem) -> None:
        """Extents follow the index when its chunk is good; else the index follows the extents when theirs is (M3)."""
        theirs: ChunkRef = problem.facts["ref"]
        indexed: ChunkRef = problem.facts["index"]
        if self._stored_size(indexed) is not None:
            if theirs.length == indexed.length:
                self._writer.write(lambda database, session: _point_extents(database, theirs, indexed, session))
            return
        size = self._stored_size(theirs)
        if size is not None:
            fields = {"v": theirs.volume, "k": ObjectId(theirs.key), "z": theirs.length, "w": size}
            key = Binary(theirs.hash)
            self._writer.write(lambda database, session: _set(database, d.CHUNKS, key, fields, session))

    def stored_size(self, problem: Problem) -> None:
        key, size = Binary(problem.facts["hash"]), problem.facts["size"]
        self._writer.write(lambda database, session: _set(database, d.CHUNKS, key, {"w": size}, session))

    def volume_counts(self, problem: Problem) -> None:
        key, counts = problem.facts["volume"], problem.facts["counts"]
        self._writer.write(lambda database, session: _set(database, d.VOLUMES, key, counts, session))

    def volume(self, problem: Problem) -> None:
        key, fields = problem.facts["id"], problem.facts["fields"]
        self._writer.write(lambda database, session: _set(database, d.VOLUMES, key, fields, session))

    def node(self, problem: Problem) -> None:
        key, fields = problem.facts["id"], problem.facts["fields"]
        self._writer.write(lambda database, session: _set(database, d.NODES, key, fields, session))

    def marker(self, problem: Problem) -> None:
        """Mark a node again, if a volume of ours lies there: an empty or a foreign database stays unmarked."""
        node = self._nodes[problem.facts["node"]]
        if stored_volumes(node.door, node.record, self._uuid):
            markers = node.door.client[node.record.database][d.NODE_MARKER]
            marker = {"_id": self._uuid, "node": node.record.id}
            node.door.run_sync(lambda: markers.update_one({"_id": self._uuid}, {"$setOnInsert": marker}, upsert=True))

    def _stored_size(self, ref: ChunkRef) -> int | None:
        """Stored bytes of a chunk that some node holds whole; None when none does."""
        for node in self._nodes.values():
            if node.failure:
                continue
            try:
                document = node.reader.one(d.volume_collection(self._uuid, ref.volume), ObjectId(ref.key))
                if document is None:
                    continue
                if verify(document, ref).flaw is None:
                    return len(document["d"])
            except FlakeError:
                continue
        return None


def _set(database: Database[Document], name: str, key: object, fields: Document, session: ClientSession) -> None:
    database[name].update_one({"_id": key}, {"$set": fields}, session=session)


def _upsert(database: Database[Document], name: str, key: object, fields: Document, session: ClientSession) -> None:
    database[name].update_one({"_id": key}, {"$set": fields}, upsert=True, session=session)


def _drop(database: Database[Document], name: str, wanted: Document, session: ClientSession) -> None:
    database[name].delete_one(wanted, session=session)


def _point_extents(database: Database[Document], old: ChunkRef, new: ChunkRef, session: ClientSession) -> None:
    """Every extent that names *old* names *new*: the same content elsewhere."""
    place = {"h": Binary(old.hash), "v": old.volume, "k": ObjectId(old.key)}
    for name in (d.INODES, d.EXTENTS):
        database[name].update_many(
            {"e": {"$elemMatch": place}},
            {"$set": {"e.$[x].v": new.volume, "e.$[x].k": ObjectId(new.key)}, "$inc": {"v": Int64(1)}},
            array_filters=[{f"x.{field}": value for field, value in place.items()}],
            session=session,
        )

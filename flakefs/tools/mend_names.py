"""Mends names, links and attributes, one finding at a time.

Invariants
    M1  No content and no name that leads somewhere is lost: what has no place any more gets one in /lost+found.
    M2  Each function can be repeated, and leaves alone what is no longer as the finding says: earlier mending may
        have changed it.

Concurrency
    Blocks; inside exclusively().

Not here
    Counts, index and chunks (tools.mend_content).
"""

from __future__ import annotations

import stat
import time
from typing import Any

from bson.int64 import Int64
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from flakefs.errors import PosixError
from flakefs.format import documents as d
from flakefs.format.documents import Document, InodeRecord
from flakefs.format.names import checked, from_stored, to_stored
from flakefs.tools.exclusive import Writer
from flakefs.tools.problems import Problem
from flakefs.values import ROOT_INO

LOST_AND_FOUND = b"lost+found"
NAME_KEPT = 200
"""Bytes of an old name that are kept in a new one."""


def root(writer: Writer, problem: Problem) -> None:
    """Make a root, or make inode 1 one."""

    def change(database: Database[Document], session: ClientSession) -> None:
        inodes = database[d.INODES]
        found = inodes.find_one({"_id": ROOT_INO}, session=session)
        if found is None:
            inodes.insert_one(_folder(ROOT_INO, 0, b"", 0o755), session=session)
            return
        fields: Document = {"p": Int64(0), "n": ""}
        mode = found.get("mode")
        if not isinstance(mode, int) or not stat.S_ISDIR(mode):
            fields["mode"] = stat.S_IFDIR | 0o755
        _set(inodes, ROOT_INO, fields, session)

    writer.write(change)


def rescue(writer: Writer, problem: Problem) -> None:
    """Give an inode a name in /lost+found; a further link that leads nowhere is only removed, its file has others."""
    key: int = problem.facts["id"] if "id" in problem.facts else problem.facts["ino"]
    if key < 0:
        remove_link(writer, problem)
        return
    folder = lost_and_found(writer)

    def change(database: Database[Document], session: ClientSession) -> None:
        inodes = database[d.INODES]
        found = inodes.find_one({"_id": key}, {"n": 1}, session=session)
        if found is not None:
            name = _free_name(inodes, folder, key, found.get("n", ""), session)
            _set(inodes, key, {"p": Int64(folder), "n": to_stored(name)}, session)

    writer.write(change)


def rename(writer: Writer, problem: Problem) -> None:
    """A name that a path can reach, in the same folder."""

    def change(database: Database[Document], session: ClientSession) -> None:
        inodes = database[d.INODES]
        for key in problem.facts["ids"][1:] if "ids" in problem.facts else [problem.facts["id"]]:
            found = inodes.find_one({"_id": key}, {"p": 1, "n": 1}, session=session)
            if found is None:
                continue
            old = from_stored(found["n"])
            taken = {"p": found["p"], "n": to_stored(old), "_id": {"$ne": key}}
            if not _possible(old) or inodes.find_one(taken, {"_id": 1}, session=session):
                old = _free_name(inodes, found["p"], key, found["n"], session)
            _set(inodes, key, {"n": to_stored(old)}, session)

    writer.write(change)


def remove_link(writer: Writer, problem: Problem) -> None:
    """Delete a further hard link."""
    writer.write(lambda database, session: _delete(database[d.INODES], problem.facts["id"], session))


def link_count(writer: Writer, problem: Problem) -> None:
    fields = {"nlink": Int64(problem.facts["nlink"])}
    writer.write(lambda database, session: _set(database[d.INODES], problem.facts["ino"], fields, session))


def promote(writer: Writer, problem: Problem) -> None:
    """The inode takes over the place of one of its further links."""
    ino = problem.facts["ino"]

    def change(database: Database[Document], session: ClientSession) -> None:
        inodes = database[d.INODES]
        link = inodes.find_one({"i": ino, "_id": {"$lt": 0}}, sort=[("_id", -1)], session=session)
        if link is not None:
            _delete(inodes, link["_id"], session)
            _set(inodes, ino, {"p": link["p"], "n": link["n"]}, session)
            _delete(database[d.ORPHANS], ino, session)

    writer.write(change)


def drop_orphan(writer: Writer, problem: Problem) -> None:
    """What nobody has open any more goes; its references are too high then, which the next round mends."""
    ino = problem.facts["ino"]

    def change(database: Database[Document], session: ClientSession) -> None:
        database[d.INODES].delete_one({"_id": ino, "p": -ino}, session=session)
        database[d.EXTENTS].delete_many(_segments_of(ino), session=session)
        _delete(database[d.ORPHANS], ino, session)

    writer.write(change)


def orphan_entry(writer: Writer, problem: Problem) -> None:
    """Delete an entry that is wrong; never the inode."""
    writer.write(lambda database, session: _delete(database[d.ORPHANS], problem.facts["ino"], session))


def size(writer: Writer, problem: Problem) -> None:
    """The size that the type says; of a file with a negative one, the end of its content."""
    ino, kind = problem.facts["ino"], problem.facts["type"]

    def change(database: Database[Document], session: ClientSession) -> None:
        found = database[d.INODES].find_one({"_id": ino}, session=session)
        if found is None:
            return
        value = len(found.get("target", b"")) if kind == stat.S_IFLNK else 0
        if kind == stat.S_IFREG:
            parts = [found, *database[d.EXTENTS].find(_segments_of(ino), session=session)]
            value = max((int(e["o"]) + int(e["l"]) for part in parts for e in part.get("e", ())), default=0)
        _set(database[d.INODES], ino, {"size": Int64(value)}, session)

    writer.write(change)


def used(writer: Writer, problem: Problem) -> None:
    fields = {"used": Int64(problem.facts["used"])}
    writer.write(lambda database, session: _set(database[d.INODES], problem.facts["ino"], fields, session))


def revive(writer: Writer, problem: Problem) -> None:
    """An inode for segments that have lost theirs; what segment 0 held is a hole."""
    ino = problem.facts["ino"]
    folder = lost_and_found(writer)

    def change(database: Database[Document], session: ClientSession) -> None:
        inodes = database[d.INODES]
        if inodes.find_one({"_id": ino}, {"_id": 1}, session=session) is None:
            name = _free_name(inodes, folder, ino, "", session)
            record = _record(ino, folder, name, stat.S_IFREG | 0o600)._replace(size=problem.facts["size"])
            inodes.insert_one(d.inode_document(record, [], 1), session=session)

    writer.write(change)


def lost_and_found(writer: Writer) -> int:
    """The folder for what has no place; made when there is none."""
    result = 0

    def change(database: Database[Document], session: ClientSession) -> None:
        nonlocal result
        inodes = database[d.INODES]
        name = LOST_AND_FOUND
        while True:
            found = inodes.find_one({"p": ROOT_INO, "n": to_stored(name)}, {"mode": 1}, session=session)
            if found is None:
                break
            if found["_id"] > 0 and stat.S_ISDIR(found.get("mode", 0)):
                result = int(found["_id"])
                return
            name += b"-"
        counter = database[d.COUNTERS].find_one_and_update({"_id": "ino"}, {"$inc": {"next": 1}}, session=session)
        assert counter is not None, "counters are mended before names"
        result = int(counter["next"])
        inodes.insert_one(_folder(result, ROOT_INO, name, 0o700), session=session)
        inodes.update_one({"_id": ROOT_INO}, {"$inc": {"nlink": 1, "v": 1}}, session=session)

    writer.write(change)
    return result


def make_indexes(writer: Writer, problem: Problem) -> None:
    """Make an index; where names are there twice it has to wait until they are mended."""
    keys: Any = list(problem.facts["keys"])

    def call() -> None:
        inodes = writer.database[d.INODES]
        for name, index in inodes.index_information().items():
            if index["key"] == keys:
                inodes.drop_index(name)
        try:
            inodes.create_index(keys, **problem.facts["options"])
        except DuplicateKeyError:
            return

    writer.door.run_sync(call, deadline_seconds=600.0)


def _segments_of(ino: int) -> Document:
    """By the range of ids: that is the only index there is."""
    return {"_id": {"$gte": d.segment_id(ino, 0), "$lt": d.segment_id(ino + 1, 0)}}


def _possible(name: bytes) -> bool:
    try:
        checked(name)
    except PosixError:
        return False
    return True


def _free_name(inodes: Collection[Document], parent: int, key: int, stored: Any, session: ClientSession) -> bytes:
    """#<number>-<what the old name was>, not taken in that folder."""
    try:
        old = from_stored(stored)
    except TypeError:
        old = b""
    kept = old.replace(b"/", b"_").replace(b"\0", b"_")[:NAME_KEPT]
    name = b"#%d-%s" % (abs(key), kept) if kept else b"#%d" % abs(key)
    while inodes.find_one({"p": parent, "n": to_stored(name)}, {"_id": 1}, session=session):
        name += b"~"
    return name


def _set(collection: Collection[Document], key: Any, fields: Document, session: ClientSession) -> None:
    collection.update_one({"_id": key}, {"$set": fields, "$inc": {"v": Int64(1)}}, session=session)


def _delete(collection: Collection[Document], key: Any, session: ClientSession) -> None:
    collection.delete_one({"_id": key}, session=session)


def _record(ino: int, parent: int, name: bytes, mode: int) -> InodeRecord:
    now = time.time_ns()
    return InodeRecord(ino, parent, name, mode, 0, 0, 0, 0, 1, 0, now, now, now, now, {}, b"", 1, [])


def _folder(ino: int, parent: int, name: bytes, permissions: int) -> Document:
    return d.inode_document(_record(ino, parent, name, stat.S_IFDIR | permissions)._replace(nlink=2), [], 1)

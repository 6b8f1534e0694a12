"""Questions that MongoDB answers without a walk: find by name, size, time and type; the paths of inodes.

Invariants
    U1  Answers are about what is committed; nothing is cached between calls.

Concurrency
    Synchronous: run inside a call of a Door. find() reads while it is iterated.
"""

from __future__ import annotations

import fnmatch
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from bson.int64 import Int64
from pymongo.database import Database

from flakefs.format.documents import INODES, Document, InodeRecord, read_inode
from flakefs.format.names import from_stored
from flakefs.values import ROOT_INO

TYPES = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "p": stat.S_IFIFO,
    "s": stat.S_IFSOCK,
    "b": stat.S_IFBLK,
    "c": stat.S_IFCHR,
}
BATCH = 1_000
FOLDERS_KEPT = 100_000
"""Names of folders remembered during one question."""


def find(
    database: Database[Document],
    *,
    name: str | None = None,
    size_min: int | None = None,
    size_max: int | None = None,
    newer: int | None = None,
    older: int | None = None,
    type: str | None = None,
) -> Iterator[tuple[bytes, InodeRecord]]:
    """(path, inode) of every name that matches all that is given.

    *name*: a shell pattern for the last component. Sizes in bytes, inclusive. *newer*, *older*: mtime in ns,
    exclusive. *type*: one of TYPES.
    """
    wanted = _attributes(size_min, size_max, newer, older, type)
    pattern = re.compile(fnmatch.translate(name)) if name is not None else None
    names: Document = {"p": {"$gt": Int64(0)}} | _names(name)
    folders = _Folders(database)
    inodes = database[INODES]
    for batch in _batches(inodes.find({"_id": {"$gt": Int64(0)}} | names | wanted)):
        records = [read_inode(document) for document in batch if _matches(pattern, document)]
        yield from folders.with_paths([(record.parent, record.name, record) for record in records])
    for batch in _batches(inodes.find({"_id": {"$lt": Int64(0)}} | names)):
        links = [document for document in batch if _matches(pattern, document)]
        found = inodes.find({"_id": {"$in": [document["i"] for document in links]}} | wanted)
        by_ino = {record.ino: record for record in map(read_inode, found)}
        yield from folders.with_paths(
            [
                (int(document["p"]), from_stored(document["n"]), by_ino[int(document["i"])])
                for document in links
                if int(document["i"]) in by_ino
            ]
        )


def paths_of(database: Database[Document], inos: Iterable[int]) -> dict[int, list[bytes]]:
    """All paths of each inode (further hard links included), sorted; an inode without a name has none."""
    wanted = sorted(set(inos))
    result: dict[int, list[bytes]] = {ino: [] for ino in wanted}
    folders = _Folders(database)
    for batch in _batches(iter(wanted)):
        ids = [Int64(ino) for ino in batch]
        fields = {"p": 1, "n": 1, "i": 1}
        documents = [
            *database[INODES].find({"_id": {"$in": ids}}, fields),
            *database[INODES].find({"i": {"$in": ids}}, fields),
        ]
        places = [
            (int(document["p"]), from_stored(document["n"]), int(document.get("i", document["_id"])))
            for document in documents
        ]
        for path, ino in folders.with_paths(places):
            result[ino].append(path)
    for paths in result.values():
        paths.sort()
    return result


class _Folders:
    """The paths of folders, a batch of questions at a time."""

    def __init__(self, database: Database[Document]) -> None:
        self._inodes = database[INODES]
        self._places: dict[int, tuple[int, bytes]] = {}

    def with_paths(self, found: list[tuple[int, bytes, Any]]) -> Iterator[tuple[bytes, Any]]:
        """(parent, name, what) -> (path, what); what has no path (its folder is gone) is left out."""
        self._learn({parent for parent, _, _ in found})
        for parent, name, what in found:
            path = b"/" if parent == 0 else self._path(parent, name)
            if path is not None:
                yield path, what

    def _learn(self, inos: set[int]) -> None:
        """The places of these folders and of all above them; one query per level."""
        places = self._places
        if len(places) > FOLDERS_KEPT:
            places.clear()
        missing = {ino for ino in inos if ino > ROOT_INO and ino not in places}
        while missing:
            ids = [Int64(ino) for ino in missing]
            documents = list(self._inodes.find({"_id": {"$in": ids}}, {"p": 1, "n": 1}))
            for document in documents:
                places[int(document["_id"])] = int(document["p"]), from_stored(document["n"])
            above = {places[int(document["_id"])][0] for document in documents}
            missing = {ino for ino in above if ino > ROOT_INO and ino not in places}

    def _path(self, parent: int, name: bytes) -> bytes | None:
        parts = [name]
        seen = set()
        while parent != ROOT_INO:
            place = self._places.get(parent)
            if place is None or parent in seen:
                return None
            seen.add(parent)
            parent, name = place
            parts.append(name)
        return b"/" + b"/".join(reversed(parts))


def _attributes(
    size_min: int | None, size_max: int | None, newer: int | None, older: int | None, type: str | None
) -> Document:
    query: Document = {}
    for field, low, low_value, high, high_value in (
        ("size", "$gte", size_min, "$lte", size_max),
        ("mtime", "$gt", newer, "$lt", older),
    ):
        limits = {op: Int64(value) for op, value in ((low, low_value), (high, high_value)) if value is not None}
        if limits:
            query[field] = limits
    if type is not None:
        kind = TYPES[type]
        query["mode"] = {"$gte": kind, "$lte": kind | 0o7777}
    return query


def _names(name: str | None) -> Document:
    """Names stored as strings are matched by the server; the others (BinData) afterwards."""
    if name is None:
        return {}
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # it holds bytes that only names stored as BinData have
        return {"n": {"$type": "binData"}}
    if not any(character in name for character in "*?["):
        return {"n": name}
    return {"$or": [{"n": {"$regex": _regex(name)}}, {"n": {"$type": "binData"}}]}


def _regex(glob: str) -> str:
    """The pattern for the server, anchored; it may let through more than the shell pattern (a set is any
    character).
    """
    parts = []
    index = 0
    while index < len(glob):
        character = glob[index]
        index += 1
        if character == "*":
            parts.append("[\\s\\S]*")
        elif character == "?":
            parts.append("[\\s\\S]")
        elif character == "[":
            end = glob.find("]", index + 2 if glob[index : index + 1] == "!" else index + 1)
            if end < 0:
                parts.append("\\[")
            else:
                parts.append("[\\s\\S]")
                index = end + 1
        else:
            parts.append(re.escape(character))
    return "^" + "".join(parts) + "\\z"


def _matches(pattern: re.Pattern[str] | None, document: Document) -> bool:
    if pattern is None:
        return True
    return pattern.match(from_stored(document["n"]).decode("utf-8", "surrogateescape")) is not None


def _batches(source: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(source)
    while batch := list(islice(iterator, BATCH)):
        yield batch

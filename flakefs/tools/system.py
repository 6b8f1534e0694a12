"""Checks the few documents that everything else hangs on: format, counters, sessions, nodes, volumes, indexes.

Concurrency
    One thread, blocking, on one Reader.

Not here
    Content and names; whether nodes answer (tools.nodes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bson.int64 import Int64

from flakefs.errors import Damaged, NotFormatted, UsageError
from flakefs.format import documents as d
from flakefs.format.codec import CODECS
from flakefs.format.documents import Document
from flakefs.format.hashing import HASH_NAME
from flakefs.format.placement import CODE_DEFAULT, check_code
from flakefs.format.records import (
    NODE_STATES,
    FormatRecord,
    NodeRecord,
    VolumeRecord,
    read_format,
    read_node,
    read_volume,
)
from flakefs.format.windows import valid_chunk_size
from flakefs.format.work import SCRUB, read_scrub
from flakefs.tools.problems import Report
from flakefs.tools.reader import Reader
from flakefs.tools.replicas import short_of

R = TypeVar("R")

INDEXES: tuple[tuple[tuple[tuple[str, int], ...], Mapping[str, Any]], ...] = (
    ((("p", 1), ("n", 1)), {"unique": True}),
    ((("p", 1), ("_id", 1)), {}),
    ((("i", 1),), {"partialFilterExpression": {"i": {"$exists": True}}}),
)
"""Of the collection `inodes`: (keys, options)."""
COUNTED = (("ino", d.INODES), ("volume", d.VOLUMES), ("node", d.NODES), ("session", d.SESSIONS))


class System:
    """What the set-up documents say, as far as it can be believed."""

    def __init__(self, reader: Reader, report: Report) -> None:
        self._reader = reader
        self._report = report
        self.nodes: dict[int, NodeRecord] = {}
        self.volumes: dict[int, VolumeRecord] = {}

    def check_format(self) -> FormatRecord:
        """The format; raises NotFormatted, FormatUnsupported, or Damaged when nothing can be checked without it."""
        where = self._reader.database
        document = self._reader.one(d.FORMAT, "format")
        if document is None:
            raise NotFormatted(f"there is no file system in database {where}; flakefs format makes one")
        record = read_format(document, where)
        wrong = []
        if not isinstance(record.chunk_size, int) or not valid_chunk_size(record.chunk_size):
            wrong.append(f"chunk size {record.chunk_size!r}")
        if record.codec not in CODECS:
            wrong.append(f"codec {record.codec!r}")
        if record.hash != HASH_NAME:
            wrong.append(f"hash {record.hash!r}")
        if not _is_code(record.replication):
            wrong.append(f"replication {record.replication!r}")
        if not isinstance(record.uuid, str) or len(record.uuid.replace("-", "")) != 32:
            wrong.append(f"uuid {record.uuid!r}")
        if wrong:
            self._report.add("format-wrong", "format", "impossible values: " + ", ".join(wrong))
        return record

    def check_places(self, replication: str = "") -> None:
        """Nodes and volumes. *replication* is the code of the file system; without one, copies are not counted."""
        self.nodes = {record.id: record for record in self._decoded(d.NODES, read_node)}
        for node in self.nodes.values():
            if node.state not in NODE_STATES:
                fields = {"state": "readonly"}  # until somebody who knows says otherwise
                self._report.add("node-wrong", f"node {node.id}", f"state {node.state!r}", id=node.id, fields=fields)
        for volume in self._decoded(d.VOLUMES, read_volume):
            self.volumes[volume.id] = volume
            self._check_volume(volume, replication)
        for document in self._reader.all(d.WORK, {"_id": SCRUB}):
            try:
                read_scrub(document)
            except Damaged as error:
                self._report.add("unreadable-document", f"work {SCRUB}", str(error))
        self._report.counts["nodes"] = len(self.nodes)
        self._report.counts["volumes"] = len(self.volumes)

    def _check_volume(self, volume: VolumeRecord, replication: str) -> None:
        where = f"volume {volume.id}"
        wrong: list[str] = []
        mended: Document = {}
        if volume.state not in ("writable", "sealed"):
            wrong.append(f"state {volume.state!r}")
            mended["state"] = "sealed"  # which is never wrong
        elif volume.state == "writable" and volume.sealed_at:
            wrong.append(f"writable, though it was sealed at map epoch {volume.sealed_at}")
            mended["state"] = "sealed"
        if len(set(volume.nodes)) != len(volume.nodes):
            wrong.append(f"nodes {list(volume.nodes)}")
            mended["nodes"] = list(dict.fromkeys(volume.nodes))
        if not _is_code(volume.code):
            wrong.append(f"code {volume.code!r}")
            mended["code"] = replication or CODE_DEFAULT
        if min(volume.chunks, volume.bytes, volume.garbage) < 0:
            wrong.append(f"{volume.chunks} chunks, {volume.bytes} bytes, {volume.garbage} garbage")
            mended |= {name: Int64(0) for name in ("chunks", "bytes", "garbage") if getattr(volume, name) < 0}
        if wrong:
            self._report.add("volume-wrong", where, ", ".join(wrong), id=volume.id, fields=mended)
        for node in volume.nodes:
            if node not in self.nodes:
                self._report.add("volume-node-unknown", where, f"lies on node {node}, which has no document")
        if not volume.nodes:
            said = f"it counts {volume.chunks} chunks; files that still name them are listed as content-lost"
            self._report.add("volume-without-nodes", where, said)
        elif replication and not wrong:
            short = short_of(volume, self.nodes, replication)
            if short is not None:
                self._report.add("volume-short", where, f"{short.why}; flakefs nodes repair makes the missing copies")

    def _decoded(self, collection: str, read: Callable[[Document], R]) -> list[R]:
        found = []
        for document in self._reader.all(collection):
            try:
                if not isinstance(document["_id"], int):
                    raise Damaged("its id is no number")
                found.append(read(document))
            except Damaged as error:
                self._report.add("unreadable-document", f"{collection} {document['_id']!r}", str(error))
        return found

    def check_counters(self) -> None:
        counters = {document["_id"]: document.get("next") for document in self._reader.all(d.COUNTERS)}
        for name, collection in COUNTED:
            ids = {"_id": {"$type": "number"}}
            # Further hard links have negative ids out of the counter of inodes.
            number = {"$abs": "$_id"}
            found = self._reader.aggregate(
                collection, [{"$match": ids}, {"$group": {"_id": None, "max": {"$max": number}}}]
            )
            highest = int(found[0]["max"]) if found else 0
            self._check_counter(counters, name, highest)
        self._check_counter(counters, "map", max((volume.sealed_at for volume in self.volumes.values()), default=0))

    def _check_counter(self, counters: Mapping[str, Any], name: str, highest: int) -> None:
        following = counters.get(name, 1)
        if not isinstance(following, int) or following <= highest:
            said = f"would give {following} next, {highest} is taken"
            self._report.add("counter-low", f"counter {name}", said, name=name, next=highest + 1)

    def check_indexes(self) -> None:
        """Indexes of `inodes`; without the unique one, names that are there twice."""
        collection = self._reader.collection(d.INODES)
        present = [
            (tuple((str(key), int(way)) for key, way in index["key"]), bool(index.get("unique")))
            for index in self._reader.door.run_sync(collection.index_information).values()
        ]
        for keys, options in INDEXES:
            if (keys, bool(options.get("unique"))) not in present:
                names = ", ".join(key for key, _ in keys)
                said = f"no {'unique ' if options.get('unique') else ''}index on ({names})"
                self._report.add("database-index-missing", d.INODES, said, keys=keys, options=options)
                if options.get("unique"):
                    self._find_doubles()

    def _find_doubles(self) -> None:
        doubles = self._reader.aggregate(
            d.INODES,
            [
                {"$group": {"_id": {"p": "$p", "n": "$n"}, "ids": {"$push": "$_id"}, "count": {"$sum": 1}}},
                {"$match": {"count": {"$gt": 1}}},
            ],
        )
        for double in doubles:
            place = double["_id"]
            said = f"documents {double['ids'][:10]} all have the name {place.get('n')!r}"
            self._report.add("name-twice", f"folder {place.get('p')}", said, ids=sorted(double["ids"], key=abs))


def _is_code(value: Any) -> bool:
    try:
        check_code(value)
    except (UsageError, TypeError, AttributeError):
        return False
    return True

"""Checks what lies on the nodes: markers, collections, presence of every chunk, and with *deep* its content.

Invariants
    F7  A node that cannot be read is a finding, never silence: its chunks count as not checked.

Concurrency
    One thread, blocking.

Not here
    The comparison of keys (tools.chunks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bson.binary import Binary
from bson.objectid import ObjectId

from flakefs.engine.sweep import stored_volumes
from flakefs.errors import ChunkCorrupt, Damaged, FlakeError
from flakefs.format import documents as d
from flakefs.format.codec import CODECS, decode
from flakefs.format.documents import Document, IndexRecord
from flakefs.format.hashing import chunk_hash
from flakefs.format.records import VolumeRecord
from flakefs.tools import chunks
from flakefs.tools.chunks import Node, Stretch
from flakefs.tools.problems import Report
from flakefs.tools.reader import Reader
from flakefs.values import ChunkRef

CONTENT_PAGE = 32
"""Chunks in one query of a deep check: at most 8 MiB each."""


class NodeCheck:
    """All nodes of a file system."""

    def __init__(
        self,
        snapshot: Reader,
        now: Reader,
        report: Report,
        uuid: str,
        volumes: Mapping[int, VolumeRecord],
        young: Callable[[ObjectId], bool],
    ) -> None:
        self._snapshot = snapshot
        self._now = now
        self._report = report
        self._uuid = uuid
        self._volumes = volumes
        self._young = young
        self.bad: dict[bytes, set[int]] = {}
        """Hash -> nodes whose copy is missing or broken."""
        self._unindexed: dict[bytes, int] = {}
        """Hash -> volume, of chunks that extents name and the index does not."""

    def run(self, nodes: Mapping[int, Node], deep: bool) -> None:
        for node in nodes.values():
            if not node.failure:
                self._guarded(node, self._check_marker)
        for stretch in chunks.compare(self._snapshot, self._uuid, self._volumes, nodes):
            self._guarded(nodes[stretch.node], lambda node, stretch=stretch: self._judge(node, stretch))  # type: ignore[misc]
        for node in nodes.values():
            for volume in self._volumes.values():
                if deep and node.record.id in volume.nodes and not node.failure:
                    self._guarded(node, lambda node, volume=volume: self._check_content(node, volume.id))  # type: ignore[misc]
        for node in nodes.values():
            if node.failure:
                self._report.add("node-unreachable", f"node {node.record.id}", str(node.failure))

    def _guarded(self, node: Node, call: Callable[[Node], None]) -> None:
        try:
            call(node)
        except FlakeError as error:  # F7
            node.failure = error

    def _check_marker(self, node: Node) -> None:
        where = f"node {node.record.id}"
        marker = node.reader.one(d.NODE_MARKER, self._uuid)
        if marker is None or marker.get("node") != node.record.id:
            said = "has no marker" if marker is None else f"its marker says node {marker.get('node')}"
            said += f" of this file system in database {node.record.database}"
            self._report.add("node-marker", where, said, node=node.record.id, present=marker is not None)
        expected = {volume.id for volume in self._volumes.values() if node.record.id in volume.nodes}
        for number in stored_volumes(node.door, node.record, self._uuid):
            if number not in expected:
                self._report.add("node-volume-stray", where, f"volume {number} is none of its volumes")

    def _judge(self, node: Node, stretch: Stretch) -> None:
        """Differences of one stretch."""
        self._report.counts["chunks on nodes"] += stretch.indexed
        where = f"node {node.record.id}"
        if stretch.missing:
            present = self._present(node, stretch)
            for key, content in chunks.still_indexed(self._now, stretch.volume, stretch.missing).items():
                if key in present:
                    said = f"volume {stretch.volume}, key {key}: two index entries, one is {content.hex()}"
                    self._report.add("key-twice", where, said)
                    continue
                said = f"chunk {content.hex()} (volume {stretch.volume}, key {key}) is not there"
                self._report.add("chunk-missing", where, said)
                self.bad.setdefault(content, set()).add(node.record.id)
        old = {key for key in stretch.extra if not self._young(key)}
        for described in chunks.describe(node, self._uuid, stretch.volume, old):
            labels = {key: label for key, label, _ in described}
            indexed = chunks.still_indexed(self._now, stretch.volume, labels)
            for key, _, size in described:
                if key not in indexed:
                    self._report.leaked_chunks += 1
                    self._report.leaked_bytes += size

    def _present(self, node: Node, stretch: Stretch) -> set[ObjectId]:
        """Of the missing keys those that are there: indexed twice, or written while we looked."""
        found: set[ObjectId] = set()
        name = d.volume_collection(self._uuid, stretch.volume)
        for batch in chunks.batches(list(stretch.missing)):
            found.update(e["_id"] for e in node.reader.stream(name, {"_id": {"$in": batch}}, fields={"_id": 1}))
        return found

    # Deep

    def _check_content(self, node: Node, volume: int) -> None:
        """Read every chunk of one volume on one node."""
        unlabelled: dict[ObjectId, Document] = {}
        name = d.volume_collection(self._uuid, volume)
        for page in node.reader.pages(name, page=CONTENT_PAGE):
            labels = [Binary(as_hash) for e in page if (as_hash := chunks.as_bytes(e.get("h")))]
            records = {bytes(e["_id"]): e for e in self._now.stream(d.CHUNKS, {"_id": {"$in": labels}})}
            for document in page:
                entry = records.get(chunks.as_bytes(document.get("h")))
                if entry is not None and entry.get("k") == document["_id"] and entry.get("v") == volume:
                    self._check_chunk(node, volume, document, entry)
                else:
                    unlabelled[document["_id"]] = {"h": document.get("h")}
        for key, content in chunks.indexed_by_key(self._now, volume, unlabelled).items():
            label = chunks.as_bytes(unlabelled[key]["h"])
            if label == content:
                continue  # its commit came while we looked
            said = f"volume {volume}, key {key}: labelled {label.hex() or 'without'}, the index says {content.hex()}"
            self._report.add("chunk-hash", f"node {node.record.id}", said)
            self.bad.setdefault(content, set()).add(node.record.id)

    def _check_chunk(self, node: Node, volume: int, document: Document, entry: Document) -> None:
        where = f"node {node.record.id}"
        label = f"chunk {bytes(entry['_id']).hex()} (volume {volume}, key {document['_id']})"
        self._report.counts["chunks read"] += 1
        try:
            record: IndexRecord = d.read_index(entry)
            chunk = d.read_chunk(document)
            if chunk.codec not in CODECS:
                self._report.add("chunk-codec", where, f"{label} has codec {chunk.codec!r}")
                self.bad.setdefault(record.ref.hash, set()).add(node.record.id)
                return
            plain = decode(chunk.codec, chunk.data, record.ref.length)
            if chunk_hash(plain) != record.ref.hash:
                raise ChunkCorrupt("its content has another hash")
        except (Damaged, ChunkCorrupt, TypeError) as error:
            self._report.add("chunk-corrupt", where, f"{label}: {error}")
            self.bad.setdefault(bytes(entry["_id"]), set()).add(node.record.id)
            return
        if len(chunk.data) != record.stored_bytes:
            said = f"{label} has {len(chunk.data)} stored bytes, the index says {record.stored_bytes}"
            self._report.add("chunk-size", where, said, hash=record.ref.hash, size=len(chunk.data))

    # Which files suffer

    def lost_content(self, nodes: Mapping[int, Node]) -> None:
        """Files with chunks that no node that answers has whole."""
        for problem in self._report.found:
            if problem.kind.id == "index-missing":
                self._probe_unindexed(problem.facts["ref"], nodes)
        lost = {h for h, where in self.bad.items() if self._copies(h, nodes) <= where}
        if not lost:
            return
        files: dict[int, set[bytes]] = {}
        for ino, hashes in self._named_by(lost):
            files.setdefault(ino, set()).update(hashes)
        for ino, hashes in files.items():
            said = f"{len(hashes)} of its chunks are lost, the first is {min(hashes).hex()}"
            self._report.add("content-lost", f"inode {ino}", said)

    def _probe_unindexed(self, ref: ChunkRef, nodes: Mapping[int, Node]) -> None:
        """A chunk that files name and the index does not: is it there all the same?"""
        self._unindexed[ref.hash] = ref.volume
        name = d.volume_collection(self._uuid, ref.volume)
        for number in self._copies(ref.hash, nodes):
            if not nodes[number].failure and nodes[number].reader.one(name, ObjectId(ref.key)) is None:
                self.bad.setdefault(ref.hash, set()).add(number)

    def _copies(self, content: bytes, nodes: Mapping[int, Node]) -> set[int]:
        """Nodes that should have a chunk."""
        number = self._unindexed.get(content)
        if number is None:
            entry = self._now.one(d.CHUNKS, Binary(content))
            number = entry["v"] if entry else None
        volume = None if number is None else self._volumes.get(number)
        return set(volume.nodes if volume else ()) & set(nodes)

    def _named_by(self, lost: set[bytes]) -> Iterator[tuple[int, set[bytes]]]:
        """Inodes whose extents name one of these hashes; one walk over all maps."""

        def hashes(document: Document) -> set[bytes]:
            extents: list[Any] = document.get("e") or []
            return {bytes(e["h"]) for e in extents if isinstance(e, dict) and isinstance(e.get("h"), bytes)} & lost

        for document in self._snapshot.stream(d.INODES, {"e": {"$exists": True}}, fields={"e": 1}):
            if found := hashes(document):
                yield int(document["_id"]), found
        for document in self._snapshot.stream(d.EXTENTS, page=100):
            if found := hashes(document):
                yield int(document["_id"]["i"]), found

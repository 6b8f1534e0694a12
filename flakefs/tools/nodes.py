"""Checks what lies on the nodes: markers, collections, presence of every chunk, and with *deep* its content.

Invariants
    F7  A node that cannot be read is a finding, never silence: its chunks count as not checked.

Concurrency
    One thread, blocking.

Not here
    The comparison of keys (tools.chunks), what is wrong with a copy (format.verifying).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from bson.binary import Binary
from bson.objectid import ObjectId

from flakefs.engine.sweep import stored_volumes
from flakefs.errors import Damaged, FlakeError
from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.format.records import VolumeRecord, read_volume
from flakefs.format.verifying import verify
from flakefs.tools import chunks, lost
from flakefs.tools.chunks import Node, Stretch
from flakefs.tools.problems import Problem, Report
from flakefs.tools.reader import Reader
from flakefs.tools.rewriting import unfinished_copies
from flakefs.values import ChunkRef

CONTENT_PAGE = 32
"""Chunks in one query of a deep check: at most 8 MiB each."""


class Bad(NamedTuple):
    """A chunk with copies that are missing or broken."""

    volume: int
    nodes: set[int]
    """Where."""


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
        self.bad: dict[bytes, Bad] = {}
        """By the chunk's name."""

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
        self._advise(nodes, deep)

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
        present = set(stored_volumes(node.door, node.record, self._uuid))
        for number in sorted(present - expected):
            if not self._lies_now(number, node):  # made, or moved here, while we looked
                self._report.add("node-volume-stray", where, f"volume {number} is none of its volumes")
        for number in sorted(expected - present):
            if self._volumes[number].chunks and self._lies_now(number, node):
                said = f"volume {number} of {self._volumes[number].chunks} chunks is not there"
                self._report.add("node-collection-missing", where, said)
        for name in unfinished_copies(node, self._uuid):
            self._report.add("node-copy-left", where, name)

    def _lies_now(self, volume: int, node: Node) -> bool:
        """Is *node* one of the volume's nodes, in what is committed now? A volume may move while we look."""
        document = self._now.one(d.VOLUMES, volume)
        try:
            return document is not None and node.record.id in read_volume(document).nodes
        except Damaged:
            return False

    def _note_bad(self, name: bytes, volume: int, node: Node) -> None:
        self.bad.setdefault(name, Bad(volume, set())).nodes.add(node.record.id)

    def _judge(self, node: Node, stretch: Stretch) -> None:
        """Differences of one stretch."""
        self._report.counts["chunks on nodes"] += stretch.indexed
        where = f"node {node.record.id}"
        if stretch.missing and self._lies_now(stretch.volume, node):
            # Those that are there are indexed twice, or were written while we looked.
            present = chunks.present(node, self._uuid, stretch.volume, stretch.missing)
            for key, content in chunks.still_indexed(self._now, stretch.volume, stretch.missing).items():
                if key in present:
                    said = f"volume {stretch.volume}, key {key}: two index entries, one is {content.hex()}"
                    self._report.add("key-twice", where, said)
                    continue
                said = f"chunk {content.hex()} (volume {stretch.volume}, key {key}) is not there"
                self._report.add("chunk-missing", where, said, name=content)
                self._note_bad(content, stretch.volume, node)
        old = {key for key in stretch.extra if not self._young(key)}
        for described in chunks.describe(node, self._uuid, stretch.volume, old):
            labels = {key: label for key, label, _ in described}
            indexed = chunks.still_indexed(self._now, stretch.volume, labels)
            for key, _, size in described:
                if key not in indexed:
                    self._report.leaked_chunks += 1
                    self._report.leaked_bytes += size

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
            self._report.add("chunk-hash", f"node {node.record.id}", said, name=content)
            self._note_bad(content, volume, node)

    def _check_chunk(self, node: Node, volume: int, document: Document, entry: Document) -> None:
        where = f"node {node.record.id}"
        label = f"chunk {bytes(entry['_id']).hex()} (volume {volume}, key {document['_id']})"
        self._report.counts["chunks read"] += 1
        try:
            record = d.read_index(entry)
        except Damaged:
            return  # named already
        verdict = verify(document, record.ref)
        if verdict.flaw is not None:
            self._report.add(verdict.flaw.value, where, f"{label}: {verdict.said}", name=record.ref.hash)
            self._note_bad(record.ref.hash, volume, node)
        elif len(document["d"]) != record.stored_bytes:
            said = f"{label} has {len(document['d'])} stored bytes, the index says {record.stored_bytes}"
            self._report.add("chunk-size", where, said, hash=record.ref.hash, size=len(document["d"]))

    # What can be done, and which files suffer

    def _advise(self, nodes: Mapping[int, Node], deep: bool) -> None:
        """Tell of each bad copy whether another one is there."""
        for number, problem in enumerate(self._report.found):
            name = problem.facts.get("name")
            if isinstance(name, bytes) and name in self.bad:
                self._report.found[number] = self._advised(problem, self.bad[name], nodes, deep)

    def _advised(self, problem: Problem, bad: Bad, nodes: Mapping[int, Node], deep: bool) -> Problem:
        others = sorted(self._copies(bad.volume, nodes) - bad.nodes)
        good = [number for number in others if not nodes[number].failure]
        if good:
            said = f"node {good[0]} has {'a good copy' if deep else 'another copy'}: "
            said += "flakefs nodes repair mends it" if problem.kind.id == "chunk-missing" else "flakefs scrub mends it"
        elif others:
            said = f"whether node {others[0]} has a good copy is not known, for it does not answer"
        else:
            said = "there is no other copy"
        return dataclasses.replace(problem, detail=f"{problem.detail}; {said}")

    def lost_content(self, nodes: Mapping[int, Node]) -> None:
        """Files with chunks that no node that answers has whole."""
        for problem in self._report.found:
            if problem.kind.id == "index-missing":
                self._probe_unindexed(problem.facts["ref"], nodes)
        gone = {name for name, bad in self.bad.items() if self._copies(bad.volume, nodes) <= bad.nodes}
        gone |= lost.chunks_in(self._snapshot, [volume.id for volume in self._volumes.values() if not volume.nodes])
        for ino, names in lost.files_of(self._snapshot, gone).items():
            self._report.add("content-lost", f"inode {ino}", lost.words(names))

    def _probe_unindexed(self, ref: ChunkRef, nodes: Mapping[int, Node]) -> None:
        """A chunk that files name and the index does not: is it there all the same?"""
        name = d.volume_collection(self._uuid, ref.volume)
        for number in self._copies(ref.volume, nodes):
            node = nodes[number]
            if not node.failure and node.reader.one(name, ObjectId(ref.key)) is None:
                self._note_bad(ref.hash, ref.volume, node)

    def _copies(self, volume: int, nodes: Mapping[int, Node]) -> set[int]:
        """Nodes that should have the chunks of a volume."""
        record = self._volumes.get(volume)
        return set(record.nodes if record else ()) & set(nodes)

"""A formatted metadata database, a small content side, and a check of everything that is committed."""

from __future__ import annotations

import itertools
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bson.objectid import ObjectId

from flakefs.errors import NoSpace
from flakefs.format import documents as d
from flakefs.format.extents import covered, overlay, problems, punch
from flakefs.format.hashing import chunk_hash
from flakefs.format.records import VolumeRecord
from flakefs.mongo.clients import connect
from flakefs.mongo.door import Door
from flakefs.namespace import Inode, Namespace, NamespaceOptions, open_namespace, open_session, schema
from flakefs.values import ROOT_INO, SEGMENT_BYTES, Block, ChunkRef, Extent

CALM = NamespaceOptions(commit_interval_seconds=3600, group_documents=100_000, dirty_documents_max=100_000)
"""Commits only when it is asked to."""


class Content:
    """The content side in memory: what it stores, and what it would delete.

    `bytes_of` is the node. Like the engine: one ref per hash while it is indexed or pinned, new keys otherwise.
    """

    def __init__(self, world: World) -> None:
        self.ns: Namespace | None = None
        self.bytes_of: dict[bytes, bytes] = world.bytes_of
        self.refs: dict[bytes, ChunkRef] = {
            record.ref.hash: record.ref for record in map(d.read_index, world.db[d.CHUNKS].find())
        }
        self.indexed: set[bytes] = set(self.refs)
        self.pins: dict[Block, None] = {}
        self.fail: list[Exception] = []
        self.full = False
        self.calls = 0
        self.settled: list[tuple[list[Block], list[Block]]] = []

    def seal(self) -> list[Block]:
        assert self.ns is not None
        found: dict[Block, None] = {}
        for inode in self.ns.dirty_files():
            assert inode.map is not None
            for number in inode.map.segments():
                for extent in inode.map.segment(number):
                    if isinstance(extent.source, Block) and extent.source.data is not None:
                        extent.source.sealed = True
                        found[extent.source] = None
        return list(found)

    async def store(self, blocks: Iterable[Block]) -> None:
        self.calls += 1
        if self.full:
            raise NoSpace("the nodes are full")
        if self.fail:
            raise self.fail.pop(0)
        for block in blocks:
            self.upload(block)
            block.data = None

    def upload(self, block: Block) -> None:
        """What engine.store does for one block."""
        if block.ref is not None:
            return
        data = bytes(block.data or b"")
        name = chunk_hash(data)
        ref = self.refs.get(name)
        if ref is None:
            ref = self.refs[name] = ChunkRef(name, 1, ObjectId().binary, len(data))
            self.bytes_of[ref.key] = data
        block.ref, block.stored_bytes = ref, len(data) + 7
        self.pins[block] = None

    def share(self, shared: bool) -> None:
        """Everything is asked and deleted at once, whoever else writes."""

    def at_rest(self) -> bool:
        return not self.pins

    def lapsed(self) -> bool:
        return any(block.ref is not None and block.ref.hash not in self.indexed for block in self.pins)

    def settle(self, kept: Iterable[Block], dropped: Iterable[Block], removed: Iterable[d.IndexRecord]) -> None:
        kept, dropped = list(kept), list(dropped)
        self.settled.append((kept, dropped))
        for record in removed:
            self.indexed.discard(record.ref.hash)
            if self.refs.get(record.ref.hash) != record.ref:
                self.bytes_of.pop(record.ref.key, None)
        for block in kept:
            assert block.ref is not None
            assert block in self.pins, "J6: settled twice, or never stored"
            del self.pins[block]
            self.indexed.add(block.ref.hash)
        for block in dropped:
            self.pins.pop(block, None)
        pinned = {block.ref.hash for block in self.pins if block.ref is not None}
        for name in [name for name in self.refs if name not in pinned and name not in self.indexed]:
            self.bytes_of.pop(self.refs.pop(name).key, None)


class World:
    """One metadata database and the node of its content."""

    def __init__(self, door: Door, name: str) -> None:
        self.door = door
        self.name = name
        self.db = door.client[name]
        self.bytes_of: dict[bytes, bytes] = {}
        self.clock = itertools.count(1_000)
        self.reset()

    def reset(self) -> None:
        """An empty file system."""
        for collection in d.METADATA_COLLECTIONS:
            self.db[collection].delete_many({})
        schema.create(self.db)
        self.db[d.VOLUMES].insert_one(VolumeRecord(id=1, nodes=(1,)).document())
        self.bytes_of.clear()

    def now(self) -> int:
        return next(self.clock)

    @asynccontextmanager
    async def open(
        self, options: NamespaceOptions = CALM, *, writable: bool = True, crash: bool = False
    ) -> AsyncIterator[Namespace]:
        """The namespace; *crash*: leave without storing what is not stored. `content` of it is at ns.content."""
        session = await open_session(self.door, self.name, kind="mount", writable=writable, where="/mnt/test")
        content = Content(self)
        async with open_namespace(
            self.door, self.name, options=options, session=session, content=content, clock=self.now
        ) as ns:
            content.ns = ns
            self.content = content
            self.session = session
            if crash:
                self.let_crash(ns)
            yield ns
        await session.close()

    def let_crash(self, ns: Namespace) -> None:
        """Leaving open() will not store what is not stored."""

        async def nothing() -> None:
            ns._journal._scope.cancel()

        ns._journal.close = nothing  # type: ignore[method-assign]

    # -- short forms --

    async def file(self, ns: Namespace, parent: Inode, name: bytes, data: bytes = b"") -> Inode:
        inode = await ns.make(parent, name, mode=stat.S_IFREG | 0o644, uid=1, gid=2, now=self.now())
        if data:
            await self.write(ns, inode, 0, data)
        return inode

    async def folder(self, ns: Namespace, parent: Inode, name: bytes) -> Inode:
        return await ns.make(parent, name, mode=stat.S_IFDIR | 0o755, uid=1, gid=2, now=self.now())

    async def write(self, ns: Namespace, inode: Inode, offset: int, data: bytes, block: Block | None = None) -> Block:
        """*data* must not cross a segment border."""
        number = offset // SEGMENT_BYTES
        while not inode.map.loaded(offset, offset + len(data)):  # type: ignore[union-attr]
            await ns.load(inode, offset, offset + len(data))
        ns.check_writable()
        block = block or Block(data)
        file_map = inode.map
        assert file_map is not None
        file_map.replace(number, overlay(file_map.segment(number), Extent(offset, len(data), block, 0)))
        inode.size = max(inode.size, offset + len(data))
        inode.mtime = inode.ctime = self.now()
        ns.changed(inode)
        return block

    async def cut_hole(self, ns: Namespace, inode: Inode, start: int, stop: int) -> None:
        while not inode.map.loaded(start, stop):  # type: ignore[union-attr]
            await ns.load(inode, start, stop)
        file_map = inode.map
        assert file_map is not None
        number = start // SEGMENT_BYTES
        file_map.replace(number, punch(file_map.segment(number), start, stop))
        ns.changed(inode)

    def read_extents(self, extents: Iterable[Extent]) -> list[tuple[int, bytes]]:
        """(offset, content) of each, from the node."""
        result = []
        for offset, length, source, start in extents:
            if isinstance(source, Block):
                source = bytes(source.data) if source.data is not None else source.ref  # type: ignore[assignment]
            data = source if isinstance(source, bytes) else self.bytes_of[source.key]  # type: ignore[union-attr]
            result.append((offset, data[start : start + length]))
        return result

    # -- what is committed --

    def stored(self, collection: str, id: object) -> d.Document:
        """The document, which is there."""
        document = self.db[collection].find_one({"_id": id})
        assert document is not None
        return document

    def tree(self) -> dict[bytes, d.InodeRecord]:
        """path -> inode, of all names."""
        inodes, links = self._records()
        children: dict[int, list[tuple[bytes, int]]] = {}
        records: list[d.InodeRecord | d.LinkRecord] = [*inodes.values(), *links]
        for record in records:
            children.setdefault(record.parent, []).append((record.name, record.ino))
        result: dict[bytes, d.InodeRecord] = {}

        def walk(path: bytes, ino: int, seen: frozenset[int]) -> None:
            assert ino not in seen, "R2: a folder lies inside itself"
            for name, child in children.get(ino, ()):
                result[path + b"/" + name] = inodes[child]
                if stat.S_ISDIR(inodes[child].mode):
                    walk(path + b"/" + name, child, seen | {ino})

        walk(b"", ROOT_INO, frozenset())
        return result

    def content_of(self, record: d.InodeRecord) -> list[tuple[int, bytes]]:
        """(offset, bytes) of all committed extents of a file."""
        extents = list(record.extents)
        for _, _, later, _ in self._segments().get(record.ino, ()):
            extents += later
        return self.read_extents(extents)

    def _records(self) -> tuple[dict[int, d.InodeRecord], list[d.LinkRecord]]:
        documents = list(self.db[d.INODES].find())
        inodes = {record.ino: record for record in map(d.read_inode, (x for x in documents if x["_id"] > 0))}
        return inodes, [d.read_link(x) for x in documents if x["_id"] < 0]

    def _segments(self) -> dict[int, list[tuple[int, int, list[Extent], int]]]:
        result: dict[int, list[Any]] = {}
        for segment in map(d.read_segment, self.db[d.EXTENTS].find().sort("_id", 1)):
            result.setdefault(segment[0], []).append(segment)
        return result

    def orphans(self) -> set[int]:
        return {int(document["_id"]) for document in self.db[d.ORPHANS].find()}

    def audit(self, *, orphans: int | None = 0, leaks: bool = False) -> None:
        """Every invariant between the committed documents, and that the node holds exactly what is indexed."""
        inodes, links = self._records()
        named: list[d.InodeRecord | d.LinkRecord] = [*links, *(i for i in inodes.values() if i.parent >= 0)]
        names = Counter(record.ino for record in named)
        orphaned = self.orphans()
        if orphans is not None:
            assert len(orphaned) == orphans
        folders = Counter(i.parent for i in inodes.values() if stat.S_ISDIR(i.mode))
        segments = self._segments()
        refs: Counter[ChunkRef] = Counter()
        for record in inodes.values():
            self._audit_inode(record, inodes, names, folders, orphaned)
            used = self._audit_extents(record, segments.pop(record.ino, []), refs)
            assert record.used == used, f"M3: inode {record.ino} uses {used}, says {record.used}"
        for link in links:
            assert link.ino in inodes
            assert link.parent in inodes
        assert not segments, f"segments of inodes that are not there: {segments}"
        assert orphaned <= set(inodes), "O1: orphan documents that name nothing"
        index = {record.ref: record for record in map(d.read_index, self.db[d.CHUNKS].find())}
        assert {ref: record.refs for ref, record in index.items()} == dict(refs), "F1 or F2"
        volume = self.db[d.VOLUMES].find_one({"_id": 1})
        assert volume is not None
        assert volume["chunks"] == len(index)
        assert volume["bytes"] == sum(record.stored_bytes for record in index.values())
        stored, indexed = set(self.bytes_of), {ref.key for ref in index}
        assert indexed <= stored, "an indexed chunk has no bytes"
        if not leaks:
            assert stored == indexed, "bytes that nobody names"

    def _audit_inode(
        self,
        record: d.InodeRecord,
        inodes: dict[int, d.InodeRecord],
        names: Counter[int],
        folders: Counter[int],
        orphaned: set[int],
    ) -> None:
        is_folder = stat.S_ISDIR(record.mode)
        if record.parent < 0:
            assert (record.parent, record.name, record.nlink) == (-record.ino, b"", 0), "H3"
            assert record.ino in orphaned, "O1"
            return
        assert record.ino == ROOT_INO or stat.S_ISDIR(inodes[record.parent].mode)
        if is_folder:
            assert names[record.ino] == 1
            assert record.nlink == 2 + folders[record.ino] - (record.ino == 0)
        else:
            assert record.nlink == names[record.ino], f"inode {record.ino}"

    def _audit_extents(self, record: d.InodeRecord, later: list[Any], refs: Counter[ChunkRef]) -> int:
        used = 0
        for number, extents in [(0, record.extents), *((segment[1], segment[2]) for segment in later)]:
            assert problems(extents, number * SEGMENT_BYTES, (number + 1) * SEGMENT_BYTES) == []
            assert not extents or extents[-1].offset + extents[-1].length <= record.size
            used += covered(extents)
            refs.update(extent.source for extent in extents if isinstance(extent.source, ChunkRef))
        return used


@pytest.fixture
def new_world(servers: Any, new_database: Callable[[], str]) -> Iterator[Callable[[], World]]:
    """Call it for a fresh metadata database."""
    client = connect(servers.metadata_uri, purpose="test")
    door = Door(client, name="the metadata server")
    yield lambda: World(door, new_database())
    door.close()


@pytest.fixture
def world(new_world: Callable[[], World]) -> World:
    return new_world()

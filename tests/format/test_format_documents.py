"""Stored documents: D1 to D4, and golden copies that freeze each of them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace

import bson
import pytest
from bson.binary import Binary
from bson.int64 import Int64
from bson.objectid import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st

from flakefs.errors import Damaged, FormatUnsupported
from flakefs.format import documents as d
from flakefs.format import records as r
from flakefs.format.version import FORMAT_VERSION, check_version
from flakefs.values import FILE_MAX, Block, ChunkRef, Extent

FROZEN = "the stored format changed: raise FORMAT_VERSION and keep a reader for the old one"
big = st.integers(0, FILE_MAX)
numbers = st.integers(1, 2**31 - 1)
names = st.binary(min_size=1, max_size=40)
chunk_refs = st.builds(
    ChunkRef,
    st.one_of(st.binary(min_size=32, max_size=32), st.binary(min_size=35, max_size=35)),
    numbers,
    st.binary(min_size=12, max_size=12),
    numbers,
)
extents = st.one_of(
    st.builds(Extent, big, numbers, chunk_refs, st.integers(0, 2**31 - 1)),
    st.binary(min_size=1, max_size=50).map(lambda data: Extent(0, len(data), data, 0)),
)
TYPES = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR]


@st.composite
def inodes(draw: st.DrawFn) -> SimpleNamespace:
    mode = draw(st.sampled_from(TYPES)) | draw(st.integers(0, 0o7777))
    ino = draw(st.integers(1, FILE_MAX))
    return SimpleNamespace(
        ino=ino, parent=draw(st.one_of(big, st.just(-ino))), name=draw(st.one_of(names, st.just(b""))), mode=mode,
        uid=draw(st.integers(0, 2**32 - 1)), gid=draw(st.integers(0, 2**32 - 1)),
        rdev=draw(big) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0, size=draw(big), nlink=draw(big),
        used=draw(big) if stat.S_ISREG(mode) else 0,
        atime=draw(st.integers(-(2**62), 2**62)), mtime=draw(big), ctime=draw(big), btime=draw(big),
        xattrs=draw(st.dictionaries(names, st.binary(max_size=30), max_size=4)),
        target=draw(st.binary(min_size=1, max_size=60)) if stat.S_ISLNK(mode) else b"",
        mset=draw(big), aset=draw(big),
    )  # fmt: skip


def stored(document: d.Document) -> d.Document:
    """Through BSON, as the server gives it back."""
    return bson.decode(bson.encode(document))


@settings(deadline=None)
@given(inodes(), st.lists(extents, max_size=5), big)
def test_inode_round_trip(node: SimpleNamespace, found: list[Extent], version: int) -> None:
    """D1, D2, D3"""
    found = found if stat.S_ISREG(node.mode) else []
    document = stored(d.inode_document(node, found, version))
    record = d.read_inode(document)
    assert {field: getattr(record, field) for field in vars(node)} == vars(node)
    assert record.version == version
    assert record.extents == found
    for field in ("_id", "p", "uid", "gid", "size", "nlink", "atime", "mtime", "ctime", "btime", "v"):
        assert isinstance(document[field], Int64), field
    for field, value in (
        ("used", node.used),
        ("rdev", node.rdev),
        ("xattrs", node.xattrs),
        ("mset", node.mset),
        ("aset", node.aset),
        ("target", node.target),
        ("e", found),
    ):
        assert (field in document) == bool(value), field


@given(st.integers(-FILE_MAX, -1), big, names, big, big)
def test_link_round_trip(id: int, parent: int, name: bytes, ino: int, version: int) -> None:
    """D1, D2"""
    link = d.LinkRecord(id, parent, name, ino, version)
    document = stored(d.link_document(link))
    assert d.read_link(document) == link
    assert all(isinstance(document[field], Int64) for field in ("_id", "p", "i", "v"))


@given(st.integers(1, FILE_MAX), st.integers(1, 2**37), st.lists(extents, max_size=5), big)
def test_segment_round_trip(ino: int, segment: int, found: list[Extent], version: int) -> None:
    """D1, D2"""
    document = stored(d.segment_document(ino, segment, found, version))
    assert d.read_segment(document) == (ino, segment, found, version)
    assert list(document["_id"]) == ["i", "s"]
    assert document["_id"] == d.segment_id(ino, segment)


@given(chunk_refs, numbers, st.integers(1, FILE_MAX))
def test_index_round_trip(ref: ChunkRef, size: int, count: int) -> None:
    """D1"""
    assert d.read_index(stored(d.index_document(ref, size, count))) == d.IndexRecord(ref, size, count)


@given(st.binary(min_size=12, max_size=12), st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_chunk_round_trip(key: bytes, content_hash: bytes, data: bytes) -> None:
    """D1"""
    assert d.read_chunk(stored(d.chunk_document(key, content_hash, "zstd", data))) == (key, content_hash, "zstd", data)


dates = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(
    lambda date: date.replace(microsecond=date.microsecond // 1000 * 1000)
)
text = st.text(max_size=20).filter(lambda value: "\0" not in value)


@given(st.builds(r.NodeRecord, id=numbers, uri=text, database=text, state=text, dc=text, rack=text,
                 capacity=st.one_of(st.none(), big), added=big))  # fmt: skip
def test_node_round_trip(record: r.NodeRecord) -> None:
    """D1, D3"""
    document = stored(record.document())
    assert r.read_node(document) == record
    assert ("capacity" in document) == (record.capacity is not None)


@given(st.builds(r.VolumeRecord, id=numbers, nodes=st.lists(numbers, max_size=3).map(tuple), state=text, code=text,
                 chunks=big, bytes=big, garbage=big, created=big, own=st.booleans(), sealed_at=big,
                 work=st.one_of(st.none(), st.builds(r.Work, text, text, dates))))  # fmt: skip
def test_volume_round_trip(record: r.VolumeRecord) -> None:
    """D1, D2, D3"""
    document = stored(record.document())
    assert r.read_volume(document) == record
    for field, value in (("own", record.own), ("sealed_at", record.sealed_at), ("work", record.work)):
        assert (field in document) == bool(value), field
    assert all(isinstance(document[field], Int64) for field in ("chunks", "bytes", "garbage", "created"))


@given(st.builds(r.FormatRecord, uuid=text, chunk_size=numbers, codec=text, created=big))
def test_format_round_trip(record: r.FormatRecord) -> None:
    """D1"""
    assert r.read_format(stored(record.document()), "here") == record


def test_a_newer_format_is_refused_with_a_way_out() -> None:
    with pytest.raises(FormatUnsupported, match="in db has format version 2, this program knows version 1; install"):
        check_version(FORMAT_VERSION + 1, "db")


def test_a_block_is_stored_as_the_chunk_it_became() -> None:
    block = Block(b"abc")
    block.ref = ChunkRef(b"h" * 32, 1, b"k" * 12, 3)
    assert d.extent_document(Extent(7, 2, block, 1)) == d.extent_document(Extent(7, 2, block.ref, 1))


def test_a_literal_is_stored_cut_to_its_extent() -> None:
    document = d.extent_document(Extent(2, 3, b"0123456789", 4))
    assert d.read_extent(document) == Extent(2, 3, b"456", 0)


KEY, HASH = b"\x01" * 12, b"\x02" * 32
REF = ChunkRef(HASH, 3, KEY, 5)
NODE = SimpleNamespace(
    ino=7, parent=1, name=b"name", mode=0o100644, uid=1000, gid=100, rdev=0, size=9, nlink=1, used=9,
    atime=1, mtime=2, ctime=3, btime=4, xattrs={b"user.b": b"2", b"user.a": b"1"}, target=b"", mset=0, aset=0,
)  # fmt: skip
EXTENT_GOLDEN = {"o": Int64(0), "l": 5, "s": 0, "v": 3, "k": ObjectId(KEY), "h": HASH, "z": 5}
INODE_GOLDEN = {
    "_id": Int64(7), "p": Int64(1), "n": "name", "mode": 0o100644, "uid": Int64(1000), "gid": Int64(100),
    "size": Int64(9), "nlink": Int64(1), "atime": Int64(1), "mtime": Int64(2), "ctime": Int64(3), "btime": Int64(4),
    "v": Int64(6), "used": Int64(9), "e": [EXTENT_GOLDEN, {"o": Int64(5), "l": 4, "d": b"tail"}],
    "xattrs": [{"n": b"user.a", "v": b"1"}, {"n": b"user.b", "v": b"2"}],
}  # fmt: skip
SYMLINK_GOLDEN = {
    "_id": Int64(7), "p": Int64(1), "n": b"\xff", "mode": 0o120777, "uid": Int64(1000), "gid": Int64(100),
    "size": Int64(9), "nlink": Int64(1), "atime": Int64(1), "mtime": Int64(2), "ctime": Int64(3), "btime": Int64(4),
    "v": Int64(1), "target": b"elsewhere",
}  # fmt: skip
FOLDER_GOLDEN = {**SYMLINK_GOLDEN, "mode": 0o040755, "size": Int64(0), "mset": Int64(7), "aset": Int64(8)}
del FOLDER_GOLDEN["target"]
DEVICE_GOLDEN = {**SYMLINK_GOLDEN, "mode": 0o020600, "size": Int64(0), "rdev": Int64(259)}
del DEVICE_GOLDEN["target"]
LINK_GOLDEN = {"_id": Int64(-8), "p": Int64(1), "n": "also", "i": Int64(7), "v": Int64(1)}
SEGMENT_GOLDEN = {"_id": {"i": Int64(7), "s": Int64(2)}, "e": [EXTENT_GOLDEN], "v": Int64(4)}
INDEX_GOLDEN = {"_id": HASH, "v": 3, "k": ObjectId(KEY), "z": 5, "w": 4, "r": Int64(2)}
CHUNK_GOLDEN = {"_id": ObjectId(KEY), "h": HASH, "c": "none", "d": b"12345"}
FORMAT_GOLDEN = {
    "_id": "format", "version": 1, "uuid": "u", "chunk_size": 1048576, "hash": "blake3", "codec": "zstd",
    "replication": "000", "created": Int64(5),
}  # fmt: skip
NODE_GOLDEN = {
    "_id": 1, "uri": "embedded", "database": "chunks", "state": "active", "dc": "", "rack": "", "added": Int64(3),
    "capacity": Int64(10),
}  # fmt: skip
VOLUME_GOLDEN = {
    "_id": 2, "nodes": [1], "state": "writable", "code": "000", "chunks": Int64(1), "bytes": Int64(2),
    "garbage": Int64(3), "created": Int64(4),
}  # fmt: skip
WORKED_GOLDEN = {
    **VOLUME_GOLDEN, "nodes": [1, 2], "state": "sealed", "code": "001", "own": True, "sealed_at": Int64(7),
    "work": {"by": "host:1", "what": "move", "until": datetime(2026, 1, 2, 3, 4, 5)},
}  # fmt: skip


def device() -> SimpleNamespace:
    return SimpleNamespace(**{**vars(link_of(b"")), "mode": 0o020600, "size": 0, "rdev": 259})


def folder() -> SimpleNamespace:
    """Whose times a program has set."""
    return SimpleNamespace(**{**vars(link_of(b"")), "mode": 0o040755, "size": 0, "mset": 7, "aset": 8})


def link_of(target: bytes) -> SimpleNamespace:
    return SimpleNamespace(
        **{**vars(NODE), "name": b"\xff", "mode": 0o120777, "xattrs": {}, "target": target, "used": 0}
    )


@pytest.mark.parametrize(
    ("made", "golden"),
    [
        (d.inode_document(NODE, [Extent(0, 5, REF, 0), Extent(5, 4, b"tail", 0)], 6), INODE_GOLDEN),
        (d.inode_document(link_of(b"elsewhere"), [], 1), SYMLINK_GOLDEN),
        (d.inode_document(folder(), [], 1), FOLDER_GOLDEN),
        (d.inode_document(device(), [], 1), DEVICE_GOLDEN),
        (d.link_document(d.LinkRecord(-8, 1, b"also", 7, 1)), LINK_GOLDEN),
        (d.segment_document(7, 2, [Extent(0, 5, REF, 0)], 4), SEGMENT_GOLDEN),
        (d.index_document(REF, 4, 2), INDEX_GOLDEN),
        (d.chunk_document(KEY, HASH, "none", b"12345"), CHUNK_GOLDEN),
        (r.FormatRecord(uuid="u", chunk_size=1048576, codec="zstd", created=5).document(), FORMAT_GOLDEN),
        (r.NodeRecord(id=1, uri="embedded", database="chunks", added=3, capacity=10).document(), NODE_GOLDEN),
        (r.VolumeRecord(id=2, nodes=(1,), chunks=1, bytes=2, garbage=3, created=4).document(), VOLUME_GOLDEN),
        (
            r.VolumeRecord(
                id=2, nodes=(1, 2), state="sealed", code="001", own=True, chunks=1, bytes=2, garbage=3, created=4,
                sealed_at=7, work=r.Work("host:1", "move", datetime(2026, 1, 2, 3, 4, 5)),
            ).document(),
            WORKED_GOLDEN,
        ),
    ],
    ids=[
        "inode", "symlink", "folder", "device", "link", "segment", "index", "chunk", "format", "node", "volume",
        "worked",
    ],
)  # fmt: skip
def test_stored_documents_are_frozen(made: d.Document, golden: d.Document) -> None:
    assert stored(made) == golden, FROZEN
    for field, value in golden.items():
        assert type(stored(made)[field]) is type(value), f"{field}: {FROZEN}"


def test_names_of_collections_are_frozen() -> None:
    assert d.volume_collection("0f8fad5b-d9cb-469f-a165-70867728950e", 12) == "vol_0f8fad5b_12"
    assert d.METADATA_COLLECTIONS == (
        "inodes", "extents", "chunks", "volumes", "nodes", "sessions", "orphans", "format", "counters", "work",
    )  # fmt: skip
    assert d.NODE_MARKER == "flakefs_node"
    assert FORMAT_VERSION == 1


BROKEN = [
    (d.read_inode, INODE_GOLDEN),
    (d.read_link, LINK_GOLDEN),
    (d.read_segment, SEGMENT_GOLDEN),
    (d.read_index, INDEX_GOLDEN),
    (d.read_chunk, CHUNK_GOLDEN),
    (lambda document: r.read_format(document, "here"), FORMAT_GOLDEN),
    (r.read_node, NODE_GOLDEN),
    (r.read_volume, WORKED_GOLDEN),
]
OPTIONAL = {"xattrs", "target", "e", "used", "rdev", "capacity", "own", "sealed_at", "work"}


@pytest.mark.parametrize(("reader", "golden"), BROKEN)
def test_a_missing_field_is_damage(reader: Callable[[d.Document], object], golden: d.Document) -> None:
    """D4"""
    for field in set(golden) - OPTIONAL - {"_id"}:
        with pytest.raises(Damaged, match="cannot be read"):
            reader({name: value for name, value in golden.items() if name != field})


@pytest.mark.parametrize(("reader", "golden"), BROKEN)
@given(data=st.data())
def test_a_field_of_any_type_decodes_or_is_damage(
    reader: Callable[[d.Document], object], golden: d.Document, data: st.DataObject
) -> None:
    """D4"""
    wrong = st.sampled_from([None, 3, -1, 2.5, "x", b"x", [], [1], {}, {"i": "x"}, [{"o": 1}], ObjectId(KEY), 2**62])
    field = data.draw(st.sampled_from(sorted(golden)))
    try:
        reader({**golden, field: data.draw(wrong)})
    except (Damaged, FormatUnsupported):
        return


def test_binary_subclasses_decode_to_plain_bytes() -> None:
    """D1: documents built here and documents from the server decode alike."""
    node = d.read_inode({**SYMLINK_GOLDEN, "n": Binary(b"\xff"), "target": Binary(b"elsewhere")})
    assert type(node.name) is bytes
    assert node == d.read_inode(SYMLINK_GOLDEN)

"""Making, finding, listing, linking and removing, against what is committed."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from flakefs.errors import (
    ConfigError,
    Exists,
    InvalidArgument,
    IsDirectory,
    NameTooLong,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    ReadOnly,
    Stale,
    TooManyLinks,
)
from flakefs.namespace import UNKNOWN, Namespace, NamespaceOptions, options
from flakefs.values import SEGMENT_BYTES, Extent
from tests.namespace.conftest import World
from tests.namespace.listings import child_of, map_of, names


async def test_everything_comes_back(world: World) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"folder")
        file = await world.file(ns, folder, b"file \xff", b"content")
        file.xattrs[b"user.a"] = b"\0value"
        ns.changed(file)
        await ns.make(folder, b"link", mode=stat.S_IFLNK | 0o777, uid=3, gid=4, target=b"to/there", now=5)
        await ns.make(ns.root, b"null", mode=stat.S_IFCHR | 0o666, uid=0, gid=0, rdev=259, now=6)
        assert ns.peek_child(folder, b"file \xff") is file
        assert ns.peek_child(folder, b"other") is None
    world.audit()
    async with world.open() as ns:
        assert ns.peek_child(ns.root, b"folder") is UNKNOWN
        folder = await child_of(ns, ns.root, b"folder")
        assert (folder.mode, folder.uid, folder.gid, folder.nlink, folder.size) == (0o40755, 1, 2, 2, 0)
        assert ns.root.nlink == 3
        file = await child_of(ns, folder, b"file \xff")
        assert (file.size, file.used, file.xattrs) == (7, 7, {b"user.a": b"\0value"})
        assert world.read_extents(map_of(file).segment(0)) == [(0, b"content")]
        link = await child_of(ns, folder, b"link")
        assert (link.target, link.size, link.atime, link.mtime, link.ctime, link.btime) == (b"to/there", 8, 5, 5, 5, 5)
        assert (await child_of(ns, ns.root, b"null")).rdev == 259
        assert await ns.child(folder, b"none") is None
        assert ns.peek_child(folder, b"none") is None
        assert await names(ns, folder) == [b"file \xff", b"link"]
        assert await ns.get(file.ino) is file
        assert await ns.inode_count() == 5
        with pytest.raises(Stale):
            await ns.get(10**9)


async def test_what_cannot_be_made(world: World) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        file = await world.file(ns, ns.root, b"f")
        make: dict[str, Any] = {"mode": 0o100644, "uid": 0, "gid": 0, "now": 1}
        for parent, name, error in (
            (ns.root, b"f", Exists),
            (file, b"x", NotDirectory),
            (ns.root, b"x" * 256, NameTooLong),
            (ns.root, b"", InvalidArgument),
            (ns.root, b"..", InvalidArgument),
            (ns.root, b"a/b", InvalidArgument),
        ):
            with pytest.raises(error):
                await ns.make(parent, name, **make)
        await ns.rmdir(ns.root, b"d", now=2)
        with pytest.raises(NotFound):
            await ns.make(folder, b"x", **make)
        with pytest.raises(NotDirectory):
            ns.peek_child(file, b"x")
        with pytest.raises(NotDirectory):
            await ns.listing(file, 0, 10)
        folder = await world.folder(ns, ns.root, b"d")
        with pytest.raises(NotPermitted):
            await ns.link(folder, ns.root, b"e", now=3)
        folder.nlink = file.nlink = options.LINK_MAX
        with pytest.raises(TooManyLinks):
            await ns.link(file, ns.root, b"g", now=3)
        with pytest.raises(TooManyLinks):
            await world.folder(ns, folder, b"e")
        folder.nlink, file.nlink = 2, 1
    world.audit()


async def test_removing(world: World) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        await world.file(ns, folder, b"f")
        await ns.commit()
    async with world.open() as ns:
        folder = await child_of(ns, ns.root, b"d")
        with pytest.raises(NotFound):
            await ns.unlink(ns.root, b"x", now=3)
        with pytest.raises(NotFound):
            await ns.rmdir(ns.root, b"x", now=3)
        with pytest.raises(IsDirectory):
            await ns.unlink(ns.root, b"d", now=3)
        with pytest.raises(NotDirectory):
            await ns.rmdir(folder, b"f", now=3)
        with pytest.raises(NotEmpty):
            await ns.rmdir(ns.root, b"d", now=3)
        gone = await ns.unlink(folder, b"f", now=4)
        assert (gone.nlink, gone.ctime, folder.mtime, folder.ctime) == (0, 4, 4, 4)
        assert ns.peek_child(folder, b"f") is None
        await ns.rmdir(ns.root, b"d", now=5)
        assert (ns.root.nlink, ns.root.mtime) == (2, 5)
        assert await names(ns, ns.root) == []
        await ns.commit()
        with pytest.raises(Stale):
            await ns.get(gone.ino)
    world.audit()
    assert world.tree() == {}


async def test_a_file_that_comes_and_goes_within_a_group_costs_nothing(world: World) -> None:
    """G3."""
    async with world.open() as ns:
        await ns.commit()
        before = ns.statistics().documents
        for number in range(20):
            await world.file(ns, ns.root, b"%d" % number, b"x%d" % number)
            await ns.rename(ns.root, b"%d" % number, ns.root, b"y%d" % number, now=1)
        for number in range(20):
            await ns.unlink(ns.root, b"y%d" % number, now=2)
        await ns.commit()
        assert ns.statistics().documents - before == 2  # the session and the root folder
        assert world.content.calls == 0
    world.audit()


async def test_readers_see_what_is_committed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f", b"old")
        await ns.commit()
        writer_content = world.content
        async with world.open(writable=False) as reader:
            world.content = writer_content
            assert reader.read_only
            seen = await child_of(reader, reader.root, b"f")
            assert seen.size == 3
            with pytest.raises(ReadOnly):
                await reader.unlink(reader.root, b"f", now=1)
            with pytest.raises(ReadOnly):
                reader.changed(seen)
            await world.write(ns, file, 3, b" and new")
            await world.file(ns, ns.root, b"g")
            await ns.unlink(ns.root, b"f", now=1)
            await ns.link(file, ns.root, b"h", now=1) if file.nlink else None
            await ns.commit()
            assert reader.peek(seen.ino) is seen, "read a moment ago"
            monkeypatch.setattr("flakefs.namespace.cache.monotonic", lambda: 1e12)
            assert reader.peek(seen.ino) is None
            with pytest.raises(Stale):
                await reader.get(seen.ino)
            assert await names(reader_at(reader), reader.root) == [b"g"]
            await reader.commit()
    world.audit()


def reader_at(reader: Namespace) -> Namespace:
    """names() looks inodes up with peek(), which has to see them as fresh."""
    reader.peek = reader._cache.known.get  # type: ignore[assignment]
    return reader


async def test_extents_of_a_fragmented_file_survive_a_change_of_attributes(world: World) -> None:
    """An inode with many extents is updated field by field."""
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f")
        for number in range(20):
            await world.write(ns, file, 10 * number, b"%d" % number)
        file.xattrs[b"user.x"] = b"1"
        await ns.commit()
        file.mode = 0o100600
        del file.xattrs[b"user.x"]
        ns.changed(file)
        await ns.commit()
        await world.cut_hole(ns, file, 0, 5)
    world.audit()
    record = world.tree()[b"/f"]
    assert (record.mode, record.xattrs, len(record.extents)) == (0o100600, {}, 19)
    assert record.extents[0] == Extent(10, 1, record.extents[0].source, 0)
    assert record.size < SEGMENT_BYTES


def test_options_are_checked() -> None:
    for wrong in (
        {"commit_interval_seconds": 0},
        {"error_timeout_seconds": -1},
        {"cached_inodes": 0},
        {"dirty_documents_max": 5},
    ):
        with pytest.raises(ConfigError):
            NamespaceOptions(**wrong)

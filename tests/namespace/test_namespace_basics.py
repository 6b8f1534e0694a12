"""Making, finding, listing, linking and removing, against what is committed."""

from __future__ import annotations

import stat

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
from flakefs.namespace import UNKNOWN, Namespace, NamespaceOptions, entries, folders, options
from flakefs.values import SEGMENT_BYTES, Extent


async def names(ns: Namespace, parent, limit: int = 3) -> list[bytes]:
    """All names, page by page; checks that cookies ascend (E3)."""
    result, after = [], 0
    while page := await ns.listing(parent, after, limit):
        assert len(page) <= limit
        for cookie, name, inode in page:
            assert cookie > after
            after = cookie
            assert ns.peek(inode.ino) is inode
            result.append(name)
    return result


async def test_everything_comes_back(world) -> None:
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
        folder = await ns.child(ns.root, b"folder")
        assert (folder.mode, folder.uid, folder.gid, folder.nlink, folder.size) == (0o40755, 1, 2, 2, 0)
        assert ns.root.nlink == 3
        file = await ns.child(folder, b"file \xff")
        assert (file.size, file.used, file.xattrs) == (7, 7, {b"user.a": b"\0value"})
        assert world.read_extents(file.map.segment(0)) == [(0, b"content")]
        link = await ns.child(folder, b"link")
        assert (link.target, link.size, link.atime, link.mtime, link.ctime, link.btime) == (b"to/there", 8, 5, 5, 5, 5)
        assert (await ns.child(ns.root, b"null")).rdev == 259
        assert await ns.child(folder, b"none") is None
        assert ns.peek_child(folder, b"none") is None
        assert await names(ns, folder) == [b"file \xff", b"link"]
        assert await ns.get(file.ino) is file
        assert await ns.inode_count() == 5
        with pytest.raises(Stale):
            await ns.get(10**9)


async def test_what_cannot_be_made(world) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        file = await world.file(ns, ns.root, b"f")
        make = {"mode": 0o100644, "uid": 0, "gid": 0, "now": 1}
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


async def test_removing(world) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        await world.file(ns, folder, b"f")
        await ns.commit()
    async with world.open() as ns:
        folder = await ns.child(ns.root, b"d")
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


async def test_a_file_that_comes_and_goes_within_a_group_costs_nothing(world) -> None:
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


@pytest.mark.parametrize("stored", [False, True])
async def test_hard_links_and_promotion(world, stored: bool) -> None:
    async with world.open() as ns:
        one, two = await world.folder(ns, ns.root, b"1"), await world.folder(ns, ns.root, b"2")
        file = await world.file(ns, one, b"a", b"data")
        await ns.link(file, two, b"b", now=7)
        await ns.link(file, one, b"c", now=8)
        assert (file.nlink, file.ctime) == (3, 8)
        with pytest.raises(Exists):
            await ns.link(file, two, b"b", now=9)
    world.audit()
    async with world.open(NamespaceOptions(cached_inodes=1)) as ns:
        one, two = await ns.child(ns.root, b"1"), await ns.child(ns.root, b"2")
        file = await ns.child(two, b"b")
        assert await ns.child(one, b"a") is file
        assert await ns.child(one, b"c") is file
        await ns.unlink(one, b"a", now=10)  # the name in the inode's own document
        if stored:
            await ns.commit()
            world.audit()
        assert (file.nlink, await names(ns, one), await names(ns, two)) == (2, [b"c"], [b"b"])
        await ns.unlink(two, b"b", now=11)
        assert (await ns.child(one, b"c")) is file
        await ns.commit()
        world.audit()
        await ns.unlink(one, b"c", now=12)
        assert file.nlink == 0
    world.audit()
    assert set(world.tree()) == {b"/1", b"/2"}


async def test_links_that_are_not_stored_yet_are_promoted(world) -> None:
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"a", b"data")
        await ns.link(file, ns.root, b"b", now=1)
        await ns.unlink(ns.root, b"a", now=2)
        await ns.link(file, ns.root, b"a", now=3)
        await ns.commit()
        world.audit()
        await ns.rename(ns.root, b"a", ns.root, b"c", now=4)
        await ns.unlink(ns.root, b"b", now=5)
        assert await names(ns, ns.root) == [b"c"]
        await ns.commit()
        world.audit()
        await ns.unlink(ns.root, b"c", now=5)
    world.audit()


async def test_a_promoted_name_is_remembered_until_it_is_stored(world) -> None:
    """H2: the folder of the name that was promoted stays in memory, though nobody changed it."""
    async with world.open() as ns:
        one, two = await world.folder(ns, ns.root, b"1"), await world.folder(ns, ns.root, b"2")
        await ns.link(await world.file(ns, one, b"a"), two, b"b", now=1)
        for number in range(10):
            await world.file(ns, ns.root, b"other %d" % number)
    del one, two
    async with world.open(NamespaceOptions(cached_inodes=1, commit_interval_seconds=3600)) as ns:
        await ns.unlink(await ns.child(ns.root, b"1"), b"a", now=2)
        for number in range(10):
            await ns.child(ns.root, b"other %d" % number)
        two = await ns.child(ns.root, b"2")
        await ns.rename(two, b"b", two, b"c", now=3)
    world.audit()
    assert len(world.tree()) == 13


@pytest.mark.parametrize("how", ["get", "child", "listing", "segment"])
async def test_an_answer_older_than_a_commit_is_not_believed(world, how: str) -> None:
    """C3: between a query's answer and its use, the inode is changed, stored and forgotten."""
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        file = await world.file(ns, folder, b"f", b"old")
        await world.write(ns, file, SEGMENT_BYTES, b"old")
        await world.file(ns, folder, b"g")
        ino = file.ino
        del file, folder
    async with world.open(NamespaceOptions(cached_inodes=1, commit_interval_seconds=3600)) as ns:
        real = ns._cache.read

        async def slow(query):
            ns._cache.read = real
            answer = await real(query)
            file = await ns.get(ino)
            file.mode = 0o100600
            await world.write(ns, file, SEGMENT_BYTES, b"new")
            await ns.commit()
            file.map.trim(force=True)
            del file
            await ns.child(ns.root, b"d")
            return answer

        if how == "segment":
            file = await ns.get(ino)
            ns._cache.read = slow
            await ns.load(file, SEGMENT_BYTES, 2 * SEGMENT_BYTES)
            assert world.read_extents(file.map.segment(1)) == [(SEGMENT_BYTES, b"new")]
            return
        folder = await ns.child(ns.root, b"d")
        ns._cache.read = slow
        if how == "get":
            file = await ns.get(ino)
        elif how == "child":
            file = await ns.child(folder, b"f")
        else:
            file = next(inode for _, name, inode in await ns.listing(folder, 0, 10) if name == b"f")
        assert ns._cache.read == real
        assert file.mode == 0o100600
        file.mode = 0o100640
        ns.changed(file)
        await ns.commit()  # a version that was outdated would fail here
    world.audit()


async def test_a_promoted_name_is_not_missed_by_a_listing(world) -> None:
    """E3: rm -r lists, removes what it saw, and goes on listing."""
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        for number in range(6):
            await world.file(ns, folder, b"f%d" % number)
        first = await ns.child(folder, b"f0")
        await ns.link(first, folder, b"further", now=1)
    async with world.open() as ns:
        folder = await ns.child(ns.root, b"d")
        after, removed = 0, []
        while page := await ns.listing(folder, after, 2):
            for cookie, name, _ in page:
                after = cookie
                removed.append(name)
                await ns.unlink(folder, name, now=2)
        assert sorted(removed) == [b"f0", b"f1", b"f2", b"f3", b"f4", b"f5", b"further"]
        await ns.rmdir(ns.root, b"d", now=3)
    world.audit()


@pytest.fixture
def small_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of more than 5 entries counts as large."""
    monkeypatch.setattr(entries, "LISTING_MAX", 5)
    monkeypatch.setattr(folders, "FEW", 3)
    monkeypatch.setattr(entries, "LOOKUP_LOADS", 2)


@pytest.mark.usefixtures("small_folders")
async def test_a_large_folder_is_read_page_by_page(world) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        for number in range(20):
            file = await world.file(ns, folder, b"f%02d" % number)
            if number % 5 == 0:
                await ns.link(file, folder, b"l%02d" % number, now=1)
    async with world.open(NamespaceOptions(cached_inodes=2)) as ns:
        folder = await ns.child(ns.root, b"d")
        everything = {b"f%02d" % n for n in range(20)} | {b"l%02d" % n for n in range(0, 20, 5)}
        listed = await names(ns, folder, 4)
        assert sorted(listed) == sorted(everything)
        assert folder.large
        assert not folder.complete
        assert (await ns.child(folder, b"l05")) is (await ns.child(folder, b"f05"))
        assert await ns.child(folder, b"nothing") is None
        with pytest.raises(NotEmpty):
            await ns.rmdir(ns.root, b"d", now=1)
        for name in (b"f01", b"f02", b"f03", b"l10", b"f05", b"f19"):
            await ns.unlink(folder, name, now=2)
        await ns.rename(folder, b"f04", folder, b"g04", now=3)
        await world.file(ns, folder, b"new")
        now = (everything - {b"f01", b"f02", b"f03", b"l10", b"f05", b"f19", b"f04"}) | {b"g04", b"new"}
        assert sorted(await names(ns, folder, 2)) == sorted(now)
        await ns.commit()
        assert sorted(await names(ns, folder, 2)) == sorted(now)
        for name in sorted(now):
            await ns.unlink(folder, name, now=4)
        assert await names(ns, folder, 2) == []
        await ns.rmdir(ns.root, b"d", now=5)
    world.audit()
    assert world.tree() == {}


async def test_a_folder_with_much_literal_content_is_not_kept_whole(world, monkeypatch) -> None:
    monkeypatch.setattr(folders, "FEW", 3)
    monkeypatch.setattr(folders, "LISTING_BYTES", 5_000)
    async with world.open() as ns:
        for name, length in ((b"few", 500), (b"much", 1_500)):
            folder = await world.folder(ns, ns.root, name)
            for number in range(5):
                file = await world.file(ns, folder, b"f%d" % number)
                file.map.replace(0, [Extent(0, length, bytes(length), 0)])
                file.size = length
                ns.changed(file)
    async with world.open() as ns:
        few, much = await ns.child(ns.root, b"few"), await ns.child(ns.root, b"much")
        assert len(await names(ns, few, 10)) == len(await names(ns, much, 10)) == 5
        assert few.complete
        assert much.large
        assert not much.complete
    world.audit()


@pytest.mark.usefixtures("small_folders")
async def test_a_large_folder_whose_removals_are_stored_is_empty(world) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        for number in range(8):
            await world.file(ns, folder, b"%d" % number)
    async with world.open() as ns:
        folder = await ns.child(ns.root, b"d")
        for name in await names(ns, folder):
            await ns.unlink(folder, name, now=1)
        await ns.commit()
        await ns.rmdir(ns.root, b"d", now=2)
    world.audit()


async def test_a_cold_walk_costs_few_queries(world) -> None:
    async with world.open() as ns:
        for one in range(6):
            first = await world.folder(ns, ns.root, b"%d" % one)
            for two in range(6):
                second = await world.folder(ns, first, b"%d" % two)
                await world.file(ns, second, b"f")
    async with world.open() as ns:
        reads = 0
        real = ns._cache.read

        async def counted(query, **named):
            nonlocal reads
            reads += 1
            return await real(query, **named)

        ns._cache.read = counted
        seen = 0
        stack = [ns.root]
        while stack:
            folder = stack.pop()
            for _, _, inode in await ns.listing(folder, 0, 1000):
                seen += 1
                if inode.entries is not None:
                    stack.append(inode)
        assert seen == 6 + 36 + 36
        assert reads < 15, "each of the 43 folders was read on its own"


async def test_readers_see_what_is_committed(world, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"f", b"old")
        await ns.commit()
        writer_content = world.content
        async with world.open(writable=False) as reader:
            world.content = writer_content
            assert reader.read_only
            seen = await reader.child(reader.root, b"f")
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
    reader.peek = reader._cache.known.get  # type: ignore[method-assign,assignment]
    return reader


async def test_extents_of_a_fragmented_file_survive_a_change_of_attributes(world) -> None:
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

"""Access times that only reading changed: stored late, and never lost otherwise (C4)."""

from __future__ import annotations

import pytest

from flakefs.format.documents import INODES
from flakefs.namespace import Inode, cache
from tests.namespace.conftest import World


async def test_access_times_wait_for_another_change_or_the_end(world: World) -> None:
    def stored(inode: Inode) -> int:
        return int(world.stored(INODES, inode.ino)["atime"])

    async with world.open() as ns:
        one, two = [await world.file(ns, ns.root, name) for name in (b"one", b"two")]
        await ns.commit()
        commits = ns.statistics().commits
        ns.accessed(one, 7_001)
        ns.accessed(two, 7_002)
        await ns.commit()
        assert ns.statistics().commits == commits, "an access time alone is no reason"
        one.mode |= 0o111
        ns.changed(one)
        await ns.commit()
        assert stored(one) == 7_001
        assert stored(two) < 7_002
        assert ns.peek(two.ino) is two
        assert two.atime == 7_002
        inos = one.ino, two.ino
    documents = {document["_id"]: document["atime"] for document in world.db[INODES].find({"_id": {"$in": inos}})}
    assert documents == {inos[0]: 7_001, inos[1]: 7_002}


async def test_access_times_of_many_and_old_ones_are_stored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LAZY_MAX", 3)
    async with world.open() as ns:
        files = [await world.file(ns, ns.root, b"%d" % number) for number in range(4)]
        await ns.commit()
        for file in files:
            ns.accessed(file, 7_000)
        assert set(ns._cache.dirty) == {file.ino for file in files[:3]}
        assert set(ns._cache.lazy) == {files[3].ino}
        ns._cache.mark_lazy(older=1_000)
        assert set(ns._cache.lazy) == {files[3].ino}
        ns._cache.mark_lazy()
        assert set(ns._cache.dirty) == {file.ino for file in files}


async def test_what_is_removed_has_no_access_time(world: World) -> None:
    async with world.open() as ns:
        file = await world.file(ns, ns.root, b"gone")
        await ns.commit()
        ns.accessed(file, 7_000)
        await ns.unlink(ns.root, b"gone", now=world.now())
        assert not ns._cache.lazy
        await ns.commit()
        assert world.db[INODES].count_documents({"_id": file.ino}) == 0

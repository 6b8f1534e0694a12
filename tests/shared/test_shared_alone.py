"""A session that is alone knows everything: neither a gap in the news nor late news takes that from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio

from flakefs.app import overview
from flakefs.app.overview import SessionStatus
from flakefs.app.stack import metadata_door
from flakefs.errors import Unavailable
from flakefs.format.documents import SESSIONS
from flakefs.namespace import NamespaceOptions
from flakefs.testing.stack import Fresh, NewFresh
from flakefs.values import ROOT_INO
from tests.shared.conftest import eventually, put, shared, until


async def test_a_gap_forgets_nothing_that_is_not_committed(fresh: Fresh) -> None:
    async with fresh.open() as one:
        fs = one.fs
        old = await put(fs, b"old", b"x")
        await put(fs, b"moved", b"x")
        await fs.ns.commit()
        assert await fs.lookup(ROOT_INO, b"nobody") is None  # all of the folder is known
        await fs.unlink(ROOT_INO, b"old")
        await fs.rename(ROOT_INO, b"moved", ROOT_INO, b"new")
        fs.ns.coherence.drop_all()
        assert await fs.lookup(ROOT_INO, b"old") is None
        assert await fs.lookup(ROOT_INO, b"moved") is None
        assert await fs.lookup(ROOT_INO, b"new") is not None
        assert await put(fs, b"old", b"y") != old


@pytest.mark.parametrize("gap", [False, True])
async def test_late_news_of_a_session_that_has_left(fresh: Fresh, gap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fresh.open() as one:
        late: list[Mapping[str, Any]] = []
        async with fresh.open() as other:
            await shared(one)
            await shared(other)
            take = one.fs.ns.coherence.take
            monkeypatch.setattr(one.fs.ns.coherence, "take", late.append)
            await put(other.fs, b"a", b"x")
            await other.fs.unlink(ROOT_INO, b"a")
            await until(lambda: sum("news" in document for document in late) >= 2)
        await until(lambda: not one.fs.ns.shared)
        ino = await put(one.fs, b"a", b"mine")
        await put(one.fs, b"b", b"mine")
        await one.fs.unlink(ROOT_INO, b"b")
        for document in late[1:] if gap else late:
            take(document)
        found = await one.fs.lookup(ROOT_INO, b"a")
        assert found is not None
        assert found.ino == ino
        assert await one.fs.lookup(ROOT_INO, b"b") is None


async def test_a_gap_in_shared_mode_doubts_what_waits_for_its_commit(fresh: Fresh) -> None:
    async with fresh.open() as one, fresh.open() as other:
        await shared(one)
        await shared(other)
        await put(one.fs, b"a", b"x")
        folder = await one.fs.inode(ROOT_INO)
        cache, coherence, place = one.fs.ns.coherence._cache, one.fs.ns.coherence, (ROOT_INO, b"a")
        assert folder.entries
        cache.changing[place] = 1
        coherence.drop_all()
        assert b"a" in folder.entries  # it meets its guard
        del cache.changing[place]
        coherence.changed((place,))
        assert b"a" not in folder.entries


async def test_who_leaves_asks_again_when_the_server_was_away_for_a_moment(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind, and the fsck that follows finds nothing (O2 of namespace.orphans)."""
    failed = 0
    async with fresh.open() as one, fresh.open() as other:
        await shared(one)
        await shared(other)
        cache = one.fs.ns._cache
        read = cache.read

        async def away(query: Any, *, wait: bool = True) -> Any:
            nonlocal failed
            if cache.ending and failed < 2:
                failed += 1
                raise Unavailable("the server is away")
            return await read(query, wait=wait)

        monkeypatch.setattr(one.fs.ns.coherence, "take", lambda document: None)  # it hears nothing of the file
        monkeypatch.setattr(cache, "read", away)
        await put(other.fs, b"a", b"x")
        await other.fs.unlink(ROOT_INO, b"a")
    assert failed == 2


async def test_status_shows_no_lag_of_who_is_alone_again(new_fresh: NewFresh) -> None:
    fresh = new_fresh(namespace=NamespaceOptions(lease_seconds=2.0))
    documents: list[dict[str, Any]] = []

    def seen() -> SessionStatus:
        with metadata_door(fresh.config, purpose="test") as (door, _):
            documents.extend(door.client[fresh.config.database][SESSIONS].find({"_id": one.session.epoch}))
            return next(s for s in overview.sessions(door, fresh.config.database) if s.epoch == one.session.epoch)

    async def lag_is_shown() -> bool:
        return (await trio.to_thread.run_sync(seen)).lag_seconds is not None

    async def alone_and_told_of_an_old_one() -> bool:
        status = await trio.to_thread.run_sync(seen)
        return not status.shared and documents[-1]["lag"] is not None

    async with fresh.open() as one:
        async with fresh.open() as other:
            await shared(one)
            await put(other.fs, b"a", b"x")
            await eventually(lag_is_shown)
        await until(lambda: not one.fs.ns.shared)
        await eventually(alone_and_told_of_an_old_one)
        assert not await lag_is_shown()

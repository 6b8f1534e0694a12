"""The stream of what other sessions write (S1 to S4 of mongo.stream)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from pymongo import MongoClient

from flakefs.mongo import stream as module
from flakefs.mongo.clients import connect
from flakefs.mongo.stream import Stream, StreamEvent, watch_sessions
from flakefs.testing.servers import Servers

PATIENCE = 60.0
ME = 7

Client = MongoClient[dict[str, Any]]


class Watched:
    """A stream, and a client that plays the other sessions."""

    def __init__(self, stream: Stream, client: Client, database: str) -> None:
        self.stream = stream
        self.sessions = client[database]["sessions"]
        self._events = stream.events()

    async def next(self, *kinds: str) -> StreamEvent:
        """The next event; given *kinds*, the next of them."""
        with trio.fail_after(PATIENCE):
            while True:
                event = await anext(self._events)
                if not kinds or event.kind in kinds:
                    return event

    async def change(self) -> dict[str, Any]:
        event = await self.next()
        assert event.kind == "change", event
        assert event.document is not None
        return dict(event.document)


@asynccontextmanager
async def watching(servers: Servers, database: str, **options: Any) -> AsyncIterator[Watched]:
    uri = servers.metadata_uri

    def factory() -> Client:
        return connect(uri, purpose="test-stream", deadline_seconds=5.0)

    with servers.metadata.client() as client:
        client[database]["sessions"].insert_one({"_id": ME, "beat": 0})
        async with watch_sessions(factory, database, ME, **options) as stream:
            watched = Watched(stream, client, database)
            assert await watched.next() == module.HEALTHY
            yield watched


async def test_s1_changes_arrive_in_order_and_only_what_others_changed(servers: Servers, database: str) -> None:
    async with watching(servers, database) as watched:
        sessions = watched.sessions
        sessions.insert_one({"_id": 8, "state": "alive", "sees": 8})
        sessions.update_one({"_id": ME}, {"$set": {"beat": 1}})
        for number in range(50):
            sessions.update_one({"_id": 8}, {"$set": {"commits": number, "news": [[number, "a"]]}})
        sessions.update_one({"_id": 8}, [{"$set": {"beat": "$$NOW"}}])
        sessions.update_one({"_id": 8}, {"$unset": {"news": ""}})
        sessions.replace_one({"_id": 8}, {"state": "dead"})
        sessions.delete_one({"_id": 8})
        assert await watched.change() == {"_id": 8, "state": "alive", "sees": 8}
        for number in range(50):
            assert await watched.change() == {"_id": 8, "commits": number, "news": [[number, "a"]]}
        assert set(await watched.change()) == {"_id", "beat"}
        assert await watched.change() == {"_id": 8, "news": None}
        assert await watched.change() == {"_id": 8, "state": "dead"}
        assert await watched.change() == {"_id": 8, "state": "dead"}


async def test_the_changes_of_one_transaction_arrive_when_it_is_committed(servers: Servers, database: str) -> None:
    async with watching(servers, database) as watched:
        sessions = watched.sessions
        sessions.insert_one({"_id": 8})
        with sessions.database.client.start_session() as session, session.start_transaction():
            sessions.update_one({"_id": 8}, {"$set": {"commits": 1, "news": [1]}}, session=session)
            sessions.update_one({"_id": ME}, {"$inc": {"x": 1}}, session=session)
            sessions.insert_one({"_id": 9}, session=session)
        assert await watched.change() == {"_id": 8}
        assert await watched.change() == {"_id": 8, "commits": 1, "news": [1]}
        assert await watched.change() == {"_id": 9}


async def test_events_know_how_long_they_took(servers: Servers, database: str) -> None:
    async with watching(servers, database) as watched:
        watched.sessions.insert_one({"_id": 8})
        event = await watched.next()
        assert event.lag_seconds is not None
        assert 0 <= event.lag_seconds < PATIENCE
        assert watched.stream.lag_seconds == event.lag_seconds


async def test_s2_a_server_that_restarts_is_broken_then_healthy_and_nothing_is_lost(
    private_servers: Servers,
) -> None:
    async with watching(private_servers, "fs") as watched:
        watched.sessions.insert_one({"_id": 8, "commits": 0})
        assert await watched.change() == {"_id": 8, "commits": 0}
        server = private_servers.metadata
        await trio.to_thread.run_sync(server.kill)
        assert (await watched.next()).kind == "broken"
        assert not watched.stream.fresh
        assert watched.stream.problem
        await trio.to_thread.run_sync(server.start)
        for number in (1, 2, 3):
            watched.sessions.update_one({"_id": 8}, {"$set": {"commits": number}})
        kinds: list[str] = []
        numbers: list[int] = []
        while len(numbers) < 3 or "healthy" not in kinds:  # the cursor may be there again before the last change
            event = await watched.next()
            kinds.append(event.kind)
            if event.document is not None:
                numbers.append(event.document["commits"])
        assert numbers == [1, 2, 3]
        assert set(kinds) == {"change", "healthy"}
        assert watched.stream.fresh


async def test_s2_a_server_that_only_hangs_is_broken_too(private_servers: Servers) -> None:
    async with watching(private_servers, "fs") as watched:
        server = private_servers.metadata
        server.pause()
        try:
            assert (await watched.next()).kind == "broken"
            assert not watched.stream.fresh
        finally:
            server.resume()
        assert (await watched.next()).kind == "healthy"
        watched.sessions.insert_one({"_id": 8})
        assert await watched.change() == {"_id": 8}


async def test_s1_a_dropped_collection_is_a_gap(servers: Servers, database: str) -> None:
    async with watching(servers, database) as watched:
        watched.sessions.drop()
        assert (await watched.next("gap", "change")).kind == "gap"
        assert (await watched.next("healthy", "change")).kind == "healthy"
        watched.sessions.insert_one({"_id": 8})
        assert await watched.change() == {"_id": 8}


class _Token:
    """In place of the resume token: one that no server understands."""

    def __init__(self) -> None:
        self.given = self.dropped = 0

    def __get__(self, stream: Stream, owner: type[Stream]) -> dict[str, str] | None:
        self.given += not self.dropped
        return None if self.dropped else {"_data": "82000000000000000029"}

    def __set__(self, stream: Stream, value: object) -> None:
        self.dropped += value is None


async def test_s1_a_token_that_is_not_known_any_more_is_a_gap(
    private_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(private_servers, "fs") as watched:
        watched.sessions.insert_one({"_id": 8})
        assert await watched.change() == {"_id": 8}
        token = _Token()
        monkeypatch.setattr(Stream, "_resume", token, raising=False)
        server = private_servers.metadata
        await trio.to_thread.run_sync(server.kill)
        assert (await watched.next()).kind == "broken"
        await trio.to_thread.run_sync(server.start)
        assert (await watched.next()).kind == "gap"
        assert (await watched.next()).kind == "healthy"
        assert token.given
        assert token.dropped == 1
        watched.sessions.insert_one({"_id": 9})
        assert await watched.change() == {"_id": 9}


async def test_s3_a_queue_that_nobody_empties_becomes_a_gap(servers: Servers, database: str) -> None:
    async with watching(servers, database, queue_max=10) as watched:
        watched.sessions.insert_many([{"_id": number} for number in range(100, 110)])
        assert await watched.change() == {"_id": 100}
        watched.sessions.insert_many([{"_id": number} for number in range(110, 211)])
        with trio.fail_after(PATIENCE):
            while 210 not in [(event.document or {}).get("_id") for event in watched.stream._queue]:
                assert len(watched.stream._queue) <= 10
                await trio.sleep(0.01)
        assert (await watched.next()).kind == "gap"
        found = [await watched.change()]
        while found[-1]["_id"] != 210:
            found.append(await watched.change())
        assert [document["_id"] for document in found] == list(range(found[0]["_id"], 211))


@pytest.mark.parametrize("how", ["answers", "hangs", "is gone"])
async def test_s4_leaving_takes_no_longer_than_stated(private_servers: Servers, how: str) -> None:
    server = private_servers.metadata
    act: dict[str, Callable[[], object]] = {"answers": lambda: None, "hangs": server.pause, "is gone": server.kill}
    client = connect(private_servers.metadata_uri, purpose="test-stream", deadline_seconds=5.0)
    try:
        with trio.fail_after(PATIENCE):
            async with watch_sessions(lambda: client, "fs", ME) as stream:
                await trio.to_thread.run_sync(act[how])
    finally:
        server.resume()
    assert stream._stopping.is_set()


async def test_s4_an_error_in_the_body_leaves_too(servers: Servers, database: str) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with watching(servers, database):
            raise LookupError("body")
    assert caught.group_contains(LookupError)


async def test_a_server_that_is_not_there_at_first(private_servers: Servers) -> None:
    uri = private_servers.metadata_uri
    await trio.to_thread.run_sync(private_servers.metadata.kill)
    async with watch_sessions(lambda: connect(uri, purpose="t", deadline_seconds=5.0), "fs", ME) as stream:
        events = stream.events()
        with trio.fail_after(PATIENCE):
            assert (await anext(events)).kind == "broken"
            await trio.to_thread.run_sync(private_servers.metadata.start)
            assert (await anext(events)).kind == "healthy"

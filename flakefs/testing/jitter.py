"""Random delays at calls of a server and at news, to provoke orders that an idle machine never shows.

Purpose
    While `jitter` is open, file systems opened in this process wait some random milliseconds before and after each call
    of their doors, and hand over what other sessions changed late. Everything is real but the moment at which it comes.

Concurrency
    Stacks have to be opened inside; they keep their delays for as long as they live.

Not here
    Histories (tests.shared).
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pytest
import trio
from pymongo import MongoClient

from flakefs.app import stack
from flakefs.format.documents import Document
from flakefs.mongo.door import Door
from flakefs.mongo.stream import QUEUE_MAX, Stream, StreamEvent, watch_sessions

T = TypeVar("T")


@contextmanager
def jitter(seed: int, *, most_seconds: float = 0.02, often: float = 0.5) -> Iterator[None]:
    """*often*: the share of calls that are delayed."""
    chance = random.Random(seed)

    async def pause() -> None:
        if chance.random() < often:
            await trio.sleep(chance.random() ** 2 * most_seconds)

    class JitterDoor(Door):
        async def run(self, call: Callable[[], T], **options: Any) -> T:
            await pause()
            try:
                return await super().run(call, **options)
            finally:
                await pause()

    @asynccontextmanager
    async def watch(
        client_factory: Callable[[], MongoClient[Document]],
        database: str,
        own_epoch: int,
        *,
        queue_max: int = QUEUE_MAX,
    ) -> AsyncIterator[Stream]:
        async with watch_sessions(client_factory, database, own_epoch, queue_max=queue_max) as stream:
            events = stream.events()

            async def late() -> AsyncIterator[StreamEvent]:
                async for event in events:
                    await pause()
                    yield event

            stream.events = late  # type: ignore[method-assign]
            yield stream

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "Door", JitterDoor)
        patch.setattr(stack, "watch_sessions", watch)
        yield

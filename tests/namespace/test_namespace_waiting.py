"""Questions to a metadata server that is away (C6, N2, PT1 to PT3; P3, P5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio

from flakefs.errors import Refused, Unavailable
from flakefs.mongo import patience
from flakefs.mongo.clients import connect
from flakefs.mongo.door import Door
from flakefs.namespace import Namespace, NamespaceOptions
from flakefs.testing.servers import Servers, TestServer
from tests.namespace.conftest import World
from tests.namespace.listings import child_of

DEADLINE = 0.5
PATIENT = NamespaceOptions(commit_interval_seconds=3600, error_timeout_seconds=60)
IMPATIENT = NamespaceOptions(commit_interval_seconds=3600, error_timeout_seconds=2)
HANG_SECONDS = 40.0
"""Only a hang takes longer."""


@pytest.fixture
def away(private_servers: Servers, world: World) -> Iterator[World]:
    """A world on a metadata server that the test may end, with a short deadline."""
    uri = private_servers.metadata_uri
    door = Door(connect(uri, purpose="test", deadline_seconds=DEADLINE), name="metadata", deadline_seconds=DEADLINE)
    yield type(world)(door, "elsewhere")
    door.close()


async def fill(world: World) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"d")
        await world.file(ns, folder, b"f", b"data")


async def looked_up(ns: Namespace) -> bytes:
    folder = await child_of(ns, ns.root, b"d")
    return (await child_of(ns, folder, b"f")).name


async def made(world: World, ns: Namespace) -> bytes:
    return (await world.file(ns, ns.root, b"new")).name


def leave(server: TestServer, how: str) -> Callable[[], None]:
    """The server goes away; what brings it back."""
    if how == "hangs":
        server.pause()
        return server.resume
    server.kill()

    def back() -> None:
        server.start()

    return back


@pytest.mark.parametrize("how", ["hangs", "refuses"])
async def test_p5_operations_wait_and_go_on(private_servers: Servers, away: World, how: str) -> None:
    """Longer than the deadline of a call, shorter than error_timeout."""
    await fill(away)
    answers: list[bytes] = []

    async def note(operation: Callable[..., Any], *arguments: Any) -> None:
        answers.append(await operation(*arguments))

    async with away.open(PATIENT) as ns:
        back = leave(private_servers.metadata, how)
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(note, looked_up, ns)
                nursery.start_soon(note, made, away, ns)
                while away.door.silent_since is None:  # noqa: ASYNC110
                    await trio.sleep(0.05)
                assert not answers
                await trio.to_thread.run_sync(back)
        assert sorted(answers) == [b"f", b"f", b"f", b"new"]
        assert away.door.silent_since is None


@pytest.mark.parametrize("how", ["hangs", "refuses"])
async def test_p3_they_are_told_after_error_timeout(private_servers: Servers, away: World, how: str) -> None:
    """Not sooner, not much later, and not one after the other; then at once; and all is well when it is back."""
    await fill(away)
    told: list[float] = []

    async def ask(operation: Callable[..., Any], *arguments: Any) -> None:
        with pytest.raises(Unavailable):
            await operation(*arguments)
        told.append(time.monotonic() - begin)

    async with away.open(IMPATIENT) as ns:
        back = leave(private_servers.metadata, how)
        begin = time.monotonic()
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask, looked_up, ns)
                    nursery.start_soon(ask, made, away, ns)
        assert min(told) > 1.9
        attempts = 0

        def query(db: Any) -> None:
            nonlocal attempts
            attempts += 1
            db.command("ping")

        await ask(ns._cache.read, query)
        assert attempts == 1, "PT3"
        await trio.to_thread.run_sync(back)
        with trio.fail_after(HANG_SECONDS):
            while away.door.silent_since is not None:
                with suppress(Unavailable):
                    await looked_up(ns)
            assert await looked_up(ns) == b"f"
            assert await made(away, ns) == b"new"


async def test_other_answers_are_not_waited_for(away: World) -> None:
    """PT1."""
    await fill(away)
    async with away.open(PATIENT) as ns:
        attempts = 0

        def refuse(_db: Any) -> None:
            nonlocal attempts
            attempts += 1
            raise Refused("no")

        with pytest.raises(Refused):
            await ns._cache.read(refuse)
        assert attempts == 1


async def test_at_the_end_nobody_waits(private_servers: Servers, away: World) -> None:
    """C6."""
    await fill(away)
    with trio.fail_after(HANG_SECONDS):
        async with away.open(PATIENT) as ns:
            private_servers.metadata.pause()
            ns._cache.ending = True
            with pytest.raises(Unavailable):
                await looked_up(ns)
            private_servers.metadata.resume()


async def test_a_wait_can_be_cancelled(private_servers: Servers, away: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_FIRST_SECONDS", 30.0)
    monkeypatch.setattr(patience, "PAUSE_MAX_SECONDS", 30.0)
    await fill(away)
    async with away.open(PATIENT) as ns:
        private_servers.metadata.pause()
        with trio.fail_after(HANG_SECONDS / 3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(looked_up, ns)
                while away.door.silent_since is None:  # noqa: ASYNC110
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
        private_servers.metadata.resume()

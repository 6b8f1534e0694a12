"""A freshly formatted file system on the test servers, opened without a mount.

Purpose
    `Fresh` formats, opens (as often as a test likes) and checks one file system. The fixtures `new_fresh`, `fresh` and
    `stack` hand it out; a folder's conftest.py imports the ones it wants.

Invariants
    T7  When a test that passed ends, fsck finds neither damage nor leftovers in what it left behind; a test that ends
        a server or leaves chunks behind on purpose says so with `checked = False`.

Concurrency
    Formatting and checking block; open() runs in trio. One file system is opened once at a time.

Not here
    Servers and database names (testing.plugin), mounts (testing.mounted).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from flakefs.app.stack import Stack, metadata_door, open_stack
from flakefs.config import Config
from flakefs.engine import EngineOptions
from flakefs.engine.admin import create_filesystem
from flakefs.namespace import NamespaceOptions, schema
from flakefs.testing.servers import Servers
from flakefs.tools import fsck
from flakefs.tools.problems import DAMAGE, LEFTOVER, Report
from flakefs.vfs import VfsOptions

CHUNK_SIZE = 64 * 1024
"""The smallest, so that tests cross windows with little data."""


class Fresh:
    """One file system. `config` may be replaced between two openings."""

    def __init__(
        self,
        servers: Servers,
        database: str,
        node_database: str,
        *,
        chunk_size: int = CHUNK_SIZE,
        codec: str = "zstd",
        engine: EngineOptions | None = None,
        namespace: NamespaceOptions | None = None,
        vfs: VfsOptions | None = None,
    ) -> None:
        self.checked = True
        self.config = Config(
            metadata_uri=servers.metadata_uri,
            database=database,
            engine=engine or EngineOptions(reserve_bytes=0),
            namespace=namespace or NamespaceOptions(),
            vfs=vfs or VfsOptions(),
        )
        with metadata_door(self.config, purpose="format") as (door, resolve):
            create_filesystem(
                door,
                database,
                chunk_size=chunk_size,
                codec=codec,
                first_node_uri=servers.node_uri(1),
                first_node_database=node_database,
                resolve=resolve,
                prepare=schema.create,
            )

    def configure(self, **sections: Any) -> None:
        """Other options for the next opening: engine=, namespace=, vfs=."""
        self.config = replace(self.config, **sections)

    @asynccontextmanager
    async def open(self, *, writable: bool = True, kind: str = "tool") -> AsyncIterator[Stack]:
        """The stack; leaving commits everything and checks the invariants of what is in memory."""
        async with open_stack(self.config, kind=kind, writable=writable, where="a test") as stack:
            yield stack
            stack.fs.check_invariants()

    def fsck(self, *, deep: bool = True) -> Report:
        """What the whole check finds; nothing may have it open. Blocks."""
        with metadata_door(self.config, purpose="fsck") as (door, resolve):
            return fsck.check(door, self.config.database, resolve, deep=deep)

    def assert_sound(self) -> None:
        """Neither damage nor leftovers. Blocks."""
        found = [problem for problem in self.fsck().found if problem.kind.level in (DAMAGE, LEFTOVER)]
        assert not found, "fsck found:\n" + "\n".join(map(str, found))

    async def assert_sound_now(self) -> None:
        """The same from a trio task."""
        await trio.to_thread.run_sync(self.assert_sound)


NewFresh = Callable[..., Fresh]


@pytest.fixture
def new_fresh(servers: Servers, new_database: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[NewFresh]:
    """Call it for a file system; keywords as of Fresh."""
    made: list[Fresh] = []

    def make(**options: Any) -> Fresh:
        made.append(Fresh(servers, new_database(), new_database(), **options))
        return made[-1]

    failed_before = request.session.testsfailed
    yield make
    if request.session.testsfailed == failed_before:
        for fresh in made:
            if fresh.checked:
                fresh.assert_sound()


@pytest.fixture
def fresh(new_fresh: NewFresh) -> Fresh:
    """A file system with the defaults and a chunk size of 64 KiB."""
    return new_fresh()


@pytest.fixture
async def stack(fresh: Fresh) -> AsyncIterator[Stack]:
    """The same, opened for writing."""
    async with fresh.open() as opened:
        yield opened

"""Opening a FileSystem: content side, namespace and tasks in their order.

Concurrency
    The nursery belongs to open_vfs(). On the way out the namespace commits everything while the store tasks still run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from flakefs.engine import Engine
from flakefs.format.records import FormatRecord
from flakefs.mongo.door import Door
from flakefs.namespace import NamespaceOptions, Session, Watch, open_namespace
from flakefs.vfs import attributes, compaction
from flakefs.vfs.filesystem import FileSystem
from flakefs.vfs.options import VfsOptions
from flakefs.vfs.writeback import Writeback


@asynccontextmanager
async def open_vfs(
    metadata: Door,
    database: str,
    format: FormatRecord,
    engine: Engine,
    session: Session,
    namespace_options: NamespaceOptions,
    options: VfsOptions,
    clock: Callable[[], int] = time.time_ns,
    watch: Watch | None = None,
) -> AsyncIterator[FileSystem]:
    """A FileSystem; leaving makes everything durable, and raises when that fails."""
    writeback = Writeback(engine, format.chunk_size, options)
    async with trio.open_nursery() as nursery:
        async with open_namespace(
            metadata,
            database,
            options=namespace_options,
            session=session,
            content=writeback,
            clock=clock,
            watch=watch,
        ) as ns:
            writeback.attach(ns)
            ns.when_rebased = attributes.drop_privileges
            fs = FileSystem(format, engine, ns, writeback, options, clock)
            nursery.start_soon(writeback.run)
            nursery.start_soon(compaction.run, writeback, fs.reader)
            yield fs
        nursery.cancel_scope.cancel()

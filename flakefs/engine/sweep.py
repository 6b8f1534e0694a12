"""What lies on nodes, for tools that work without an open engine.

Purpose
    A door to one node, and which of a file system's volumes it has collections of.

Invariants
    SW1  What a node holds is told by its collections alone, whatever the volume documents say.

Concurrency
    Synchronous, for any thread.

Not here
    What is garbage and what is damage, and walking chunks to find out (tools).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flakefs.format.documents import volume_collection
from flakefs.format.records import NodeRecord
from flakefs.mongo.clients import connect, redacted
from flakefs.mongo.door import Door


@contextmanager
def node_door(
    record: NodeRecord, resolve: Callable[[NodeRecord], str], *, deadline_seconds: float = 10.0
) -> Iterator[Door]:
    """A way to a node; ended with the block. Connects when it is first used."""
    uri = resolve(record)
    client = connect(uri, purpose="tools", deadline_seconds=deadline_seconds)
    name = f"node {record.id}" if record.id else "the node"
    door = Door(client, name=f"{name} ({redacted(uri)}, database {record.database})", deadline_seconds=deadline_seconds)
    try:
        yield door
    finally:
        door.close()


def stored_volumes(door: Door, record: NodeRecord, uuid: str) -> list[int]:
    """Ids of the file system's volumes that have a collection on the node, whether documents name them or not."""
    prefix = volume_collection(uuid, 0).removesuffix("0")
    names = door.run_sync(lambda: door.client[record.database].list_collection_names())
    numbers = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(int(number) for number in numbers if number.isdecimal())

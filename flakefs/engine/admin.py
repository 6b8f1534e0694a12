"""Making file systems and nodes, and looking at them: what commands do without an open engine.

Purpose
    `create_filesystem`, `read_filesystem`, and the functions behind `flakefs nodes`.

Invariants
    AD1  The format document is written last: a file system that was not made whole is NotFormatted.
    AD2  Nothing is dropped that this program did not make: a database with foreign collections of our names is refused.
    AD3  A node id is given once, whatever becomes of the node.
    AD4  A database holds at most one node of a file system: its marker says which, and is written before the node's
         document. Several file systems may share it.
    AD5  The replication code is the only field of the format document that ever changes, and a code that the nodes
         cannot keep is taken only by force.

Concurrency
    Synchronous; several processes may run these at once, the markers and counters decide.

Not here
    Chunks on nodes (engine.sweep), the inodes of an empty file system (given as *prepare*).
"""

from __future__ import annotations

import logging
import time
import uuid as uuids
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from pymongo import ReturnDocument
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from flakefs.engine.numbers import FIRST, next_number
from flakefs.engine.sweep import node_door, stored_volumes
from flakefs.engine.topology import place_of
from flakefs.engine.volumes import MAP
from flakefs.errors import AlreadyFormatted, FlakeError, NotFormatted, UsageError
from flakefs.format.codec import CODECS
from flakefs.format.documents import (
    COUNTERS,
    FORMAT,
    METADATA_COLLECTIONS,
    NODE_MARKER,
    NODES,
    VOLUMES,
    Document,
    volume_collection,
)
from flakefs.format.placement import CODE_DEFAULT, check_code, why_not
from flakefs.format.records import (
    NODE_STATES,
    FormatRecord,
    NodeRecord,
    VolumeRecord,
    read_format,
    read_node,
    read_volume,
)
from flakefs.format.windows import valid_chunk_size
from flakefs.mongo.clients import check_node_server, redacted
from flakefs.mongo.door import Door
from flakefs.mongo.secrets import refuse_clear_secret

__all__ = [
    "add_node",
    "check_replication",
    "create_filesystem",
    "list_nodes",
    "list_volumes",
    "next_number",
    "read_filesystem",
    "set_address",
    "set_node",
    "set_replication",
]

log = logging.getLogger(__name__)

Resolve = Callable[[NodeRecord], str]
MAKING = "making"
"""In the format collection while a file system is being made; says that what is there is ours (AD2)."""
OLD_NODE_SECONDS = 10.0
"""How long a node of a file system that is replaced is waited for."""
DURABLE = WriteConcern("majority", j=True)


def read_filesystem(metadata: Door, database: str) -> FormatRecord:
    """The format document. Raises NotFormatted, FormatUnsupported."""
    document = metadata.run_sync(lambda: metadata.client[database][FORMAT].find_one({"_id": "format"}))
    if document is None:
        raise NotFormatted(
            f"there is no FlakeFS file system in database {database!r} of {metadata.name}: make one with flakefs format"
        )
    return read_format(document, f"database {database!r} of {metadata.name}")


def create_filesystem(
    metadata: Door,
    database: str,
    *,
    chunk_size: int,
    codec: str,
    first_node_uri: str,
    first_node_database: str,
    resolve: Resolve,
    prepare: Callable[[Database[Document]], None] | None = None,
    force: bool = False,
    replication: str = CODE_DEFAULT,
) -> FormatRecord:
    """Make an empty file system with one node; with *force*, in place of the one that is there.

    *replication*: one that a single node cannot keep is for who adds the others right away (set_replication checks).
    *prepare* makes collections, indexes and the root inode of the namespace.
    """
    if not valid_chunk_size(chunk_size):
        raise UsageError(f"the chunk size must be a power of two from 64 KiB to 8 MiB, not {chunk_size} bytes")
    if codec not in CODECS:
        raise UsageError(f"there is no codec {codec!r}; choose one of {', '.join(CODECS)}")
    record = FormatRecord(
        uuid=str(uuids.uuid4()),
        chunk_size=chunk_size,
        codec=codec,
        created=time.time_ns(),
        replication=check_code(replication),
    )
    node = NodeRecord(id=FIRST, uri=first_node_uri, database=first_node_database, added=record.created)
    refuse_clear_secret(node.uri)
    _check_node(node, resolve)
    _clear(metadata, database, resolve, force=force)

    def make_sync() -> None:
        home = metadata.client.get_database(database, write_concern=DURABLE)
        home[FORMAT].insert_one({"_id": MAKING, "uuid": record.uuid})
        if prepare is not None:
            prepare(home)
        there = set(home.list_collection_names())
        for name in METADATA_COLLECTIONS:
            if name not in there:
                home.create_collection(name)

    metadata.run_sync(make_sync)
    assert next_number(metadata, database, "node") == node.id, "a cleared file system has no nodes"
    _mark(metadata, database, record.uuid, node, resolve)

    def finish_sync() -> None:
        home = metadata.client.get_database(database, write_concern=DURABLE)
        home[NODES].insert_one(node.document())
        home[FORMAT].insert_one(record.document())  # AD1
        home[FORMAT].delete_one({"_id": MAKING})

    metadata.run_sync(finish_sync)
    return record


def _clear(metadata: Door, database: str, resolve: Resolve, *, force: bool) -> None:
    """Make room for a new file system: refuse, or drop the old one, or what was left of one half made (AD2)."""
    home = metadata.client[database]
    where = f"database {database!r} of {metadata.name}"

    def read_sync() -> tuple[dict[str, Document], set[str]]:
        found = {str(document["_id"]): document for document in home[FORMAT].find({"_id": {"$in": ["format", MAKING]}})}
        return found, set(home.list_collection_names())

    formats, names = metadata.run_sync(read_sync)
    if "format" in formats and not force:
        raise AlreadyFormatted(
            f"there is a FlakeFS file system in {where} already: choose another database, or replace it with --force"
        )
    ours = [name for name in METADATA_COLLECTIONS if name in names]
    if not ours:
        return
    if not formats:
        raise UsageError(
            f"{where} holds collections of another program ({', '.join(ours)}): choose another database for FlakeFS"
        )
    for uuid in {str(document["uuid"]) for document in formats.values()}:
        for node in list_nodes(metadata, database):
            _drop_volumes(node, uuid, resolve)

    def drop_sync() -> None:
        for name in sorted(ours, key=lambda name: name == FORMAT):  # the proof that it is ours goes last
            home.drop_collection(name)

    metadata.run_sync(drop_sync)


def _drop_volumes(node: NodeRecord, uuid: str, resolve: Resolve) -> None:
    """Chunks and marker of one file system on a node; a node that is away keeps them, and that hurts nobody."""

    def drop_sync(home: Database[Document], volumes: Iterable[int]) -> None:
        for volume in volumes:
            home.drop_collection(volume_collection(uuid, volume))
        home[NODE_MARKER].delete_one({"_id": uuid})
        if home[NODE_MARKER].find_one({}) is None:
            home.drop_collection(NODE_MARKER)

    try:
        with node_door(node, resolve, deadline_seconds=OLD_NODE_SECONDS) as door:
            volumes = stored_volumes(door, node, uuid)
            door.run_sync(lambda: drop_sync(door.client[node.database], volumes))
    except FlakeError as error:
        log.warning("the old chunks on node %d could not be dropped: %s", node.id, error)


# -- replication --


def check_replication(metadata: Door, database: str, code: str) -> None:
    """Raise UsageError when *code* is none, or the active nodes, whether they answer or not, cannot keep it."""
    check_code(code)
    active = [node for node in list_nodes(metadata, database) if node.state == "active"]
    problem = why_not(code, map(place_of, active))
    if problem is not None:
        raise UsageError(f"{problem}; add nodes with flakefs nodes add, or choose another code")


def set_replication(metadata: Door, database: str, code: str, force: bool = False) -> None:
    """Change the code of what is stored from now on, by files that ask for no other (AD5).

    Running mounts follow within a moment; volumes that are there get their further copies by repair.
    """
    read_filesystem(metadata, database)
    check_code(code)
    if not force:
        check_replication(metadata, database, code)
    formats = metadata.client[database].get_collection(FORMAT, write_concern=DURABLE)
    metadata.run_sync(lambda: formats.update_one({"_id": "format"}, {"$set": {"replication": code}}))
    next_number(metadata, database, MAP)


# -- nodes --


def list_nodes(metadata: Door, database: str) -> list[NodeRecord]:
    """All nodes by id."""
    documents = metadata.run_sync(lambda: list(metadata.client[database][NODES].find({}).sort("_id", 1)))
    return [read_node(document) for document in documents]


def list_volumes(metadata: Door, database: str) -> list[VolumeRecord]:
    """All volumes by id."""
    documents = metadata.run_sync(lambda: list(metadata.client[database][VOLUMES].find({}).sort("_id", 1)))
    return [read_volume(document) for document in documents]


def add_node(
    metadata: Door,
    database: str,
    *,
    uri: str,
    node_database: str,
    dc: str = "",
    rack: str = "",
    capacity: int | None = None,
    id: int | None = None,
    resolve: Resolve,
) -> NodeRecord:
    """Add a storage node; running mounts use it within a moment. The address is checked before anything changes.

    *id*: a number of one's own choice, above all that were ever used; by default the next one.
    """
    refuse_clear_secret(uri)
    uuid = read_filesystem(metadata, database).uuid
    _check_capacity(capacity)
    _check_free(list_nodes(metadata, database), uri, node_database)
    draft = {"uri": uri, "database": node_database, "dc": dc, "rack": rack, "added": time.time_ns()}
    _check_node(NodeRecord(id=id or 0, uri=uri, database=node_database), resolve)
    if id is None:
        id = next_number(metadata, database, "node")
    else:
        _take_id(metadata, database, id)
    node = NodeRecord(id=id, capacity=capacity or None, **draft)  # type: ignore[arg-type]
    _mark(metadata, database, uuid, node, resolve)
    nodes = metadata.client[database].get_collection(NODES, write_concern=DURABLE)
    metadata.run_sync(lambda: nodes.insert_one(node.document()))
    return node


def set_node(
    metadata: Door,
    database: str,
    id: int,
    *,
    state: str | None = None,
    dc: str | None = None,
    rack: str | None = None,
    capacity: int | None = None,
) -> NodeRecord:
    """Change what is given; a capacity of 0 takes the limit away."""
    read_filesystem(metadata, database)
    if state is not None and state not in NODE_STATES:
        raise UsageError(f"a node is {', '.join(NODE_STATES)}: not {state!r}")
    _check_capacity(capacity)
    changes = {"state": state, "dc": dc, "rack": rack, "capacity": capacity or None}
    update: dict[str, Any] = {"$set": {name: value for name, value in changes.items() if value is not None}}
    if capacity == 0:
        update["$unset"] = {"capacity": ""}
    if not update["$set"]:
        del update["$set"]
    nodes = metadata.client[database].get_collection(NODES, write_concern=DURABLE)

    def change_sync() -> Document | None:
        if not update:
            return nodes.find_one({"_id": id})
        return nodes.find_one_and_update({"_id": id}, update, return_document=ReturnDocument.AFTER)

    document = metadata.run_sync(change_sync)
    if document is None:
        known = ", ".join(str(node.id) for node in list_nodes(metadata, database))
        raise UsageError(f"there is no node {id}; there are: {known}")
    return read_node(document)


def set_address(metadata: Door, database: str, id: int, uri: str, *, resolve: Resolve) -> NodeRecord:
    """A node's data has moved to another address: it is asked for its mark there before anything changes (AD4)."""
    refuse_clear_secret(uri)
    uuid = read_filesystem(metadata, database).uuid
    known = {node.id: node for node in list_nodes(metadata, database)}
    if id not in known:
        raise UsageError(f"there is no node {id}; there are: {', '.join(map(str, known))}")
    moved = replace(known.pop(id), uri=uri)
    _check_free(list(known.values()), uri, moved.database)
    _check_node(moved, resolve)
    with node_door(moved, resolve) as door:
        marker = door.run_sync(lambda: door.client[moved.database][NODE_MARKER].find_one({"_id": uuid}))
    if marker is None or marker.get("node") != id:
        raise UsageError(
            f"{redacted(uri)}, database {moved.database!r}, does not hold the data of node {id}: bring the data there "
            "first; a node without its data is added with flakefs nodes add"
        )
    nodes = metadata.client[database].get_collection(NODES, write_concern=DURABLE)
    metadata.run_sync(lambda: nodes.update_one({"_id": id}, {"$set": {"uri": uri}}))
    return moved


def _check_capacity(capacity: int | None) -> None:
    if capacity is not None and capacity < 0:
        raise UsageError(f"a capacity is a number of bytes, 0 for no limit, not {capacity}")


def _check_free(nodes: list[NodeRecord], uri: str, database: str) -> None:
    for node in nodes:
        if (node.uri.rstrip("/"), node.database) == (uri.rstrip("/"), database):
            raise UsageError(f"{redacted(uri)}, database {database!r}, is node {node.id} already")


def _check_node(node: NodeRecord, resolve: Resolve) -> None:
    """Reachable, writable, new enough."""
    with node_door(node, resolve) as door:
        check_node_server(door.client, resolve(node), node.database)


def _take_id(metadata: Door, database: str, id: int) -> None:
    """AD3."""
    if id < FIRST:
        raise UsageError(f"a node id is a number from {FIRST} on, not {id}")
    counters = metadata.client[database].get_collection(COUNTERS, write_concern=DURABLE)
    result = metadata.run_sync(
        lambda: counters.update_one({"_id": "node", "next": {"$lte": id}}, {"$set": {"next": id + 1}})
    )
    if not result.matched_count:
        counter = metadata.run_sync(lambda: counters.find_one({"_id": "node"})) or {"next": FIRST}
        raise UsageError(f"node ids are never used again, so {id} is not free: the next one is {int(counter['next'])}")


def _mark(metadata: Door, database: str, uuid: str, node: NodeRecord, resolve: Resolve) -> None:
    """AD4."""
    marker = {"_id": uuid, "node": node.id}

    def mark_sync(home: Database[Document]) -> int | None:
        markers = home.get_collection(NODE_MARKER, write_concern=WriteConcern(j=True))
        try:
            markers.insert_one(marker)
        except DuplicateKeyError:
            found = markers.find_one({"_id": uuid})
            other = None if found is None else int(found["node"])
            if other is not None and any(known.id == other for known in list_nodes(metadata, database)):
                return other
            markers.replace_one({"_id": uuid}, marker, upsert=True)  # left by an attempt that ended half-way
        return None

    with node_door(node, resolve) as door:
        other = door.run_sync(lambda: mark_sync(door.client[node.database]))
    if other is not None:
        raise UsageError(
            f"{redacted(node.uri)}, database {node.database!r}, is node {other} of this file system already: "
            "a node needs a database of its own"
        )

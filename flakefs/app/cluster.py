"""`flakefs cluster dev`: a local cluster, a file system on it, and the configuration that leads there.

Purpose
    What is missing is made, what is there is left as it is: the command can be repeated, with more nodes too, and goes
    on where an earlier one ended.

Invariants
    CD1  Nodes are spread evenly: node i lies in data center i mod D, and in rack (i div D) mod R of it.
    CD2  When it fails, no server that it has started goes on running.

Concurrency
    Blocks; one at a time for each folder (mongo.cluster).

Not here
    The servers (mongo.cluster), printing (cli.cluster).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from flakefs.app.stack import Resolve, metadata_door
from flakefs.config import Config
from flakefs.engine.admin import add_node, create_filesystem, list_nodes, read_filesystem, set_node, set_replication
from flakefs.errors import NotFormatted, UsageError
from flakefs.format.placement import check_code
from flakefs.mongo.binaries import find_mongod
from flakefs.mongo.cluster import NODES_MAX, LocalCluster, NodeLabel, describe, is_cluster, locked, prepare
from flakefs.mongo.door import Door
from flakefs.namespace import schema

CONFIG = "flakefs.conf"
CHUNK_SIZE = 1 << 20
Say = Callable[[str], None]


def develop(
    folder: Path,
    *,
    nodes: int | None,
    dcs: int = 1,
    racks: int = 1,
    database: str | None = None,
    replication: str | None = None,
    mongod: str = "",
    say: Say = lambda _: None,
) -> LocalCluster:
    """The running cluster in *folder*, with a file system; *nodes* None: as many as there are, or three.

    *database* and *replication* None: as they are, or "flakefs" and "000".
    """
    folder = folder.expanduser().absolute()
    if replication is not None:
        check_code(replication)
    find_mongod(mongod)  # before a folder is made for nothing
    prepare(folder)
    with locked(folder):
        if not is_cluster(folder):
            name = database or "flakefs"
            Config(database=name)  # raises for one that cannot be
            describe(folder, name, [])
        cluster = _grown(LocalCluster(folder), nodes, dcs, racks)
        if database not in (None, cluster.database):
            raise UsageError(f"the cluster in {folder} has the database {cluster.database!r}, not {database!r}")
        _write_config(cluster, mongod)
        started = cluster.start(cluster.servers, mongod)
        try:
            if started:
                say(f"started {', '.join(started)}")
            config = Config(metadata_uri=cluster.metadata_uri, database=cluster.database)
            with metadata_door(config, purpose="cluster") as (door, resolve):
                _furnish(door, resolve, cluster, replication, say)
        except BaseException:
            for name in started:
                cluster.server(name).kill()
            raise
    return cluster


def config_file(cluster: LocalCluster) -> Path:
    return cluster.folder / CONFIG


def labels(have: list[NodeLabel], count: int, dcs: int, racks: int) -> list[NodeLabel]:
    """*have*, and further nodes until there are *count* (CD1)."""
    more = [NodeLabel(f"node{i + 1}", f"dc{i % dcs + 1}", f"r{i // dcs % racks + 1}") for i in range(len(have), count)]
    return have + more


def _grown(cluster: LocalCluster, nodes: int | None, dcs: int, racks: int) -> LocalCluster:
    have = len(cluster.labels)
    count = (have or 3) if nodes is None else nodes
    if count > NODES_MAX:
        raise UsageError(f"a cluster on one machine has {NODES_MAX} nodes at most, not {count}")
    if count < have:
        raise UsageError(
            f"the cluster in {cluster.folder} has {have} nodes, more than {count}: flakefs nodes drain and remove take "
            "nodes out of a file system, flakefs cluster stop --remove takes the cluster away"
        )
    if count == have:
        return cluster
    describe(cluster.folder, cluster.database, labels(cluster.labels, count, dcs, racks))
    return LocalCluster(cluster.folder)


def _write_config(cluster: LocalCluster, mongod: str) -> None:
    """Sockets move with the folder, so it is written anew each time; what somebody has changed in it is kept."""
    path = config_file(cluster)
    if path.exists() and cluster.metadata_uri in path.read_text():
        return
    text = (
        "# Written by flakefs cluster dev.\n"
        f"[metadata]\nuri = {json.dumps(cluster.metadata_uri)}\ndatabase = {json.dumps(cluster.database)}\n"
    )
    if mongod:
        text += f"\n[embedded]\nmongod = {json.dumps(mongod)}\n"
    path.write_text(text)
    path.chmod(0o600)


def _furnish(door: Door, resolve: Resolve, cluster: LocalCluster, replication: str | None, say: Say) -> None:
    """The file system, its nodes, its replication: whatever of them is missing."""
    home = cluster.database
    uris = {label.name: cluster.nodes[label.name].plan.uri for label in cluster.labels}
    chunks = f"{home}_chunks"
    try:
        read_filesystem(door, home)
    except NotFormatted:
        first = cluster.labels[0]
        create_filesystem(
            door,
            home,
            chunk_size=CHUNK_SIZE,
            codec="zstd",
            first_node_uri=uris[first.name],
            first_node_database=chunks,
            resolve=resolve,
            prepare=schema.create,
        )
        say(f"made the file system {home}")
    known = {node.uri: node for node in list_nodes(door, home)}
    for label in cluster.labels:
        node = known.get(uris[label.name])
        if node is None:
            add_node(
                door, home, uri=uris[label.name], node_database=chunks, dc=label.dc, rack=label.rack, resolve=resolve
            )
            say(f"added {label.name} in {label.dc}, {label.rack}")
        elif not (node.dc or node.rack):  # the first one, made with the file system
            set_node(door, home, node.id, dc=label.dc, rack=label.rack)
    if replication is not None and replication != read_filesystem(door, home).replication:
        set_replication(door, home, replication)
        say(f"new files have replication {replication}")

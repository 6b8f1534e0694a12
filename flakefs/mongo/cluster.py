"""A cluster of mongods on this machine for trying things out: a metadata replica set of three, and n nodes.

Purpose
    Starts, stops, kills, pauses and shows the servers of one folder. They outlive the process that started them: the
    folder tells which there are.

Invariants
    LC1  A folder with cluster.json is one of ours; nothing is written into, and nothing removed from, another one that
         is not empty.
    LC2  When start() fails, every server that it started has ended.
    LC3  Starting, stopping and growing happen only under <folder>/cluster.lock.
    LC4  No TCP: unix sockets (0700) in a folder of mode 0700, as with the embedded servers.

Concurrency
    Synchronous; any number of processes.

Not here
    Making a file system on it (app.cluster), how a mongod is run (mongo.server).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flakefs.errors import EmbeddedError, UsageError
from flakefs.mongo.binaries import find_mongod
from flakefs.mongo.filelock import FileLock
from flakefs.mongo.folders import check_space, default_data, socket_folder
from flakefs.mongo.replica_set import become_primary, member_state
from flakefs.mongo.server import START_SECONDS, Mongod, ServerPlan

MARK = "cluster.json"
LOCK = "cluster.lock"
REPLICA_SET = "flakefs"
METADATA = ("meta1", "meta2", "meta3")
NODES_MAX = 64
CACHE_MB = 256
OPLOG_MB = 128
JOURNAL_MB = 10
"""Small: many servers share a machine, and nobody measures speed here."""
HANDOVER_MS = 1000
"""So long, instead of 15 s, a metadata server that is told to stop waits for another one to take over and for clients
to go there. They are stopped together, so nobody takes over; what is written is kept all the same.
"""
LOCK_SECONDS = 150.0
TOGETHER = 8
"""Servers that are started or stopped at the same time."""


@dataclass(frozen=True, slots=True)
class NodeLabel:
    """A node of the cluster."""

    name: str
    dc: str
    rack: str


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A server of the cluster, at the moment of asking."""

    name: str
    state: str
    """primary, secondary, standalone, not ready, no answer (paused, or too busy); stopped when no process runs."""
    pid: int | None
    dc: str
    rack: str
    uri: str
    """Of this server alone."""
    data: str
    log: str


def default_folder() -> Path:
    """Beside the data of the embedded servers."""
    return default_data().with_name("flakefs-cluster")


def is_cluster(folder: Path) -> bool:
    return (folder / MARK).is_file()


class LocalCluster:
    """The cluster in a folder that has one (LC1)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder = folder.expanduser().absolute()
        if not is_cluster(folder):
            raise UsageError(f"there is no cluster in {folder}: make one with flakefs cluster dev, or name its --dir")
        try:
            described = json.loads((folder / MARK).read_text())
            home = str(described["folder"])
            self.database = str(described["database"])
            self.labels = [NodeLabel(**label) for label in described["nodes"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder / MARK} cannot be read ({error}): remove the folder, or restore it") from error
        if home != str(folder):
            raise UsageError(
                f"the cluster in {folder} was made in {home}, which its nodes' addresses name: move it back"
            )
        sockets = socket_folder(folder)
        members = tuple(sockets / f"{name}.sock" for name in METADATA)
        self.metadata = {name: Mongod(_plan(folder, sockets, name, members)) for name in METADATA}
        self.nodes = {label.name: Mongod(_plan(folder, sockets, label.name, ())) for label in self.labels}

    @property
    def servers(self) -> dict[str, Mongod]:
        return self.metadata | self.nodes

    @property
    def metadata_uri(self) -> str:
        return self.metadata[METADATA[0]].plan.uri

    def server(self, name: str) -> Mongod:
        """Raises UsageError for a name that it does not have."""
        if name not in self.servers:
            raise UsageError(f"the cluster has no member {name!r}; it has {', '.join(self.servers)}")
        return self.servers[name]

    def start(self, names: Iterable[str], mongod: str) -> list[str]:
        """Start those that do not run, and wait for them; their names (LC2). *mongod*: as in the configuration."""
        names = list(names)
        missing = [name for name in names if self.server(name).pid() is None]
        if missing:
            binary = find_mongod(mongod)
            check_space(self.folder, fresh=True)
        begun: list[str] = []

        def start(name: str) -> None:
            server = self.server(name)
            server.wait_if_dying()
            server.start(binary)
            begun.append(name)
            server.wait_ready()

        try:
            _together(start, missing)
            if any(name in self.metadata for name in names):  # also when all run: who began may have been killed
                self._wait_primary()
        except BaseException:
            _together(lambda name: self.server(name).kill(), list(begun))
            raise
        return missing

    def stop(self) -> list[str]:
        """Clean shutdown of all that run, nodes before metadata; their names."""
        running = [name for name, server in self.servers.items() if server.pid() is not None]
        for group in (self.nodes, self.metadata):
            _together(lambda name: self.server(name).stop(), [name for name in running if name in group])
        return running

    def remove(self) -> None:
        """The folder and everything in it; only when no server runs (LC1)."""
        assert is_cluster(self.folder)
        sockets = self.servers[METADATA[0]].plan.socket.parent
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == MARK):  # the proof goes last
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        self.folder.rmdir()
        if self.folder not in sockets.parents:
            shutil.rmtree(sockets, ignore_errors=True)

    def status(self) -> list[MemberStatus]:
        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(self._status, self.servers))

    def _status(self, name: str) -> MemberStatus:
        server = self.server(name)
        pid = server.pid()
        label = next((label for label in self.labels if label.name == name), NodeLabel(name, "", ""))
        return MemberStatus(
            name=name,
            state=member_state(server.plan.socket) if pid is not None else "stopped",
            pid=pid,
            dc=label.dc,
            rack=label.rack,
            uri=server.plan.own_uri,
            data=str(server.plan.data),
            log=str(server.plan.log),
        )

    def _wait_primary(self) -> None:
        """A set that has a majority has a primary after a moment; with fewer members there is nothing to wait for."""
        running = [server for server in self.metadata.values() if server.pid() is not None]
        if len(running) * 2 <= len(METADATA):
            return
        deadline = time.monotonic() + START_SECONDS

        def check() -> None:
            for server in running:
                if server.pid() is None:
                    raise EmbeddedError(f"mongod on {server.plan.data} has ended: look into {server.plan.log}")
            if time.monotonic() >= deadline:
                raise EmbeddedError(
                    f"the metadata servers of {self.folder} have not agreed on a primary within {START_SECONDS:.0f} s: "
                    f"look into {running[0].plan.log}"
                )

        become_primary([server.plan.socket for server in self.metadata.values()], REPLICA_SET, deadline, check)


def prepare(folder: Path) -> None:
    """Make the folder of a cluster, or check the one that is there (LC1)."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = set(os.listdir(folder)) - {"lost+found", LOCK}
        if names and MARK not in names:
            raise UsageError(f"the folder {folder} holds other things: choose an empty one for the cluster (--dir)")
        folder.chmod(0o700)
    except FileExistsError as error:
        raise UsageError(f"{folder} is not a folder: choose another --dir") from error
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be used ({error.strerror}): choose another --dir") from error


def describe(folder: Path, database: str, labels: Iterable[NodeLabel]) -> None:
    """Write which members the cluster has."""
    document: dict[str, Any] = {
        "folder": str(folder),
        "database": database,
        "nodes": [asdict(label) for label in labels],
    }
    draft = folder / f"{MARK}.new"
    draft.write_text(json.dumps(document, indent=2) + "\n")
    draft.rename(folder / MARK)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """LC3."""
    lock = FileLock(folder / LOCK)
    try:
        if not lock.wait_exclusive(LOCK_SECONDS):
            raise EmbeddedError(
                f"another command has been at work on the cluster in {folder} for {LOCK_SECONDS:.0f} s: "
                "wait for its end"
            )
        yield
    finally:
        lock.close()


def _plan(folder: Path, sockets: Path, name: str, members: tuple[Path, ...]) -> ServerPlan:
    return ServerPlan(
        data=folder / name,
        socket=sockets / f"{name}.sock",
        log=folder / f"{name}.log",
        replica_set=REPLICA_SET if members else "",
        members=members,
        cache_mb=CACHE_MB,
        oplog_mb=OPLOG_MB,
        journal_mb=JOURNAL_MB,
        more=("--setParameter", f"shutdownTimeoutMillisForSignaledShutdown={HANDOVER_MS}") if members else (),
    )


def _together(call: Any, names: list[str]) -> None:
    """Call it for all *names* at once; every call ends before the first error is raised."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        futures = [pool.submit(call, name) for name in names]
    for future in futures:
        future.result()

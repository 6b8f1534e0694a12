"""Real MongoDB servers for tests, on unix sockets in a private folder.

Purpose
    `Servers` gives one metadata server (a one-member replica set) and any number of nodes (standalone). Each is
    started when it is first asked for, and can be stopped, killed, paused and started again.

Invariants
    T1  Nothing outside the private folder (mode 0700) is touched, and no TCP port is opened unless asked for.
    T2  When the process ends, in whatever way, its servers are killed and the folder is removed (by a guard process
        that waits for the end of a pipe).

Concurrency
    Synchronous; one thread. Servers of different `Servers` know nothing of each other.

Not here
    Fixtures (testing.plugin), how a mongod is run (mongo.server).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient

from flakefs.mongo.binaries import find_mongod
from flakefs.mongo.folders import takes_sockets
from flakefs.mongo.server import Mongod, ServerPlan

REPLICA_SET = "flake"
USER = "flake"
_GUARD = """
read _
for process in /proc/[0-9]*; do
    case "$(readlink "$process/exe")" in
        */mongod*) grep -aqs "$0/" "$process/cmdline" && kill -9 "${process#/proc/}" ;;
    esac
done
rm -rf "$0"
"""


class TestServer:
    """One mongod of a test."""

    __test__ = False  # pytest: not a class of tests

    def __init__(self, plan: ServerPlan, password: str = "") -> None:
        self.plan = plan
        self.password = password
        self._mongod = Mongod(plan)

    @property
    def uri(self) -> str:
        if not self.password:
            return self.plan.uri
        return self.plan.uri.replace("mongodb://", f"mongodb://{USER}:{self.password}@")

    @property
    def tcp_uri(self) -> str:
        """Only of a server with TCP, and for direct connections: the replica set knows itself by its socket."""
        assert self.plan.port, "this server has no TCP port"
        login = f"{USER}:{self.password}@" if self.password else ""
        return f"mongodb://{login}127.0.0.1:{self.plan.port}/?directConnection=true"

    @property
    def pid(self) -> int | None:
        return self._mongod.pid()

    def start(self) -> Self:
        if self._mongod.pid() is None:
            self._mongod.start(find_mongod())
        self._mongod.wait_ready()
        return self

    def stop(self) -> None:
        """Clean shutdown; the data stays."""
        self._mongod.stop()

    def kill(self) -> None:
        """SIGKILL; the data stays."""
        self._mongod.kill()

    def pause(self) -> None:
        self._mongod.pause()

    def resume(self) -> None:
        self._mongod.resume()

    def restart(self) -> None:
        self.stop()
        self.start()

    def client(self, **options: Any) -> MongoClient[dict[str, Any]]:
        """A client for looking behind the scenes; the caller closes it."""
        return MongoClient(self.uri, **{"serverSelectionTimeoutMS": 20_000, **options})


class Servers:
    """The servers of a test run (or of one test). Use as a context manager, or call close()."""

    def __init__(self) -> None:
        self.folder = private_folder("flakefs-test-")
        self._by_name: dict[str, TestServer] = {}
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def metadata(self) -> TestServer:
        return self.server("metadata", replica_set=True)

    @property
    def metadata_uri(self) -> str:
        return self.metadata.uri

    def node(self, number: int = 1) -> TestServer:
        return self.server(f"node{number}")

    def node_uri(self, number: int = 1) -> str:
        return self.node(number).uri

    def server(
        self,
        name: str,
        *,
        replica_set: bool = False,
        data: Path | None = None,
        tcp: bool = False,
        auth: bool = False,
        cache_mb: int = 256,
        more: tuple[str, ...] = (),
    ) -> TestServer:
        """The server of that name; made and started when there is none. The options count when it is made.

        *data*: a folder that takes the place of the one in the private folder (a small disk, say). *more*: arguments.
        """
        if name not in self._by_name:
            key_file = self._key_file() if auth else None
            plan = ServerPlan(
                data=data or self.folder / name,
                socket=self.folder / f"{name}.sock",
                log=self.folder / f"{name}.log",
                replica_set=REPLICA_SET if replica_set else "",
                cache_mb=cache_mb,
                oplog_mb=64,
                journal_mb=10,
                port=_free_port() if tcp else 0,
                key_file=key_file,
                more=more,
            )
            server = TestServer(plan, secrets.token_hex(8) if auth else "").start()
            self._by_name[name] = server
            if auth:
                _make_user(server)
        return self._by_name[name]

    def running(self) -> list[TestServer]:
        return [server for server in self._by_name.values() if server.pid is not None]

    def close(self) -> None:
        """Kill all and remove the folder: nobody needs the data of a test any more."""
        for server in self._by_name.values():
            server.kill()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _key_file(self) -> Path:
        path = self.folder / "key"
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        return path


def private_folder(prefix: str) -> Path:
    """A fresh folder of mode 0700 whose path may be that of sockets, whatever TMPDIR says."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    while not takes_sockets(path):
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    return path


def _make_user(server: TestServer) -> None:
    """The first user, through the localhost exception (a unix socket counts as localhost)."""
    with MongoClient[dict[str, Any]](server.plan.uri, serverSelectionTimeoutMS=20_000) as client:
        client.admin.command("createUser", USER, pwd=server.password, roles=["root"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

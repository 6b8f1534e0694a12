"""The test kit itself: servers that start, die and come back."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pymongo
import pytest
from pymongo import MongoClient

from flakefs.format.documents import Document
from flakefs.testing.servers import Servers


def test_metadata_server_has_transactions(servers: Servers, database: str) -> None:
    with servers.metadata.client() as client, client.start_session() as session, session.start_transaction():
        client[database].things.insert_one({"_id": 1}, session=session)
    with servers.metadata.client() as client:
        assert client[database].things.count_documents({}) == 1


def test_names_are_fresh(new_database: Callable[[], str]) -> None:
    assert new_database() != new_database()


def test_data_survives_stop_kill_and_pause(private_servers: Servers) -> None:
    node = private_servers.node(1)
    with node.client() as client:
        client.x.things.with_options(write_concern=pymongo.WriteConcern(1, j=True)).insert_one({"_id": 1})
    node.kill()
    assert node.pid is None
    node.start()
    node.restart()
    node.pause()
    node.resume()
    with node.client() as client:
        assert client.x.things.count_documents({}) == 1
    assert stat.S_IMODE(os.stat(node.plan.socket).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(private_servers.folder).st_mode) == 0o700


def test_auth_and_tcp(private_servers: Servers) -> None:
    server = private_servers.server("guarded", tcp=True, auth=True, replica_set=True)
    with server.client() as client:
        client.x.things.insert_one({"_id": 1})
    stranger: MongoClient[Document] = MongoClient(server.plan.uri, serverSelectionTimeoutMS=20_000)
    with stranger, pytest.raises(pymongo.errors.OperationFailure):
        stranger.x.things.find_one({})
    with MongoClient[Document](server.tcp_uri, serverSelectionTimeoutMS=20_000) as client:
        assert client.x.things.count_documents({}) == 1


def test_servers_die_with_their_process() -> None:
    program = (
        "import os; from flakefs.testing.servers import Servers; s = Servers(); s.node(1);"
        "print(s.node(1).pid, s.folder, flush=True); os._exit(1)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout
    pid, folder = printed.split()
    deadline = time.monotonic() + 60
    while os.path.exists(folder) or os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, "the guard did not clean up"
        time.sleep(0.02)


def test_servers_run_whatever_the_temporary_folder_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    awkward = tmp_path / "With Capitals, a comma and more than any socket path can take" / ("x" * 40)
    awkward.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(awkward))
    with Servers() as servers, servers.metadata.client() as client:
        assert client.admin.command("ping")

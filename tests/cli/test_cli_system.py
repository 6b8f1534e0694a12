"""format, status, nodes, fsck, gc: what they print, what they refuse, and with which status."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from pymongo import MongoClient

from flakefs.format.documents import Document
from flakefs.testing.servers import Servers
from tests.cli.conftest import Cli

CONTENT = os.urandom(300_000)


def test_nothing_there_yet(bare: Cli) -> None:
    for command in (["ls"], ["status"], ["nodes", "list"], ["put", "-", "/x"], ["fsck"], ["gc"]):
        message = bare.fails(1, *command, input=b"")
        assert "there is no" in message
        assert "flakefs format" in message
        assert bare.database in message


def test_format_says_what_it_made(bare: Cli) -> None:
    text = bare.ok(
        "format", "--chunk-size", "4M", "--codec", "lz4",
        "--node", bare.servers.node_uri(1), "--node-database", bare.node_database,
    )  # fmt: skip
    assert f"the file system {bare.database} is made: chunks of 4.0 MiB, codec lz4" in text
    status = bare.json("status")
    assert status["format"]["chunk_size"] == 4 << 20
    assert status["format"]["codec"] == "lz4"
    assert status["nodes"][0]["database"] == bare.node_database


def test_the_first_node_is_beside_the_metadata_by_default(bare: Cli) -> None:
    facts = bare.json("format")
    assert facts["database"] == bare.database
    assert facts["chunk_size"] == 1 << 20
    [node] = bare.json("nodes", "list")
    assert (node["id"], node["database"]) == (1, f"{bare.database}_chunks")
    with bare.servers.metadata.client() as client:
        client.drop_database(f"{bare.database}_chunks")


def test_format_over_a_file_system_needs_force_and_its_name(cli: Cli) -> None:
    cli.ok("put", "-", "/precious", input=CONTENT)
    before = cli.json("status")["format"]["uuid"]
    assert "--force" in cli.fails(1, "format")
    assert "nobody can be asked here; give --confirm" in cli.fails(2, "format", "--force")
    assert "'flake' is not the name" in cli.fails(2, "format", "--force", "--confirm", "flake")
    assert cli.ok("ls") == "precious\n"
    assert cli.json("status")["format"]["uuid"] == before
    cli.format("--force", "--confirm", cli.database)
    assert cli.ok("ls") == ""
    status = cli.json("status")
    assert status["format"]["uuid"] != before
    assert status["chunks"] == 0
    assert "no damage" in cli.ok("fsck")


def test_the_name_is_asked_for_on_a_terminal(cli: Cli) -> None:
    words = [sys.executable, "-m", "flakefs", "--config", str(cli.config), "format", "--force"]
    words += ["--node", cli.servers.node_uri(1), "--node-database", cli.node_database]
    for answer, status in (("nonsense", 2), (cli.database, 0)):
        leader, follower = pty.openpty()
        os.write(leader, f"{answer}\n".encode())
        done = subprocess.run(words, stdin=follower, capture_output=True, text=True, timeout=60)
        os.close(follower)
        os.close(leader)
        assert "Type its name to go on" in done.stderr
        assert done.returncode == status, done.stderr


def test_status_shows_what_is_stored_and_who_uses_it(cli: Cli) -> None:
    from flakefs.api import connect

    cli.ok("put", "-", "/a", input=CONTENT)
    cli.ok("put", "-", "/b", input=CONTENT)
    facts = cli.json("status")
    assert facts["database"] == cli.database
    assert facts["file_bytes"] == 2 * len(CONTENT)
    assert len(CONTENT) <= facts["stored_bytes"] < 1.1 * len(CONTENT)
    assert facts["names"] == 3
    assert facts["sessions"] == []
    assert facts["nodes"][0]["disk_total"] > facts["nodes"][0]["disk_free"] > 0
    text = cli.ok("status")
    for word in (cli.database, "Chunk size", "Files hold", "Nodes", "active", "Nobody uses it"):
        assert word in text
    with connect(cli.config, purpose="somebody"):
        assert cli.json("status")["sessions"][0]["where"] == "somebody"
        assert "somebody" in cli.ok("status")


def test_nodes_add_list_show_set(cli: Cli, new_database: Callable[[], str]) -> None:
    second = new_database()
    uri = cli.servers.node_uri(1)
    text = cli.ok("nodes", "add", uri, "--database", second, "--rack", "r2", "--dc", "east", "--capacity", "1.5G")
    assert "node 2 is added" in text
    listed = cli.json("nodes", "list")
    assert [(node["id"], node["rack"], node["capacity"]) for node in listed] == [(1, "", None), (2, "r2", 3 << 29)]
    assert second in cli.ok("nodes", "list")
    facts = cli.json("nodes", "set", "2", "--state", "readonly", "--rack", "r3", "--capacity", "none")
    assert (facts["state"], facts["rack"], facts["capacity"]) == ("readonly", "r3", None)
    cli.ok("put", "-", "/f", input=CONTENT)
    shown = cli.json("nodes", "show", "1")
    assert shown["chunks"] == 5
    assert [volume["nodes"] for volume in shown["volume_list"]] == [[1]]
    text = cli.ok("nodes", "show", "1")
    assert "Volumes" in text
    assert "writable" in text
    assert cli.json("nodes", "show", "2")["chunks"] == 0


def test_nodes_refusals(cli: Cli, new_database: Callable[[], str]) -> None:
    uri = cli.servers.node_uri(1)
    assert "is node 1 already" in cli.fails(2, "nodes", "add", uri, "--database", cli.node_database)
    assert "'nonsense' is not a MongoDB URI" in cli.fails(2, "nodes", "add", "nonsense")
    cli.ok("nodes", "add", uri, "--database", new_database(), "--id", "7")
    assert "7 is not free" in cli.fails(2, "nodes", "add", uri, "--database", new_database(), "--id", "7")
    assert "there is no node 5; the nodes are 1, 7" in cli.fails(2, "nodes", "show", "5")
    assert "there is no node 5" in cli.fails(2, "nodes", "set", "5", "--rack", "x")
    assert "nothing to change" in cli.fails(2, "nodes", "set", "1")
    gone = cli.servers.node_uri(1).replace(".sock/", "-gone.sock/?timeoutMS=300&serverSelectionTimeoutMS=300")
    assert "the node" in cli.fails(1, "nodes", "add", gone)
    assert [node["id"] for node in cli.json("nodes", "list")] == [1, 7]


def test_the_database_in_the_uri_is_the_nodes(cli: Cli, new_database: Callable[[], str]) -> None:
    name = new_database()
    cli.ok("nodes", "add", f"{cli.servers.node_uri(1).rstrip('/')}/{name}")
    assert cli.json("nodes", "list")[1]["database"] == name


def test_fsck_names_damage_and_ends_with_1(cli: Cli) -> None:
    cli.ok("put", "-", "/f", input=CONTENT)
    with MongoClient[Document](cli.servers.metadata_uri) as client:
        chunks = client[cli.database]["chunks"]
        chunks.update_one({}, {"$inc": {"r": 3}})
    result = cli.run("fsck")
    assert result.exit_code == 1
    assert "refcount-high" in result.stdout
    result = cli.run("fsck", "--json")
    assert result.exit_code == 1
    assert '"refcount-high"' in result.stdout
    assert "mended: refcount-high" in cli.ok("fsck", "--repair")
    assert cli.json("fsck", "--deep")["clean"] is True
    assert cli.run("cat", "/f").stdout_bytes == CONTENT


def test_gc_frees_what_nothing_refers_to(cli: Cli) -> None:
    cli.ok("put", "-", "/f", input=CONTENT)
    with MongoClient[Document](cli.servers.node_uri(1)) as client:
        home = client[cli.node_database]
        [volume] = [name for name in home.list_collection_names() if name.startswith("vol_")]
        home[volume].insert_one({"h": b"\0" * 32, "c": "none", "d": b"leaked"})
        assert "freed 0 chunks" in cli.ok("gc")
        assert "freed 1 chunks" in cli.ok("gc", "--grace", "0")
        assert home[volume].count_documents({}) == 5
    assert cli.json("gc", "--grace", "0")["chunks"] == 0
    assert "is no span of time" in cli.fails(2, "gc", "--grace", "soon")


def test_fsck_repair_and_gc_beside_a_writer(cli: Cli) -> None:
    from flakefs.api import connect

    with connect(cli.config, purpose="somebody"):
        assert "somebody" in cli.fails(1, "fsck", "--repair")
        assert "somebody" in cli.fails(1, "gc", "--grace", "0")
        assert "no damage" in cli.ok("fsck")


@pytest.mark.parametrize("uri", ["mongodb://localhost:1/?serverSelectionTimeoutMS=200", "http://localhost/"])
def test_a_metadata_server_that_is_not_there(bare: Cli, uri: str) -> None:
    bare.config.write_text(f'[metadata]\nuri = "{uri}"\ndeadline_seconds = 1\n')
    status = 1 if uri.startswith("mongodb") else 2
    message = bare.fails(status, "ls")
    assert "localhost" in message


@pytest.mark.logs
def test_a_node_that_is_gone(bare: Cli, private_servers: Servers) -> None:
    """V1, and L2."""
    bare.servers = private_servers
    bare.config.write_text(
        f'[metadata]\nuri = "{private_servers.metadata_uri}"\ndatabase = "{bare.database}"\n'
        "[engine]\nreserve_bytes = 0\ndeadline_seconds = 1\nerror_timeout_seconds = 2\n"
        "[vfs]\nerror_timeout_seconds = 2\n[namespace]\nerror_timeout_seconds = 2\n"
    )
    bare.format()
    bare.ok("put", "-", "/f", input=CONTENT)
    private_servers.node(1).kill()
    assert "node 1" in bare.fails(1, "cat", "/f")
    assert bare.ok("ls") == "f\n"
    result = bare.run("status")
    assert result.exit_code == 1
    assert "no answer" in result.stdout
    assert result.stderr.startswith("node 1 does not answer")
    message = bare.fails(1, "put", "-", "/g", input=os.urandom(300_000))
    assert "does not answer" in message or "the store has not taken the changes" in message
    private_servers.node(1).start()
    assert bare.run("cat", "/f").stdout_bytes == CONTENT
    bare.ok("put", "-", "/g", input=CONTENT)


def test_a_node_that_was_emptied_is_shown(bare: Cli) -> None:
    """V2: its server answers, and nothing of ours is there any more."""
    bare.format()
    bare.ok("put", "-", "/f", input=CONTENT)
    with bare.servers.node(1).client() as client:
        client.drop_database(bare.node_database)
    for command in (("status",), ("nodes", "list"), ("nodes", "show", "1")):
        result = bare.run(*command)
        assert result.exit_code == 1
        assert "not ours" in result.stdout
        assert "node 1 bears no mark of this file system" in result.stderr
    assert json.loads(bare.run("status", "--json").stdout)["silent_volumes"] == [1]


def test_status_says_when_nothing_can_be_stored_any_more(cli: Cli, new_database: Callable[[], str]) -> None:
    """V3: one full node of two is no trouble, two are, and with two copies one is; readonly is no accident."""
    cli.ok("put", "-", "/f", input=CONTENT)
    cli.ok("nodes", "set", "1", "--capacity", "1K")
    result = cli.run("status")
    assert result.exit_code == 1
    assert "full" in result.stdout
    assert result.stderr.startswith("new content finds no room (node 1 holds ")
    assert "1,024 bytes of its capacity" in result.stderr
    assert "no node takes new chunks" in cli.fails(1, "put", "-", "/g", input=os.urandom(300_000))
    assert json.loads(cli.run("status", "--json").stdout)["no_room"] in result.stderr
    cli.ok("nodes", "add", cli.servers.node_uri(1), "--database", new_database())
    assert "full" in cli.ok("status")
    assert "full" in cli.ok("nodes", "list")
    cli.ok("put", "-", "/g", input=os.urandom(300_000))
    cli.ok("replication", "set", "001")
    assert "new content finds no room (node 1 holds " in cli.fails(1, "status")
    cli.ok("nodes", "set", "1", "--state", "readonly")
    cli.ok("nodes", "set", "2", "--state", "readonly")
    assert "full" not in cli.ok("status")


def test_a_full_disk_is_told_before_it_is_full(cli: Cli) -> None:
    """V3, by the reserve that the engine keeps."""
    cli.config.write_text(cli.config.read_text().replace("reserve_bytes = 0", f"reserve_bytes = {1 << 60}"))
    assert "less than the reserve of" in cli.fails(1, "status")
    assert "less than the reserve of" in cli.fails(1, "put", "-", "/g", input=CONTENT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_copy_and_lets_go(cli: Cli, number: int) -> None:
    """P2, T3, A1: the session is closed."""
    command = [sys.executable, "-m", "flakefs", "--config", str(cli.config), "put", "-", "/endless"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"x" * 200_000)
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not [s for s in cli.json("status")["sessions"] if s["where"] == "flakefs put"]:
        assert time.monotonic() < deadline
    while cli.run("stat", "/endless").exit_code != 0:
        assert time.monotonic() < deadline
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, b"", b"flakefs: interrupted\n")
    assert cli.json("status")["sessions"] == []
    assert "no damage" in cli.ok("fsck")

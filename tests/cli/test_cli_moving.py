"""nodes drain, balance and remove, volumes move: what they print, their status, and that they can be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Any


@pytest.fixture
def two(cli: Cli, tmp_path: Path, new_database: Callable[[], str]) -> Cli:
    """Two nodes, and content on the first alone."""
    (tmp_path / "data").write_bytes(os.urandom(2_000_000))
    cli.ok("put", tmp_path / "data", "/data")
    cli.ok("nodes", "add", cli.servers.node_uri(1), "--database", new_database())
    return cli


def test_a_node_is_drained_and_removed(two: Cli, tmp_path: Path) -> None:
    facts = two.json("nodes", "drain", "1")
    assert facts["node"] == 1
    assert {(move["from"], move["to"]) for move in facts["moved"]} == {(1, 2)}
    assert facts["bytes"] == 2_000_000
    assert (facts["damaged_chunks"], facts["left"]) == ([], [])
    [node] = [node for node in two.json("nodes", "list") if node["id"] == 1]
    assert (node["state"], node["volumes"]) == ("draining", 0)
    assert "node 1 is empty" in two.ok("nodes", "drain", "1")
    assert two.ok("nodes", "remove", "1") == "node 1 is removed\n"
    assert "no node 1" in two.fails(2, "nodes", "remove", "1")
    assert "the only one" in two.fails(2, "nodes", "remove", "2")
    two.ok("get", "/data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()
    assert two.json("fsck", "--deep")["clean"]
    again = two.json("nodes", "add", two.servers.node_uri(1), "--database", two.node_database)
    assert again["id"] == 3, "an id is given once"


def test_what_is_refused_changes_nothing(two: Cli) -> None:
    assert "empty it first with flakefs nodes drain 1" in two.fails(2, "nodes", "remove", "1")
    two.ok("nodes", "set", "2", "--capacity", "1000")
    assert "has room" in two.fails(2, "nodes", "drain", "1")
    assert "takes no" not in two.ok("nodes", "list")
    assert "volumes move" not in two.fails(2, "volumes", "move", "1", "--from", "1", "--to", "2")
    assert "no volume 99" in two.fails(2, "volumes", "move", "99", "--from", "1", "--to", "2")
    assert "no node 9" in two.fails(2, "nodes", "drain", "9")
    assert "no share" in two.fails(2, "nodes", "balance", "--threshold", "much")
    assert {node["state"] for node in two.json("nodes", "list")} == {"active"}


def test_one_volume_moves(two: Cli) -> None:
    [volume] = {volume["id"] for volume in two.json("nodes", "show", "1")["volume_list"] if volume["chunks"]}
    said = two.ok("volumes", "move", str(volume), "--from", "1", "--to", "2")
    assert f"volume {volume} lies on node 2" in said
    assert volume in {entry["id"] for entry in two.json("nodes", "show", "2")["volume_list"]}
    assert two.json("fsck", "--deep")["clean"]


def test_a_volume_too_large_to_be_even(two: Cli) -> None:
    """Status 1, and the reason."""
    for number in ("1", "2"):
        two.ok("nodes", "set", number, "--capacity", "10M")
    result = two.run("nodes", "balance")
    assert result.exit_code == 1
    assert "no move helps" in result.stdout
    assert two.json("fsck", "--deep")["clean"]


def test_balance_evens_out(two: Cli, tmp_path: Path) -> None:
    for number in ("1", "2"):
        two.ok("nodes", "set", number, "--capacity", "10M")
    two.ok("nodes", "set", "1", "--state", "readonly")
    (tmp_path / "more").write_bytes(os.urandom(1_900_000))
    two.ok("put", tmp_path / "more", "/more")
    two.ok("nodes", "set", "1", "--state", "active")
    facts = two.json("nodes", "balance")
    assert facts["even"]
    assert [node["node"] for node in facts["nodes"]] == [1, 2]
    assert all(abs(node["fill"] - facts["mean"]) <= 0.1 * facts["mean"] for node in facts["nodes"])


def test_the_files_that_a_dead_node_takes_along_are_named(two: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flakefs.tools.chunks.REACH_SECONDS", 1.0)
    monkeypatch.setattr("flakefs.tools.fleet.REACH_SECONDS", 1.0)
    with two.servers.metadata.client() as client:
        dead = {"$set": {"uri": "mongodb://127.0.0.1:9/"}}
        client[two.database]["nodes"].update_one({"_id": 1}, dead)
    result = two.run("nodes", "remove", "1")
    assert result.exit_code == 1
    assert "node 1 is dead" in result.stdout
    assert "/data" in result.stdout
    assert "--force" in result.stderr
    result = two.run("nodes", "remove", "1", "--force", "--json")
    assert result.exit_code == 0, result.stderr
    assert '"path": "/data"' in result.stdout
    assert [node["id"] for node in two.json("nodes", "list")] == [2]


def test_an_interrupted_drain_goes_on(two: Cli) -> None:
    """Ctrl-C: status 130, a word that nothing is lost, no lease left."""
    command = [sys.executable, "-m", "flakefs", "--config", str(two.config), "nodes", "drain", "1", "--rate", "100K"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with two.servers.metadata.client() as client:
        volumes = client[two.database]["volumes"]
        while volumes.find_one({"work": {"$exists": True}}) is None:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "the same command goes on from here" in said
        assert "Traceback" not in said
        assert volumes.find_one({"work": {"$exists": True}}) is None
    two.ok("nodes", "drain", "1")
    assert two.json("fsck", "--deep")["clean"]

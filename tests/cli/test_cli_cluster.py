"""flakefs cluster: servers that are started, killed, started again, and taken away (LC1, LC2, LC4, CD1, CD2)."""

from __future__ import annotations

import json
import socket
import stat
from collections import Counter
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from flakefs.app.cluster import labels
from flakefs.cli.root import root
from flakefs.mongo.binaries import find_mongod
from flakefs.mongo.cluster import MARK, LocalCluster, NodeLabel, describe
from flakefs.testing.servers import Servers


class ClusterCli:
    """Runs commands for one cluster folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Path | None = None

    def run(self, *words: str, status: int = 0) -> str:
        """stdout, or with another *status* stderr."""
        first = ["--config", str(self.config)] if self.config else []
        done = CliRunner().invoke(root, [*first, *words])
        assert done.exit_code == status, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stdout + done.stderr

    def dev(self, *words: str, status: int = 0) -> str:
        return self.run("cluster", "dev", "--dir", str(self.folder), *words, status=status)

    def states(self, status: int = 0) -> dict[str, str]:
        return {
            member["name"]: member["state"]
            for member in json.loads(self.run("cluster", "status", "--json", status=status))
        }

    def processes(self) -> list[int]:
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if any(f"{self.folder}/" in word for word in process.info["cmdline"] or ())
        ]


@pytest.fixture
def place(private_servers: Servers, monkeypatch: pytest.MonkeyPatch) -> ClusterCli:
    """A cluster folder in a folder whose servers are killed whatever happens."""
    monkeypatch.delenv("FLAKEFS_CONFIG", raising=False)
    monkeypatch.chdir(private_servers.folder)
    return ClusterCli(private_servers.folder / "c")


def test_the_life_of_a_cluster(place: ClusterCli, tmp_path: Path) -> None:
    said = place.dev("-n", "2", "--racks", "2", "--replication", "010", "--database", "trial")
    place.config = place.folder / "flakefs.conf"
    assert f"next: flakefs --config {place.config} mount" in said
    assert stat.S_IMODE(place.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert sorted(place.states().values()) == ["primary", "secondary", "secondary", "standalone", "standalone"]
    for pid in place.processes():  # LC4
        assert not [c for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    content = tmp_path / "content"
    content.write_bytes(bytes(range(256)) * 4096)
    place.run("put", str(content), "/first")

    running = place.processes()
    assert "started" not in place.dev(), "repeated: everything is there"
    assert place.processes() == running
    assert "node3 in dc1, r1" in place.dev("-n", "3", "--racks", "2")
    nodes = json.loads(place.run("nodes", "list", "--json"))
    assert [(node["dc"], node["rack"]) for node in nodes] == [("dc1", "r1"), ("dc1", "r2"), ("dc1", "r1")]

    assert place.run("cluster", "kill", "node2") == "node2 is killed\n"
    assert place.run("cluster", "kill", "node2") == "node2 was not running\n"
    assert place.states(1)["node2"] == "stopped"
    assert place.run("cluster", "start", "node2") == "started node2\n"
    assert place.run("cluster", "pause", "node3") == "node3 is paused\n"
    assert place.states(1)["node3"] == "no answer"
    assert place.run("cluster", "resume", "node3") == "node3 goes on\n"

    primary = next(name for name, state in place.states().items() if state == "primary")
    place.run("cluster", "kill", primary)
    place.run("put", str(content), "/second")  # waits for the election
    place.run("cluster", "start")
    assert place.run("cat", "/first") == place.run("cat", "/second")

    place.run("cluster", "stop")
    assert not place.processes()
    assert set(place.states(1).values()) == {"stopped"}
    assert place.run("cluster", "stop") == "nothing was running\n"
    place.run("cluster", "start")
    assert place.run("ls", "/").split() == ["first", "second"]
    assert "0 orphans" in place.run("fsck")
    place.run("cluster", "stop", "--remove")
    assert not place.folder.exists()
    assert not place.processes()


def test_sentences(place: ClusterCli, monkeypatch: pytest.MonkeyPatch) -> None:
    place.folder.mkdir()
    (place.folder / "letters").write_text("dear mongo")
    assert "holds other things" in place.dev(status=2)
    assert [path.name for path in place.folder.iterdir()] == ["letters"], "LC1"
    place.run("cluster", "stop", "--remove", "--dir", str(place.folder), status=2)
    assert (place.folder / "letters").exists(), "LC1"
    (place.folder / "letters").unlink()

    where = ("--dir", str(place.folder))
    assert "there is no cluster in" in place.run("cluster", "status", *where, status=2)
    assert "cannot be a database" in place.dev("--database", "a/b", status=2)
    assert "no replication code" in place.dev("--replication", "9", status=2)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.setattr("flakefs.mongo.binaries.PACKAGE", "no_such_package.db")
        assert "no mongod was found" in place.dev(status=1)

    describe(place.folder, "trial", labels([], 2, 1, 1))
    assert "has the database 'trial', not 'other'" in place.dev("--database", "other", status=2)
    assert "has 2 nodes, more than 1" in place.dev("-n", "1", status=2)
    assert "no member 'node9'; it has meta1" in place.run("cluster", "kill", "node9", *where, status=2)
    place.folder.rename(place.folder.with_name("moved"))
    moved = place.run("cluster", "status", "--dir", str(place.folder.with_name("moved")), status=2)
    assert f"was made in {place.folder}" in moved
    place.folder.with_name("moved").rename(place.folder)
    (place.folder / MARK).write_text("{")
    assert "cannot be read" in place.run("cluster", "status", *where, status=2)
    assert not place.processes()


def test_a_start_that_fails_leaves_no_process(place: ClusterCli) -> None:
    place.folder.mkdir()
    describe(place.folder, "trial", labels([], 1, 1, 1))
    taken = LocalCluster(place.folder).nodes["node1"].plan.socket
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(taken))
        stranger.listen()
        assert f"the socket {taken} is in use by another program" in place.dev(status=1)
    assert not place.processes(), "LC2"
    taken.unlink()
    assert "replication 001 cannot be kept by the 1 node there is" in place.dev("--replication", "001", status=2)
    assert not place.processes(), "CD2"


def test_it_goes_on_where_it_was_killed(place: ClusterCli) -> None:
    """The worst moment: all servers run, and nobody has made a replica set of them."""
    place.folder.mkdir()
    describe(place.folder, "trial", labels([], 1, 1, 1))
    for server in LocalCluster(place.folder).servers.values():
        server.start(find_mongod())
        server.wait_ready()
    place.dev()
    place.config = place.folder / "flakefs.conf"
    assert "no damage" in place.run("fsck")
    place.run("cluster", "stop", "--remove")


def test_nodes_are_spread_evenly() -> None:
    spread = labels([], 12, 3, 2)
    assert Counter((label.dc, label.rack) for label in spread) == {
        (f"dc{dc}", f"r{rack}"): 2 for dc in (1, 2, 3) for rack in (1, 2)
    }, "CD1"
    have = [NodeLabel("node1", "east", "r7")]
    assert labels(have, 2, 2, 1) == [*have, NodeLabel("node2", "dc2", "r1")]

"""Servers with passwords, and users that may only read: what is stored, shown and said (SE1, SE2, C6, L6)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bson import encode

from flakefs.testing.servers import Servers, TestServer

READER, READER_SECRET = "reader", "may/only@read"


@pytest.fixture(scope="module")
def locked() -> Iterator[Servers]:
    """A metadata server and a node that want a password."""
    with Servers() as running:
        running.server("metadata", replica_set=True, auth=True)
        running.server("node1", auth=True)
        yield running


class Place:
    """Configurations and processes of one test; every secret is in the environment or a file."""

    def __init__(self, servers: Servers, folder: Path, database: str) -> None:
        self.servers = servers
        self.folder = folder
        self.database = database
        self.environment = os.environ | {
            "NODE_USER": "flake",
            "NODE_SECRET": servers.node(1).password,
            "XDG_STATE_HOME": str(folder / "state"),
            "PYTHONWARNINGS": "error",
        }
        (folder / "secret").write_text(servers.metadata.password + "\n")
        self.config = self.write("flakefs.conf", referring(servers.metadata, f"${{file:{folder}/secret}}"))
        self.node = referring(servers.node(1), "${env:NODE_SECRET}", user="${env:NODE_USER}")

    def write(self, name: str, uri: str, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_text(f"[metadata]\nuri = {json.dumps(uri)}\ndatabase = {json.dumps(self.database)}\n")
        path.chmod(mode)
        return path

    def flake(self, *words: str | Path, config: Path | None = None, status: int = 0, **more: str) -> str:
        """What a command prints, in a process of its own; none of the secrets is in it."""
        done = subprocess.run(
            [sys.executable, "-m", "flakefs", "--config", str(config or self.config), *map(str, words)],
            capture_output=True, text=True, env=self.environment | more, timeout=100,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        self.check_silent(said)
        assert "Traceback" not in said
        assert status == 0 or len(done.stderr.strip().splitlines()) == 1
        return said

    def check_silent(self, text: str) -> None:
        for server in (self.servers.metadata, self.servers.node(1)):
            assert server.password not in text, "SE2"
        assert READER_SECRET not in text

    def documents(self) -> bytes:
        """Everything in the metadata database."""
        with self.servers.metadata.client() as client:
            home = client[self.database]
            return b"".join(encode(x) for name in home.list_collection_names() for x in home[name].find({}))


def referring(server: TestServer, secret: str, user: str = "flake") -> str:
    return server.plan.uri.replace("mongodb://", f"mongodb://{user}:{secret}@")


@pytest.fixture
def place(locked: Servers, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(locked, tmp_path, f"s{os.getpid()}_{abs(hash(request.node.name)) % 10**6}")
    yield made
    for server in locked.running():
        with server.client() as client:
            for name in (made.database, f"{made.database}_chunks", f"{made.database}_more"):
                client.drop_database(name)


def test_no_secret_is_stored_or_shown(place: Place, tmp_path: Path) -> None:
    place.flake("format", "--node", place.node)
    nodes = json.loads(place.flake("nodes", "list", "--json"))
    assert nodes[0]["uri"] == "mongodb://${env:NODE_USER}:${env:NODE_SECRET}@" + nodes[0]["uri"].partition("@")[2]
    clear = place.servers.node(1).uri
    assert "has its password in clear" in place.flake("nodes", "add", f"{clear}{place.database}_more", status=2)
    assert "has its password in clear" in place.flake(
        "format", "--force", "--confirm", place.database, "--node", clear, status=2
    )
    place.flake("nodes", "add", f"{place.node.rstrip('/')}/{place.database}_more?authSource=admin")
    assert "variable NODE_SECRET, which" in place.flake("nodes", "show", "1", status=1, NODE_SECRET="")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3 << 20))
    folder, log = tmp_path / "mnt", tmp_path / "log"
    place.flake("mount", "-o", f"log={log}", folder)
    try:
        (folder / "file").write_bytes(file.read_bytes())
        for words in (["status"], ["status", "--json"], ["nodes", "show", "1"], ["nodes", "show", "2", "--json"]):
            place.flake(*words)
        lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        assert any(str(folder) in line for line in lines)
        place.check_silent("\n".join(lines))
    finally:
        place.flake("umount", folder)
    place.check_silent(log.read_text())
    assert place.flake("get", "/file", tmp_path / "back") == ""
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    place.flake("fsck")
    stored = place.documents()
    assert place.servers.node(1).password.encode() not in stored, "SE1"
    assert place.servers.metadata.password.encode() not in stored, "SE1"


def test_a_password_in_the_configuration(place: Place) -> None:
    clear = place.write("clear.conf", place.servers.metadata.uri)
    assert "warning" not in place.flake("format", config=clear), "C6"
    assert json.loads(place.flake("nodes", "list", "--json", config=clear))[0]["uri"] == "metadata"
    assert place.servers.metadata.password.encode() not in place.documents()
    (place.folder / "file").write_bytes(bytes(1 << 20))
    place.flake("put", place.folder / "file", "/", config=clear)
    place.flake("fsck", config=clear)
    clear.chmod(0o644)
    assert f"{clear} holds a password and others can read it: chmod 600 it" in place.flake("ls", "/", config=clear), (
        "C6"
    )
    wrong = place.write("wrong.conf", referring(place.servers.metadata, "${env:GUESS}"))
    assert "does not let us in" in place.flake("ls", "/", config=wrong, status=1, GUESS="guessed")
    assert "GUESS, which" in place.flake("ls", "/", config=wrong, status=2)


def test_a_user_that_may_only_read(place: Place, tmp_path: Path) -> None:
    place.flake("format", "--node", place.node)
    for server, name in ((place.servers.metadata, place.database), (place.servers.node(1), f"{place.database}_chunks")):
        with server.client() as client:
            roles = [{"role": "read", "db": name}]
            client.admin.command("createUser", READER, pwd=READER_SECRET, roles=roles)
    content = os.urandom((5 << 20) + 7)
    (tmp_path / "file").write_bytes(content)
    place.flake("put", tmp_path / "file", "/")
    reader = place.write("reader.conf", referring(place.servers.metadata, "${env:READER_SECRET}", READER))
    environment = {"READER_SECRET": READER_SECRET, "NODE_USER": READER, "NODE_SECRET": READER_SECRET}

    def read(*words: str | Path, status: int = 0) -> str:
        return place.flake(*words, config=reader, status=status, **environment)

    assert "-rw" in read("ls", "-l", "/")
    folder, log = tmp_path / "mnt", tmp_path / "log"
    said = read("mount", "-o", f"log={log}", folder, status=1)
    assert f"may not write into database {place.database}: mount with -o ro" in said
    read("mount", "-o", f"ro,log={log}", folder)
    try:
        assert os.listdir(folder) == ["file"]
        assert hashlib.sha256((folder / "file").read_bytes()).digest() == hashlib.sha256(content).digest()
        with pytest.raises(OSError, match="Read-only file system"):
            (folder / "new").write_bytes(b"x")
        with pytest.raises(OSError, match="Read-only file system"):
            (folder / "file").unlink()
        (tmp_path / "second").write_bytes(b"seen by the reader")
        place.flake("put", tmp_path / "second", "/")
        deadline = time.monotonic() + 60
        while not (folder / "second").exists() and time.monotonic() < deadline:
            time.sleep(0.05)  # a read-only mount trusts what it knows for a second
        assert (folder / "second").read_bytes() == b"seen by the reader"
        assert read("status", "--json")
    finally:
        read("umount", folder)
    assert " WARNING " not in log.read_text()
    assert log.read_text().count(" ERROR ") == 1, "of the attempt to mount it writable"
    place.check_silent(log.read_text())
    place.flake("fsck")

"""How the layers are stacked (app.stack), memory, the embedded servers, and names on a terminal."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

import flakefs
from flakefs.api import pieces
from flakefs.app.stack import database_of, metadata_door, open_filesystem, open_stack
from flakefs.cli import output
from flakefs.config import Config
from flakefs.engine import EngineOptions
from flakefs.engine.admin import create_filesystem
from flakefs.errors import ConfigError, NotFormatted, NotFound
from flakefs.format.documents import Document
from flakefs.format.records import NodeRecord
from flakefs.mongo.embedded import EmbeddedOptions, embedded_servers, hold
from flakefs.namespace import schema
from flakefs.testing.servers import Servers, private_folder
from flakefs.vfs import Caller
from flakefs.vfs.paths import resolve

CHUNK = 64 * 1024


def formatted(config: Config, node_uri: str, node_database: str) -> Config:
    with metadata_door(config, purpose="format") as (door, resolver):
        create_filesystem(
            door, config.database, chunk_size=CHUNK, codec="zstd", first_node_uri=node_uri,
            first_node_database=node_database, resolve=resolver, prepare=schema.create,
        )  # fmt: skip
    return config


@pytest.fixture
def config(servers: Servers, new_database: Any) -> Config:
    config = Config(metadata_uri=servers.metadata_uri, database=new_database(), engine=EngineOptions(reserve_bytes=0))
    return formatted(config, servers.node_uri(1), new_database())


def session_states(config: Config) -> list[str]:
    with MongoClient[Document](config.metadata_uri) as client:
        return [document["state"] for document in client[config.database]["sessions"].find().sort("_id")]


async def test_an_error_in_the_body_leaves_as_itself_and_the_session_is_closed(config: Config) -> None:
    """A1, A4."""

    async def use() -> None:
        async with open_filesystem(config, kind="tool", writable=True, where="a test") as fs:
            assert session_states(config) == ["alive"]
            await fs.mkdir(1, b"kept", 0o755, Caller(0, 0))
            await resolve(fs, b"/x")

    with pytest.raises(NotFound, match="there is no /x"):
        await use()
    assert session_states(config) == ["dead"]
    async with open_filesystem(config, kind="tool", writable=False) as fs:
        assert (await resolve(fs, b"/kept")).nlink == 2


async def test_namespace_and_engine_have_clients_of_their_own(config: Config) -> None:
    """A3, seen from the server."""
    async with open_stack(config, kind="tool", writable=True) as stack:
        await stack.fs.sync()
        with MongoClient[Document](config.metadata_uri) as client:
            pipeline = [{"$currentOp": {"allUsers": True, "idleConnections": True}}]
            names = {row.get("appName") for row in client.admin.aggregate(pipeline)}
    assert {"flakefs-tool", "flakefs-tool-index"} <= names


def test_nothing_is_registered_where_there_is_no_file_system(servers: Servers, database: str) -> None:
    config = Config(metadata_uri=servers.metadata_uri, database=database)
    with pytest.raises(NotFormatted):
        flakefs.connect(config)
    assert session_states(config) == []


def test_an_embedded_node_needs_the_embedded_servers(config: Config) -> None:
    with (
        metadata_door(config, purpose="test") as (_, resolver),
        pytest.raises(ConfigError, match="node 1 is the embedded one"),
    ):
        resolver(NodeRecord(id=1, uri="embedded", database="x"))


def test_embedded_servers_run_as_long_as_somebody_uses_them(tmp_path: Path) -> None:
    """A2."""
    embedded = EmbeddedOptions(data=str(tmp_path / "data"), metadata_cache_mb=256, node_cache_mb=256)
    config = Config(embedded=embedded, engine=EngineOptions(reserve_bytes=0))
    formatted(config, "embedded", "flakefs_chunks")
    content = os.urandom(3 * CHUNK)
    with flakefs.connect(config) as fs:
        fs.put(io.BytesIO(content), "/f")
        fs.sync()
        with flakefs.connect(config, read_only=True) as reader:
            assert reader.listdir() == ["f"]
        assert fs.stat("/f").size == len(content)
    with flakefs.connect(config, read_only=True) as fs:
        assert b"".join(piece.data for piece in fs.chunks("/f")) == content
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
    assert not [command for command in commands if bytes(tmp_path) in command]


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("mongodb://host/name", "name"),
        ("mongodb://u:p@a,b/my%2Dname?x=y", "my-name"),
        ("mongodb://host/", ""),
        ("mongodb://host", ""),
        ("embedded", ""),
    ],
)
def test_the_database_a_uri_names(uri: str, name: str) -> None:
    assert database_of(uri) == name


def test_a_batch_of_pieces_is_bounded(config: Config) -> None:
    """B2."""
    content = os.urandom(CHUNK) * 400
    with flakefs.connect(config) as fs:
        fs.put(io.BytesIO(content), "/f")
        ino = fs.stat("/f").file_id
        start: int | None = 0
        total = 0
        while start is not None:
            batch, start = fs.run(pieces.batch, ino, start)
            size = sum(len(piece.data) for piece in batch)
            assert size <= pieces.BATCH_BYTES + CHUNK
            total += size
        assert total == len(content)


def test_memory_does_not_depend_on_the_size_of_a_file(config: Config, tmp_path: Path) -> None:
    """T1: a stream ten times as large as all buffers together."""
    path = tmp_path / "f.conf"
    path.write_text(
        f'[metadata]\nuri = "{config.metadata_uri}"\ndatabase = "{config.database}"\n'
        '[engine]\nreserve_bytes = 0\nchunk_cache_bytes = "8 MiB"\n[vfs]\ndirty_bytes = "8 MiB"\n'
    )
    code = (
        "import io, os, resource, sys, flakefs\n"
        "class Endless(io.RawIOBase):\n"
        "    left = 300\n"
        "    def read(self, size=-1):\n"
        "        self.left -= 1\n"
        "        return os.urandom(64) * 16384 if self.left >= 0 else b''\n"
        f"with flakefs.connect({str(path)!r}) as fs:\n"
        "    fs.put(io.BytesIO(b'warm' * 3_000_000), '/warm')\n"
        "    fs.sync()\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    assert fs.put(Endless(), '/f') == 300 << 20\n"
        "    assert fs.get('/f', open(os.devnull, 'wb')) == 300 << 20\n"
        "    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150, "MiB more than before"


def test_names_on_a_terminal_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """J2."""
    assert output.name(b"a\x1b[2Jb\xff") == os.fsdecode(b"a\x1b[2Jb\xff")
    monkeypatch.setattr("sys.stdout", Terminal())
    assert output.name(b"a\x1b[2Jb\xff\n") == "a\\x1b[2Jb\\xff\\n"
    assert output.name("grün".encode()) == "grün"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_p4_a_command_that_waits_for_a_hanging_server_can_be_ended(private_servers: Servers, number: int) -> None:
    """At once: the deadlines here are longer than the test may take."""
    config = private_servers.folder / "test.conf"
    config.write_text(
        f'[metadata]\nuri = "{private_servers.metadata_uri}"\ndatabase = "test"\ndeadline_seconds = 600\n'
        "[engine]\nreserve_bytes = 0\n"
    )
    command = [sys.executable, "-m", "flakefs", "--config", str(config)]
    subprocess.run([*command, "format", "--node", private_servers.node_uri(1)], check=True, capture_output=True)
    private_servers.metadata.pause()
    socket = private_servers.metadata.plan.socket
    before = connections(socket)
    process = subprocess.Popen([*command, "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until_connected(socket, before)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    private_servers.metadata.resume()


def test_p4_a_command_that_waits_for_the_embedded_servers_can_be_ended(tmp_path: Path) -> None:
    """And holds them no longer: the last one who leaves stops them."""
    folder = private_folder("flakefs-api-")
    options = EmbeddedOptions(data=str(folder / "data"))
    config = folder / "test.conf"
    config.write_text(f'[embedded]\ndata = "{options.data}"\n[engine]\nreserve_bytes = 0\n')
    command = [sys.executable, "-m", "flakefs", "--config", str(config)]
    subprocess.run([*command, "format"], check=True, capture_output=True)
    try:
        with hold(options):
            metadata = embedded_servers(options)[1][0]
            metadata.pause()
            before = connections(metadata.plan.socket)
            process = subprocess.Popen([*command, "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            until_connected(metadata.plan.socket, before)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)  # ANSWER_SECONDS is longer
            assert process.returncode == 128 + signal.SIGTERM
            metadata.resume()
        assert [server.pid() for server in embedded_servers(options)[1]] == [None, None]
    finally:
        for server in embedded_servers(options)[1]:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def connections(socket: Path) -> int:
    """How many ends of connections have this name, the listening one included."""
    return sum(line.endswith(f" {socket}") for line in Path("/proc/net/unix").read_text().splitlines())


def until_connected(socket: Path, before: int) -> None:
    """Return when there is a further connection: somebody asks, and gets no answer."""
    deadline = time.monotonic() + 60
    while connections(socket) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.02)

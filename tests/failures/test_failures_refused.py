"""Servers that cannot be reached or do not let us in: one sentence that says which and why, without the password."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from flakefs.testing.mounted import Mount
from flakefs.testing.servers import Servers


@pytest.fixture(scope="module")
def locked() -> Iterator[Servers]:
    """A metadata server and a node that want a password."""
    with Servers() as running:
        running.server("metadata", replica_set=True, auth=True)
        running.server("node1", auth=True)
        yield running


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port at which nobody listens, held so that nobody else takes it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def says(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode in (1, 2), done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert re.search(word, done.stderr), f"{word!r} is not in {done.stderr!r}"


COMMANDS = [("status",), ("fsck",), ("ls", "/"), ("format",)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_metadata_server_that_is_not_there(new_mount: Callable[..., Mount], nobody: int, command: tuple[str]) -> None:
    mount = new_mount(start=False)
    here = mount.config.read_text()
    mount.config.write_text(f'[metadata]\nuri = "mongodb://flake:secret@127.0.0.1:{nobody}/"\ndeadline_seconds = 1.0\n')
    done = mount.cli(*command, check=False)
    says(done, "does not answer", str(nobody))
    assert "secret" not in done.stderr
    mount.config.write_text(here)


def test_mounting_from_a_server_that_is_not_there(new_mount: Callable[..., Mount], nobody: int) -> None:
    mount = new_mount(start=False)
    here = mount.config.read_text()
    mount.config.write_text(f'[metadata]\nuri = "mongodb://flake:secret@127.0.0.1:{nobody}/"\ndeadline_seconds = 1.0\n')
    done = mount.cli("mount", "-o", f"log={mount.log}", str(mount.path), check=False)
    says(done, "does not answer", str(nobody))
    assert "secret" not in done.stderr + mount.log_text()
    assert not mount.is_mounted
    mount.expect_log("not mounted: ")
    mount.config.write_text(here)


def test_a_wrong_password(new_mount: Callable[..., Mount], locked: Servers) -> None:
    mount = new_mount(start=False)
    here = mount.config.read_text()
    good = locked.metadata.uri
    wrong = good.replace(locked.metadata.password, "guessed")
    assert wrong != good
    for uri, words in ((wrong, "does not let us in"), (locked.metadata.plan.uri, "does not let us in|not let")):
        mount.config.write_text(f'[metadata]\nuri = "{uri}"\n')
        for command in (("status",), ("mount", "-o", f"log={mount.log}", str(mount.path))):
            done = mount.cli(*command, check=False)
            says(done, words, "password")
            assert "guessed" not in done.stderr + mount.log_text()
    assert not mount.is_mounted
    mount.expect_log("not mounted: ")
    mount.config.write_text(here)


def test_nodes_that_cannot_be_used_are_not_added(
    monkeypatch: pytest.MonkeyPatch, new_mount: Callable[..., Mount], locked: Servers, nobody: int
) -> None:
    monkeypatch.setenv("WRONG_SECRET", "guessed")
    node = locked.node(1)
    monkeypatch.setenv("NODE_SECRET", node.password)
    mount = new_mount()
    good = node.uri.replace(node.password, "${env:NODE_SECRET}")
    wrong = node.uri.replace(node.password, "${env:WRONG_SECRET}")
    for uri, words in (
        (f"mongodb://127.0.0.1:{nobody}/chunks?timeoutMS=1500", "does not answer"),
        (f"{wrong.rstrip('/')}/chunks?authSource=admin", "does not let us in"),
        (f"{node.plan.uri.rstrip('/')}/chunks", "does not let us in"),
        (f"{node.uri.rstrip('/')}/chunks?authSource=admin", "has its password in clear"),
        ("http://127.0.0.1/chunks", "is not a MongoDB URI"),
        ("mongodb://[::1/chunks", "is not a usable MongoDB URI"),
    ):
        done = mount.cli("nodes", "add", uri, check=False)
        says(done, words)
        assert "guessed" not in done.stderr
        assert node.password not in done.stderr
    with mount.servers.metadata.client() as client:
        assert client[mount.database]["nodes"].count_documents({}) == 1
    mount.cli("nodes", "add", f"{good.rstrip('/')}/{mount.node_database}_2?authSource=admin")
    with mount.servers.metadata.client() as client:
        assert client[mount.database]["nodes"].count_documents({}) == 2
    (mount.path / "file").write_bytes(bytes(range(256)) * 40_000)
    assert node.password not in mount.log_text()

"""replication get, set, unset; put --replication; format --replication; what status and stat say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.app.replication import meaning
from tests.cli.conftest import Cli

CHUNK = 64 * 1024
CONTENT = os.urandom(2 * CHUNK)


@pytest.fixture
def three(cli: Cli, new_database: Callable[[], str]) -> Cli:
    """Three nodes: two in rack r1, one in rack r2."""
    cli.ok("nodes", "set", "1", "--rack", "r1")
    for rack in ("r1", "r2"):
        cli.ok("nodes", "add", cli.servers.node_uri(1), "--database", new_database(), "--rack", rack)
    return cli


def codes(cli: Cli, path: str) -> list[tuple[str, int]]:
    """(code, number of nodes) of each chunk."""
    [facts] = cli.json("stat", path)
    return [(chunk["replication"], len(chunk["nodes"])) for chunk in facts["chunks"]]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("000", "one copy"),
        ("001", "2 copies, 1 on another node of the rack"),
        ("210", "4 copies, 2 in other data centers and 1 on another rack"),
        ("012", "4 copies, 1 on another rack and 2 on other nodes of the rack"),
    ],
)
def test_codes_in_words(code: str, words: str) -> None:
    assert meaning(code) == words


def test_a_new_file_system_has_one_copy(bare: Cli) -> None:
    assert "is no replication code" in bare.fails(2, "format", "--replication", "9")
    assert "flakefs replication set 010" in bare.fails(2, "format", "--replication", "010")
    bare.format("--replication", "000")
    assert bare.ok("replication", "get") == "000: one copy\n"


def test_the_code_of_the_file_system(three: Cli) -> None:
    three.ok("put", "-", "/before", input=CONTENT)
    assert "is no replication code" in three.fails(2, "replication", "set", "0010")
    assert "further data center" in three.fails(2, "replication", "set", "100")
    assert three.json("replication", "get")["code"] == "000"
    text = three.ok("replication", "set", "010")
    assert "is 010 now: 2 copies, 1 on another rack" in text
    found = three.json("replication", "get")
    short = found["short_volumes"]
    assert (found["code"], found["copies"], found["problem"]) == ("010", 2, "")
    assert {chunk["volume"] for chunk in three.json("stat", "/before")[0]["chunks"]} <= set(short)
    assert f"{len(short)} of {found['volumes']} volumes" in text
    assert "short of copies: flakefs nodes repair makes them" in text
    three.ok("put", "-", "/after", input=os.urandom(CHUNK))
    assert codes(three, "/after") == [("010", 2)]
    assert codes(three, "/before") == [("000", 1)] * 2
    assert "short of copies: flakefs nodes repair" in three.ok("status")
    facts = three.json("status")
    assert (facts["format"]["replication"], facts["short_volumes"], facts["silent_nodes"]) == ("010", short, [])
    three.ok("nodes", "set", "3", "--state", "readonly")
    assert "missing is 1 further rack" in three.ok("replication", "get")


def test_codes_of_folders_and_files(three: Cli) -> None:
    three.ok("mkdir", "/folder")
    assert three.ok("replication", "set", "001", "/folder") == "/folder: 001, for what is written from now on\n"
    three.ok("put", "-", "/folder/file", input=CONTENT)
    three.ok("put", "-", "/plain", input=CONTENT)
    assert codes(three, "/folder/file") == [("001", 2)] * 2
    assert codes(three, "/plain") == [("000", 1)] * 2
    assert three.json("stat", "/folder/file")[0]["checksum"] == three.json("stat", "/plain")[0]["checksum"]
    assert (
        three.json("stat", "/folder/file")[0]["chunks"][0]["hash"]
        == three.json("stat", "/plain")[0]["chunks"][0]["hash"]
    )
    assert three.json("stat", "/folder")[0]["attributes"] == {"user.flakefs.replication": "001"}
    assert three.json("replication", "get", "/folder/file", "/") == [
        {"path": "/folder/file", "code": "001", "own": True},
        {"path": "/", "code": "000", "own": False},
    ]
    assert three.ok("replication", "unset", "/folder") == "/folder: 000, for what is written from now on\n"
    assert three.ok("replication", "get", "/folder") == "/folder: 000 (that of the file system)\n"
    assert "has no replication code of its own" in three.fails(1, "replication", "unset", "/folder")
    assert "further data center" in three.fails(1, "replication", "set", "100", "/folder")
    assert "there is no /nothing" in three.fails(1, "replication", "get", "/nothing")
    assert "no damage" in three.ok("fsck", "--deep")


def test_put_with_a_code(three: Cli, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(CONTENT)
    three.ok("put", "-r", "--replication", "010", tree, "/")
    assert codes(three, "/tree/sub/file") == [("010", 2)] * 2
    assert three.ok("replication", "get", "/tree/sub") == "/tree/sub: 010 (its own)\n"
    three.ok("put", "--replication", "001", "-", "/stream", input=CONTENT)
    assert codes(three, "/stream") == [("001", 2)] * 2
    three.ok("put", "--replication", "010", "-", "/stream", input=CONTENT)
    assert codes(three, "/stream") == [("010", 2)] * 2, "what is there gets the code, too"
    assert "is no replication code" in three.fails(2, "put", "--replication", "x", tree / "sub" / "file", "/")
    assert "further data center" in three.fails(1, "put", "--replication", "100", tree / "sub" / "file", "/new")
    assert "there is no /new" in three.fails(1, "stat", "/new"), "RC1: nothing was made"
    assert "no damage" in three.ok("fsck", "--deep")


def test_an_archive_keeps_codes_where_they_can_be_kept(three: Cli, tmp_path: Path) -> None:
    for name, code in (("kept", b"001"), ("lost", b"100")):
        (tmp_path / name).write_bytes(CONTENT)
        os.setxattr(tmp_path / name, "user.flakefs.replication", code)
    three.ok("put", "-a", tmp_path / "kept", "/")
    assert codes(three, "/kept") == [("001", 2)] * 2
    assert "/lost is copied without the replication of its source" in three.fails(
        1, "put", "-a", tmp_path / "lost", "/"
    )
    assert codes(three, "/lost") == [("000", 1)] * 2
    assert three.run("cat", "/lost").stdout_bytes == CONTENT
    three.ok("get", "-a", "/kept", tmp_path / "back")
    assert os.getxattr(tmp_path / "back", "user.flakefs.replication") == b"001"

"""scrub, nodes repair and volumes from the command line, over a file system of two copies."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bson.binary import Binary
from pymongo import MongoClient

from flakefs.testing.servers import Servers

Cli = Any


class Pair:
    """Two nodes on one server, replication 001, one file of random bytes."""

    def __init__(self, cli: Cli, client: MongoClient[dict[str, Any]], second: str, folder: Path) -> None:
        self.cli = cli
        self.client = client
        self.homes = [client[cli.node_database], client[second]]
        cli.format("--chunk-size", "64K")
        cli.ok("nodes", "add", cli.servers.node_uri(1), "--database", second)
        with cli.servers.metadata.client() as metadata:
            metadata[cli.database]["format"].update_one({}, {"$set": {"replication": "001"}})
        source = folder / "data"
        source.write_bytes(os.urandom(300_000))
        cli.ok("put", source, "/data")
        cli.ok("fsck", "--deep")

    def volumes(self, number: int) -> list[Any]:
        home = self.homes[number - 1]
        return [home[name] for name in sorted(home.list_collection_names()) if name.startswith("vol_")]

    def rot(self, number: int) -> None:
        """One byte of one chunk, the same on both nodes."""
        collection = next(c for c in self.volumes(number) if c.find_one())
        chunk = collection.find_one(sort=[("_id", 1)])
        assert chunk is not None
        data = bytearray(chunk["d"])
        data[0] ^= 1
        collection.update_one({"_id": chunk["_id"]}, {"$set": {"d": Binary(bytes(data))}})


@pytest.fixture
def pair(bare: Cli, servers: Servers, new_database: Callable[[], str], tmp_path: Path) -> Iterator[Pair]:
    client: MongoClient[dict[str, Any]] = MongoClient(servers.node_uri(1))
    with client:
        yield Pair(bare, client, new_database(), tmp_path)


def test_rot_is_mended(pair: Pair) -> None:
    pair.rot(2)
    said = pair.cli.run("fsck", "--deep").stdout
    assert "node 1 has a good copy: flakefs scrub mends it" in said
    said = pair.cli.ok("scrub", "--rate", "50M")
    assert "mended 1 copies that had rotted" in said
    assert re.search(r"^read 10 copies of chunks, \d+\.\d KiB$", said, re.MULTILINE)
    facts = pair.cli.json("scrub", "--restart")
    assert (facts["sound"], facts["mended"], facts["lost"]) == (True, 0, {})
    pair.cli.ok("fsck", "--deep")


def test_files_of_lost_chunks_are_named(pair: Pair) -> None:
    pair.rot(1)
    pair.rot(2)
    assert pair.cli.run("scrub").exit_code == 1
    assert "lost: /data: 1 of its chunks" in pair.cli.run("scrub").stdout


def test_an_emptied_node_is_refilled(pair: Pair) -> None:
    pair.client.drop_database(pair.homes[1].name)
    assert pair.cli.run("fsck").exit_code == 1
    said = pair.cli.ok("nodes", "repair")
    assert "node 2 is marked again" in said
    assert said.endswith("every chunk has all its copies\n")
    assert pair.cli.json("nodes", "repair", "--node", "2")["complete"] is True
    pair.cli.ok("fsck", "--deep")
    assert "there is no node 7" in pair.cli.fails(2, "nodes", "repair", "--node", "7")


def test_volumes_are_listed_and_vacuumed(pair: Pair) -> None:
    listed = pair.cli.json("volumes", "list")
    [full] = [v for v in listed if v["chunks"]]
    assert (sorted(full["nodes"]), full["code"], full["short"]) == ([1, 2], "001", None)
    assert "1,2" in pair.cli.ok("volumes", "list") or "2,1" in pair.cli.ok("volumes", "list")
    number = str(full["id"])
    shown = pair.cli.json("volumes", "show", number)
    assert [copy["chunks"] for copy in shown["copies"]] == [full["chunks"]] * 2
    assert "as they should be" in pair.cli.ok("volumes", "show", number)
    assert "there is no volume 99" in pair.cli.fails(2, "volumes", "show", "99")
    pair.cli.ok("rm", "/data")
    pair.cli.ok("gc", "--grace", "0")
    done = pair.cli.json("volumes", "vacuum", number)
    assert done["dropped"] == [full["id"]]
    assert full["id"] not in [v["id"] for v in pair.cli.json("volumes", "list")]
    assert "gave back" in pair.cli.ok("volumes", "vacuum", "--min-garbage", "0")
    pair.cli.ok("fsck", "--deep")

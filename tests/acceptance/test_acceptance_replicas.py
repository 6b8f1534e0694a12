"""Three nodes with two copies of everything: whatever happens to one of them, a writer and a reader notice nothing.

`tests/run-long nodes` does more rounds, and holds the longest stall below LIMIT_SECONDS.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from flakefs.testing.nodefaults import Busy, slowed, wiped
from flakefs.testing.servers import Servers

ROUNDS = int(os.environ.get("FLAKEFS_NODE_ROUNDS", "0"))
"""Of all nodes and faults; 0: one node of each fault."""
LIMIT_SECONDS = 5.0
TROUBLE = r"node \d|no node|copies|replica|volume \d"
"""What a mount may log while nodes fail."""
FAULTS = ("killed", "stopped", "slow", "restarted", "wiped")


@pytest.fixture
def store(private_servers: Servers, tmp_path: Path) -> Iterator[tuple[Mount, Mount]]:
    """Two mounts of one file system with three nodes and code 001."""
    settings = {"engine": {"chunk_cache_bytes": 1024 * 1024}}
    first = Mount(private_servers, tmp_path / "fs", "fs", "chunks", settings=settings, chunk_size=256 * 1024)
    try:
        for number in (2, 3):
            first.cli("nodes", "add", f"{private_servers.node_uri(number).rstrip('/')}/chunks")
        first.cli("replication", "set", "001")
        first.mount()
        second = first.another()
        for mount in first.family:
            mount.expect_log(TROUBLE)
        first.expect_leaks()
        yield first, second
    except BaseException:
        first.close(verify=False)
        raise
    first.close(verify=True)


def suffer(store: tuple[Mount, Mount], busy: Busy, fault: str, number: int) -> None:
    """One fault of one node, from its begin until everything is as before."""
    server = store[0].servers.node(number)
    if fault == "killed":
        server.kill()
        busy.progress(2 + 2 * bool(ROUNDS))
        server.start()
    elif fault == "stopped":
        server.pause()
        try:
            busy.progress(2 + 2 * bool(ROUNDS))
        finally:
            server.resume()
    elif fault == "slow":
        with slowed(server):
            busy.progress(2 + 2 * bool(ROUNDS))
    elif fault == "restarted":
        server.restart()
    else:
        wiped(server)
        busy.progress(2)
        repaired = store[0].cli("nodes", "repair", check=False)
        assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    busy.progress(2)


@pytest.mark.timeout(900 + 600 * ROUNDS)
def test_no_node_is_missed(store: tuple[Mount, Mount]) -> None:
    first, second = store
    chance = random.Random(int(os.environ.get("FLAKEFS_SEED") or 1))
    rounds = [(fault, number) for _ in range(ROUNDS) for number in (1, 2, 3) for fault in FAULTS]
    busy = Busy(first.path, second.path, chance.randrange(10**9))
    try:
        busy.progress(5)
        for fault, number in rounds or [(fault, chance.randint(1, 3)) for fault in FAULTS]:
            suffer(store, busy, fault, number)
            assert not busy.errors, f"node {number} {fault}: {busy.errors}"
            longest = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in busy.longest.items())
            print(f"node {number} {fault}: {busy.done['write']} writes, {busy.done['read']} reads; longest {longest}")
            if ROUNDS:
                assert max(busy.longest.values()) < LIMIT_SECONDS, f"node {number} {fault}: longest {longest}"
    finally:
        busy.stop()
    repaired = first.cli("nodes", "repair", check=False)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    scrubbed = first.cli("scrub", check=False)
    assert scrubbed.returncode == 0, scrubbed.stdout + scrubbed.stderr
    for mount in first.family:
        mount.remount()
        busy.check_all(mount.path)
    copies = {tuple(volume["nodes"]) for volume in volumes_of(first)}
    assert all(len(nodes) == 2 for nodes in copies), copies


def volumes_of(mount: Mount) -> list[dict[str, list[int]]]:
    """The volume documents that hold chunks."""
    with mount.servers.metadata.client() as client:
        return list(client[mount.database]["volumes"].find({"chunks": {"$gt": 0}, "code": "001"}))

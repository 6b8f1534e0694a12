"""A node is emptied and taken away while programs write and read, and the command that does it is killed on the way.

`tests/run-long nodes` kills it more often.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from flakefs.testing.nodefaults import Busy, locators, stored_bytes
from flakefs.testing.servers import Servers

KILLS = int(os.environ.get("FLAKEFS_DRAIN_KILLS", "2"))
PATIENCE_SECONDS = 300.0


@pytest.fixture
def store(private_servers: Servers, tmp_path: Path) -> Iterator[Mount]:
    """A mount with three nodes, whose volumes are small, so that there are many."""
    settings = {"engine": {"volume_min_bytes": 1024 * 1024, "chunk_cache_bytes": 1024 * 1024}}
    mount = Mount(private_servers, tmp_path / "fs", "fs", "chunks", settings=settings, chunk_size=64 * 1024)
    try:
        for number in (2, 3):
            mount.cli("nodes", "add", f"{private_servers.node_uri(number).rstrip('/')}/chunks")
        mount.mount()
        mount.expect_leaks()  # what was being deleted when its volume moved
        yield mount
    except BaseException:
        mount.close(verify=False)
        raise
    mount.close(verify=True)


def drain(mount: Mount, node: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flakefs", "--config", str(mount.config), "nodes", "drain", str(node)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.timeout(600 + 20 * KILLS)
def test_the_fullest_node_is_drained(store: Mount) -> None:
    seed = int(os.environ.get("FLAKEFS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FLAKEFS_SEED={seed}")
    chance = random.Random(seed)
    still = store.path / "still"
    still.write_bytes(chance.randbytes(40 * 1024 * 1024))
    store.sync()
    before = locators(store)
    held = stored_bytes(store)
    fullest = max(held, key=lambda node: held[node])
    busy = Busy(store.path, store.path, seed)
    try:
        busy.progress(3)
        killed = 0
        while killed < KILLS:
            process = drain(store, fullest)
            try:
                process.communicate(timeout=chance.uniform(0.4, 3.0))  # the begin of a command alone takes some tenths
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                killed += 1
                busy.progress()
        last = store.cli("nodes", "drain", str(fullest), check=False)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while last.returncode != 0 and time.monotonic() < deadline:  # leases of killed ones run out
            time.sleep(1)
            last = store.cli("nodes", "drain", str(fullest), check=False)
        assert last.returncode == 0, last.stdout + last.stderr
        removed = store.cli("nodes", "remove", str(fullest), check=False)
        assert removed.returncode == 0, removed.stdout + removed.stderr
        busy.progress(3)
        print(f"drain of node {fullest} was killed {killed} times")
    finally:
        busy.stop()
    assert not busy.errors, busy.errors
    after = locators(store)
    assert all(after[name] == place for name, place in before.items() if name in after), "a locator changed"
    assert set(stored_bytes(store)) == {1, 2, 3} - {fullest}
    with store.servers.node(fullest).client() as client:
        left = [name for name in client["chunks"].list_collection_names() if name.startswith("vol_")]
    assert not left, f"the drained node still holds {left}"
    content = still.read_bytes()
    store.remount()
    assert still.read_bytes() == content
    busy.check_all(store.path)

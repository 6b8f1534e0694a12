"""A fourth node joins three half-full ones: it takes new chunks at once, and `nodes balance` evens all four out."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from flakefs.testing.nodefaults import Busy, locators, stored_bytes
from flakefs.testing.servers import Servers

MIB = 1024 * 1024
THRESHOLD = 0.10
ROUNDS = int(os.environ.get("FLAKEFS_NODE_ROUNDS", "0"))
"""0: one code."""


@pytest.fixture
def store(private_servers: Servers, tmp_path: Path) -> Iterator[Mount]:
    """A mount with three equal nodes, and small volumes, as a store of gigabytes would have."""
    settings = {"engine": {"volume_min_bytes": 2 * MIB, "chunk_cache_bytes": MIB}}
    mount = Mount(private_servers, tmp_path / "fs", "fs", "chunks", settings=settings, chunk_size=128 * 1024)
    try:
        mount.cli("nodes", "set", "1", "--capacity", "200M")
        for number in (2, 3):
            add(mount, number)
        mount.mount()
        mount.expect_leaks()
        yield mount
    except BaseException:
        mount.close(verify=False)
        raise
    mount.close(verify=True)


def add(mount: Mount, number: int) -> None:
    mount.cli("nodes", "add", f"{mount.servers.node_uri(number).rstrip('/')}/chunks", "--capacity", "200M")


@pytest.mark.parametrize("code", ["001"] if not ROUNDS else ["000", "001"])
def test_a_fourth_node(store: Mount, code: str) -> None:
    store.cli("replication", "set", code)
    store.cli("nodes", "repair")  # the volumes that the mount had made by then
    chance = random.Random(4)
    kept = {store.path / f"kept{n}": chance.randbytes(5 * MIB) for n in range(12)}
    for path, content in kept.items():
        path.write_bytes(content)
    store.sync()
    before = locators(store)
    busy = Busy(store.path, store.path, 4)
    try:
        busy.progress(3)
        add(store, 4)
        while not stored_bytes(store).get(4):
            busy.progress()
        balanced = store.cli("nodes", "balance", check=False)
        assert balanced.returncode == 0, balanced.stdout + balanced.stderr
        for path, content in kept.items():
            assert path.read_bytes() == content
        busy.progress(3)
    finally:
        busy.stop()
    assert not busy.errors, busy.errors
    store.sync()
    balanced = store.cli("nodes", "balance", check=False)  # what was written since the first
    assert balanced.returncode == 0, balanced.stdout + balanced.stderr
    held = stored_bytes(store)
    mean = sum(held.values()) / 4
    assert all(abs(share - mean) <= THRESHOLD * mean for share in held.values()), held
    after = locators(store)
    assert all(after[name] == place for name, place in before.items() if name in after), "a locator changed"
    store.remount()
    for path, content in kept.items():
        assert path.read_bytes() == content
    busy.check_all(store.path)

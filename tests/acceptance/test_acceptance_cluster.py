"""No single point of failure: of three metadata servers, three nodes with two copies of everything, and three mounts,
each is killed in turn, and the others go on.

Done by `tests/run-long nodes`; no stall is longer than LIMIT_SECONDS.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flakefs.mongo.cluster import LocalCluster
from flakefs.testing.clusters import ClusterMount, flakefs, local_cluster
from flakefs.testing.mounted import Mount
from flakefs.testing.nodefaults import Busy

ROUNDS = int(os.environ.get("FLAKEFS_NODE_ROUNDS", "0"))
"""Of all members."""
LIMIT_SECONDS = 20.0
"""An election takes seconds: one is held after twice the time-out."""
TROUBLE = r"node \d|no node|copies|replica|volume \d|does not answer|cannot be stored|answered nobody|another primary"


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as running:
        yield running


@pytest.fixture
def mounts(cluster: LocalCluster, tmp_path: Path) -> Iterator[list[Mount]]:
    """Three mounts."""
    first = ClusterMount(cluster, tmp_path / "fs", {"engine": {"chunk_cache_bytes": 1024 * 1024}})
    first.expect_leaks()
    try:
        first.mount()
        first.another()
        first.another()
        for mount in first.family:
            mount.expect_log(TROUBLE)
        yield first.family
    except BaseException:
        first.close(verify=False)
        raise
    first.close(verify=True)


@pytest.mark.skipif(not ROUNDS, reason="tests/run-long nodes; what scripts/test does of it is in tests/shared/history")
@pytest.mark.timeout(900 + 600 * ROUNDS)
def test_any_one_of_them_may_die(cluster: LocalCluster, mounts: list[Mount]) -> None:
    first, second, third = mounts
    folder = str(cluster.folder)
    busy = Busy(first.path, second.path, 7)
    try:
        busy.progress(3)
        members = ["meta1", "meta2", "meta3", "node1", "node2", "node3", "mount"] * ROUNDS
        for member in members:
            if member == "mount":
                third.kill()
                busy.progress(5)
                third.mount()
            else:
                flakefs("cluster", "kill", member, "--dir", folder)
                busy.progress(5)
                if member.startswith("node"):
                    silent = json.loads(first.cli("status", "--json", check=False).stdout)
                    assert silent["silent_nodes"] == [int(member.removeprefix("node"))]
                    assert silent["silent_volumes"]
                flakefs("cluster", "start", member, "--dir", folder)
            busy.progress(2)
            longest = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in busy.longest.items())
            print(f"{member} killed: {busy.done['write']} writes, {busy.done['read']} reads; longest {longest}")
            assert not busy.errors, f"{member} killed: {busy.errors}"
            assert max(busy.longest.values()) < LIMIT_SECONDS, f"{member} killed: longest {longest}"
    finally:
        busy.stop()
    busy.check_all(third.path)
    first.remount()
    busy.check_all(first.path)

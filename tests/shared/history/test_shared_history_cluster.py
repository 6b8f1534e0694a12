"""Histories of programs on several mounts while the servers get into trouble: a replica set of three for metadata, and
three nodes with two copies of everything.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from flakefs.mongo.cluster import LocalCluster
from flakefs.testing.clusters import ClusterMount, local_cluster
from flakefs.testing.killing import new_chance
from flakefs.testing.mounted import Mount, Settings
from tests.shared.history.clusterplay import (
    BOTH_TROUBLES,
    METADATA_TROUBLES,
    MOUNT_TROUBLES,
    NODE_TROUBLES,
    TOOL_TROUBLES,
    ClusterPlay,
    run_together,
)

HISTORIES = int(os.environ.get("FLAKEFS_CLUSTER_HISTORIES", "0"))
"""0: one of each of FEW."""
FEW = ("primary", "stepdown", "node-kill", "node-pause", "move")
ALL = (*METADATA_TROUBLES, *NODE_TROUBLES, *TOOL_TROUBLES, *BOTH_TROUBLES, *MOUNT_TROUBLES)
TROUBLES = tuple(filter(None, os.environ.get("FLAKEFS_TROUBLES", "").split(","))) or (ALL if HISTORIES else FEW)
FAMILY_HISTORIES = 60
"""Histories until all mounts are unmounted and checked."""
TOGETHER = int(os.environ.get("FLAKEFS_TOGETHER", "3"))
"""Histories that run at the same time and share a trouble: it takes seconds."""
FEW_SECONDS = 1.2
LATE_SECONDS = 10.0
"""How late news may be where other tests run at the same time."""
LOGGED = (
    "declared this one dead|has ended|not everything could be stored|"
    r"node \d|no node|copies|replica|volume \d|does not answer|cannot be stored|answered nobody|another primary|"
    "cannot answer at the moment|no server answers"
)
SETTINGS: Settings = {
    "namespace": {"error_timeout_seconds": 90.0, "lease_seconds": 60.0},
    "vfs": {"error_timeout_seconds": 90.0},
    "engine": {"error_timeout_seconds": 90.0},
}
"""No call may fail, and no mount be taken for dead, because the machine is slow."""

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(600 + 60 * HISTORIES),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as running:
        yield running


def mounts(cluster: LocalCluster, folder: Path, count: int) -> list[Mount]:
    first = ClusterMount(cluster, folder, SETTINGS)
    try:
        first.mount()
        for _ in range(count - 1):
            first.another()
    except BaseException:
        first.close(verify=False)
        raise
    for mount in first.family:
        mount.expect_log(LOGGED)
        mount.expect_leaks()  # what a node was being sent when it died lies on the other one
    return first.family


def test_histories_on_a_cluster(cluster: LocalCluster, tmp_path: Path) -> None:
    chance = new_chance()
    todo = HISTORIES or len(TROUBLES)
    together = TOGETHER if HISTORIES else 1
    tried: Counter[str] = Counter()
    family: list[Mount] = []
    while (done := tried.total()) < todo:
        if not family:
            family = mounts(cluster, tmp_path / f"from{done}", 2 + done // FAMILY_HISTORIES % 2)
        until = min(done // FAMILY_HISTORIES * FAMILY_HISTORIES + FAMILY_HISTORIES, todo)
        try:
            tried += play(cluster, family, chance, range(done, min(done + together, until)), done // together)
        except BaseException:
            family[0].close(verify=False)
            raise
        if tried.total() == until:
            family[0].close(verify=True)
            family = []
    print(json.dumps(tried))


def play(cluster: LocalCluster, family: list[Mount], chance: random.Random, numbers: range, round: int) -> Counter[str]:
    """One history for each of *numbers*, all with the same trouble."""
    trouble = TROUBLES[round % len(TROUBLES)]
    began = time.monotonic()
    plays: list[ClusterPlay] = []
    for number in numbers:
        plays.append(ClusterPlay(cluster, family, chance, f"h{number}", beside=plays[0] if plays else None))
        if not HISTORIES:
            plays[-1].stale_seconds, plays[-1].seconds = LATE_SECONDS, FEW_SECONDS
    run_together(plays, trouble)
    events = ", ".join(str(len(play.text().splitlines())) for play in plays)
    print(
        f"{len(family)} mounts, histories {numbers[0]}-{numbers[-1]} ({trouble}): {time.monotonic() - began:.1f} s, "
        f"{events} events {' '.join(plays[0].told)}",
        flush=True,
    )
    return Counter({trouble: len(numbers)})

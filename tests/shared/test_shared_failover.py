"""Two mounts at work while the replica set of their metadata changes its primary: three members, as in earnest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flakefs.mongo.cluster import LocalCluster
from flakefs.testing.clusters import ClusterMount, local_cluster
from flakefs.testing.killing import TROUBLE
from flakefs.testing.mounted import Mount, Settings
from tests.shared.history.clusterplay import primary, step_down
from tests.shared.mounts import MARKS, names, sessions, until

pytestmark = MARKS

SETTINGS: Settings = {
    "namespace": {"error_timeout_seconds": 90.0, "lease_seconds": 60.0},
    "vfs": {"error_timeout_seconds": 90.0},
    "engine": {"error_timeout_seconds": 90.0},
}
"""An election lasts two seconds and more; no call fails, and no mount is taken for dead on a slow machine."""
LOGGED = rf"{TROUBLE}|another primary|no server answers"
AFTER = 3
"""Rounds of work that have to follow the change."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(nodes=1, replication="000") as running:
        yield running


@pytest.fixture
def pair(cluster: LocalCluster, tmp_path: Path) -> Iterator[tuple[Path, Path, Mount]]:
    """The same empty folder on two mounts; and the first mount. Afterwards both are unmounted, and checked."""
    one = ClusterMount(cluster, tmp_path, SETTINGS)
    done = False
    try:
        one.mount()
        other = one.another()
        for mount in (one, other):
            mount.expect_log(LOGGED)
        folder = tmp_path.name
        (one.path / folder).mkdir()
        until((other.path / folder).is_dir)
        yield one.path / folder, other.path / folder, one
        done = True
    finally:
        one.close(verify=done)


class Work:
    """Each of two mounts changes what the other one knows; rounds() are complete and were seen."""

    def __init__(self, one: Path, other: Path) -> None:
        self._roots = one, other
        self._stop = threading.Event()
        self.rounds = 0

    def run(self) -> None:
        while not self._stop.is_set():
            self.round(self.rounds)
            self.rounds += 1

    def round(self, number: int) -> None:
        here, there = self._roots if number % 2 else reversed(self._roots)
        data = b"%d" % number * 3000
        (here / "f").write_bytes(data)
        assert (there / "f").read_bytes() == data  # P2: nothing is waited for
        (here / "g").write_bytes(data)
        os.replace(here / "g", here / "h")
        with open(here / "log", "ab", buffering=0) as log:
            log.write(b"%d\n" % number)
        assert not (there / f"made{number}").exists()  # and the kernel remembers that
        (here / f"made{number}").mkdir()
        until((there / f"made{number}").is_dir)
        os.rename(here / f"made{number}", here / f"moved{number}")
        until(lambda: not (there / f"made{number}").exists())
        assert (there / "h").read_bytes() == data
        assert (there / f"moved{number}").is_dir()

    def after(self, change: Callable[[], object]) -> None:
        """*change* happens while the work goes on, and it goes on long enough to have met it."""
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(self.run)
            try:
                until(lambda: self.rounds >= 2 or working.done())
                change()
                met = self.rounds
                until(lambda: self.rounds >= met + AFTER or working.done(), 120)
            finally:
                self._stop.set()
                working.result()

    def check(self) -> None:
        """Both know all of it."""
        expected = sorted(["f", "h", "log", *(f"moved{number}" for number in range(self.rounds))])
        for root in self._roots:
            until(lambda root=root: names(root) == expected)  # type: ignore[misc]
            assert (root / "log").read_bytes() == b"".join(b"%d\n" % number for number in range(self.rounds))
            assert (root / "f").read_bytes() == b"%d" % (self.rounds - 1) * 3000


@pytest.mark.parametrize("how", ["steps down", "is killed"])
def test_p5_two_mounts_work_on_when_the_primary(
    cluster: LocalCluster, pair: tuple[Path, Path, Mount], how: str
) -> None:
    """No call fails, nothing is done twice, and nothing old is seen, not even in between."""
    one, other, mount = pair
    was = primary(cluster)
    work = Work(one, other)

    def change() -> None:
        if how == "is killed":
            was.kill()
        else:
            step_down(was)
        until(lambda: primary(cluster).plan != was.plan)

    try:
        work.after(change)
    finally:
        cluster.start(cluster.metadata, "")
    work.check()
    until(lambda: [session.stream for session in sessions(mount)] == ["healthy"] * 2)

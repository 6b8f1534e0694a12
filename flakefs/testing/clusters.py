"""A whole cluster for tests: a metadata replica set of three, three nodes with two copies of everything, and mounts.

Purpose
    `local_cluster` starts what `flakefs cluster dev` starts and removes it; `ClusterMount` is a mount of it; `flakefs`
    runs a command that has to succeed.

Invariants
    T16  When local_cluster() is left, no server of it runs and its folder is gone, also when the test failed.

Concurrency
    Synchronous; one thread.

Not here
    What happens to the servers (testing.nodefaults, tests).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flakefs.mongo.cluster import LocalCluster
from flakefs.testing.mounted import Mount, Settings
from flakefs.testing.servers import private_folder


class ClusterMount(Mount):
    """Of the file system that the cluster has already."""

    def __init__(self, cluster: LocalCluster, folder: Path, settings: Settings) -> None:
        servers: Any = SimpleNamespace(metadata_uri=cluster.metadata_uri)  # all that a Mount asks of its servers then
        super().__init__(servers, folder, cluster.database, "", settings=settings)

    def _format(self, chunk_size: int, codec: str) -> None:
        pass


def flakefs(*arguments: str) -> None:
    """Run a command; AssertionError with what it said when it fails."""
    command = [sys.executable, "-m", "flakefs", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def local_cluster(nodes: int = 3, replication: str = "001") -> Iterator[LocalCluster]:
    """T16."""
    folder = private_folder("flakefs-c-") / "dev"
    try:
        flakefs("cluster", "dev", "-n", str(nodes), "--replication", replication, "--dir", str(folder))
        yield LocalCluster(folder)
    finally:
        if folder.exists():
            for server in LocalCluster(folder).servers.values():
                server.kill()  # their clean ends would take a quarter of a test's time
            flakefs("cluster", "stop", "--remove", "--dir", str(folder))
        folder.parent.rmdir()

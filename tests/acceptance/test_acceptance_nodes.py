"""A node that is added while a large copy runs takes part in it at once, and strict balance evens both out."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from flakefs.testing.mounted import Mount, NewMount

MIB = 1024 * 1024
COPY_MIB = 500
BEFORE_MIB = 100
"""Written when the node is added; what follows is enough to make both equal."""
PATIENCE_SECONDS = 60.0
SLOW_PIECES = 120


class Copy(threading.Thread):
    """Writes COPY_MIB of random bytes as fast as it can; but slowly from BEFORE_MIB on, until it is told to hurry (or
    has waited for PATIENCE_SECONDS): on any machine it is still running, and has most to do, while others look.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.begun = threading.Event()
        self.hurry = threading.Event()
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            with self.path.open("wb", buffering=0) as file:
                for number in range(COPY_MIB):
                    if number == BEFORE_MIB:
                        self.begun.set()
                    if number >= BEFORE_MIB:
                        self.hurry.wait(PATIENCE_SECONDS / SLOW_PIECES)
                    file.write(os.urandom(MIB))
                os.fsync(file.fileno())
        except OSError as error:
            self.error = error


def chunks_of(mount: Mount, number: int, database: str) -> int:
    with mount.servers.node(number).client() as client:
        names = [name for name in client[database].list_collection_names() if name.startswith("vol_")]
        return sum(client[database][name].estimated_document_count() for name in names)


def test_a_node_added_during_a_copy(new_mount: NewMount, new_database: Callable[[], str]) -> None:
    mount = new_mount()
    second = new_database()
    uri = f"{mount.servers.node_uri(2).rstrip('/')}/{second}"
    copy = Copy(mount.path / "large")
    copy.start()
    try:
        assert copy.begun.wait(PATIENCE_SECONDS)
        mount.cli("nodes", "add", uri)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not chunks_of(mount, 2, second) and copy.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        running = copy.is_alive()
        taken = chunks_of(mount, 2, second)
        copy.hurry.set()
        copy.join(2 * PATIENCE_SECONDS)
        assert copy.error is None, copy.error
        assert not copy.is_alive(), "the copy hangs"
        assert taken > 0, "the new node took nothing while the copy ran"
        assert running, "the copy ended before anybody could look"
        mount.sync()
        with mount.servers.metadata.client() as client:
            volumes = list(client[mount.database]["volumes"].find())
        for field in ("bytes", "chunks"):
            held = Counter[int]()
            for volume in volumes:
                held[volume["nodes"][0]] += volume[field]
            assert set(held) == {1, 2}
            assert max(held.values()) <= 1.1 * min(held.values()), f"{field} of the nodes: {dict(held)}"
        assert (mount.path / "large").stat().st_size == COPY_MIB * MIB
    finally:
        copy.hurry.set()

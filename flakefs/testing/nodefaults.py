"""Storage nodes that fail while programs write and read: the faults, and two programs that notice errors and stalls.

Purpose
    `Faults` does to a node what happens to nodes: killed, stopped, made slow, restarted, wiped. `Busy` writes files on
    one mount and reads them back on another the whole time, and keeps what went wrong and how long anything took.

Invariants
    T14  Every byte that Busy reads was compared with what it had written; what it could not do is in `errors`. A name
         may lead to what it led to NEWS_SECONDS ago: how fast news travels between mounts is not what is tried here.
    T15  progress() returns only after both programs have finished something that was begun after the call.

Concurrency
    Two threads beside the test's; a slowed node has one more.

Not here
    What the store has to do about it (tests/acceptance).
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flakefs.testing.mounted import Mount
from flakefs.testing.servers import TestServer

PATIENCE_SECONDS = 120.0
SIZES = (5_000, 70_000, 300_000, 1_500_000)
FILES_MAX = 60
NEWS_SECONDS = 30.0
SLOW_STOP, SLOW_RUN = 0.2, 0.02
"""Seconds that a slow node stands still, and then works."""


class Busy:
    """A writer on *written* and a reader on *read*: two mounts of one file system, or one."""

    def __init__(self, written: Path, read: Path, seed: int) -> None:
        self._written, self._read = written / "busy", read / "busy"
        self._written.mkdir()
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.files: dict[str, bytes] = {}
        """Name -> SHA-256 of what it holds, stored by fsync."""
        self._before: dict[str, tuple[float, bytes | None]] = {}
        """Name -> when it was given its present content, and what it led to before."""
        self.errors: list[str] = []
        self.longest = {"write": 0.0, "read": 0.0}
        """Seconds of the longest operation of either."""
        self.done = {"write": 0, "read": 0}
        self._threads = [
            threading.Thread(target=self._repeat, args=("write", self._write_one), daemon=True),
            threading.Thread(target=self._repeat, args=("read", self._read_one), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def progress(self, rounds: int = 1) -> None:
        """T15."""
        wanted = {name: count + 1 + rounds for name, count in self.done.items()}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(self.done[name] < count for name, count in wanted.items()) and not self.errors:
            assert time.monotonic() < deadline, f"no progress for {PATIENCE_SECONDS:.0f} s: {self.done}"
            time.sleep(0.02)

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "an operation hangs"

    def check_all(self, top: Path) -> None:
        """Every file is whole."""
        for name, digest in self.files.items():
            assert hashlib.sha256((top / "busy" / name).read_bytes()).digest() == digest, f"{name} holds other bytes"

    def _repeat(self, name: str, once: Callable[[], None]) -> None:
        while not self._end.is_set() and not self.errors:
            try:
                once()
            except OSError as error:
                self.errors.append(f"{name}: {error!r}")
            self.done[name] += 1

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.longest[name] = max(self.longest[name], time.monotonic() - begun)

    def _write_one(self) -> None:
        with self._lock:
            name = f"f{self._chance.randrange(FILES_MAX)}"
            data = self._chance.randbytes(self._chance.choice(SIZES))
            draft = self._written / f"{name}.new"
        with self._timed("write"):
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with self._timed("write"):
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            with self._timed("write"):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with self._lock:  # the reader knows which content a name has while it opens it
            with self._timed("write"):
                os.rename(draft, self._written / name)
            self._before[name] = time.monotonic(), self.files.get(name)
            self.files[name] = hashlib.sha256(data).digest()

    def _read_one(self) -> None:
        with self._lock:
            if not self.files:
                return
            name, digest = self._chance.choice(list(self.files.items()))
            since, before = self._before[name]
            fresh = time.monotonic() < since + NEWS_SECONDS
            try:
                with self._timed("read"):
                    descriptor = os.open(self._read / name, os.O_RDONLY)
            except FileNotFoundError:
                if fresh and before is None:
                    return
                raise
        try:
            found = hashlib.sha256()
            while True:
                with self._timed("read"):
                    piece = os.read(descriptor, 128 * 1024)
                if not piece:
                    break
                found.update(piece)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the next read asks the mount again
        finally:
            os.close(descriptor)
        if found.digest() != digest and not (fresh and found.digest() == before):
            self.errors.append(f"read: {name} holds other bytes than were written")


@contextmanager
def slowed(server: TestServer) -> Iterator[None]:
    """A node that answers, but rarely: it stands still nine tenths of the time."""
    end = threading.Event()

    def hinder() -> None:
        while not end.is_set():
            server.pause()
            end.wait(SLOW_STOP)
            server.resume()
            end.wait(SLOW_RUN)

    thread = threading.Thread(target=hinder, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        server.resume()


def wiped(server: TestServer) -> None:
    """A node that comes back with an empty disk."""
    server.kill()
    shutil.rmtree(server.plan.data)
    server.start()


def stored_bytes(mount: Mount) -> dict[int, int]:
    """Node -> bytes of indexed chunks on it."""
    held: dict[int, int] = {}
    with mount.servers.metadata.client() as client:
        for volume in client[mount.database]["volumes"].find():
            for node in volume["nodes"]:
                held[node] = held.get(node, 0) + volume["bytes"]
    return held


def locators(mount: Mount) -> dict[bytes, tuple[int, object]]:
    """Hash -> volume and key of every chunk in the index."""
    with mount.servers.metadata.client() as client:
        return {bytes(entry["_id"]): (entry["v"], entry["k"]) for entry in client[mount.database]["chunks"].find()}

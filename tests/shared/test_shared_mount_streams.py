"""Mounts whose servers hang for a while."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flakefs.testing.mounted import NewMount, new_mount
from flakefs.testing.servers import Servers
from tests.shared.mounts import MARKS, PATIENCE_SECONDS, sessions, until

__all__ = ["new_mount"]

pytestmark = MARKS


@pytest.fixture
def servers() -> Iterator[Servers]:
    """In place of the shared ones, for new_mount too: other tests are not to feel this."""
    with Servers() as running:
        yield running


def test_a_metadata_server_that_hangs_for_a_while(new_mount: NewMount, servers: Servers) -> None:
    """The streams break and come back; whoever works in a folder still knows where it is."""
    one = new_mount()
    other = one.another()
    for mount in (one, other):
        mount.expect_log("does not answer|cannot answer at the moment|has answered nobody|cannot be stored")
    (one.path / "folder" / "inner").mkdir(parents=True)
    (one.path / "folder" / "f").write_bytes(b"1")
    until((other.path / "folder" / "inner").exists)
    assert not (other.path / "folder" / "nothing").exists()
    program = "import os, sys\nfor line in sys.stdin: print(os.getcwd(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=other.path / "folder" / "inner",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        server = servers.metadata
        server.pause()
        time.sleep(4.0)
        server.resume()
        (one.path / "folder" / "nothing").write_bytes(b"2")
        (one.path / "folder" / "f").write_bytes(b"3")
        until((other.path / "folder" / "nothing").exists)
        assert (other.path / "folder" / "f").read_bytes() == b"3"
        until(lambda: all(session.stream == "healthy" for session in sessions(one)))
        child.stdin.write("?\n")
        child.stdin.flush()
        assert child.stdout.readline().strip() == str(other.path / "folder" / "inner")
        child.stdin.close()


def test_a_mount_that_is_killed_while_the_kernel_makes_it_wait_leaves_nobody_waiting(
    new_mount: NewMount, servers: Servers
) -> None:
    """S6 of fuse.serving: mkdir(2) waits for a node and has the folder locked, so that a thread which is to make the
    kernel forget a name in it waits, too.
    """
    one = new_mount()
    other = one.another()
    for mount in (one, other):
        mount.expect_log("does not answer|cannot answer at the moment|has answered nobody|cannot be stored|no node")
    (one.path / "folder").mkdir()
    until((other.path / "folder").is_dir)
    assert not (other.path / "folder" / "new").exists()
    node = servers.node(1)
    with ThreadPoolExecutor(2) as pool, open(other.path / "large", "wb", buffering=0) as file:
        node.pause()
        try:
            os.write(file.fileno(), os.urandom(100_000))
            waiting = pool.submit(os.mkdir, other.path / "folder" / "waits")
            time.sleep(0.5)
            assert not waiting.done()
            (one.path / "folder" / "new").touch()
            time.sleep(0.5)
            assert not waiting.done()
            killed = pool.submit(other.kill)
            assert isinstance(waiting.exception(PATIENCE_SECONDS), OSError)
            killed.result()
        finally:
            node.resume()
        with contextlib.suppress(OSError):
            file.close()
    other.mount()
    assert (other.path / "folder" / "new").exists()
    (other.path / "folder" / "again").mkdir()
    until((one.path / "folder" / "again").is_dir)

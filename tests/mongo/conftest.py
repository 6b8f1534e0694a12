"""Data folders of embedded servers, and holders in processes of their own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flakefs.mongo.embedded import EmbeddedOptions, embedded_servers
from flakefs.testing.servers import private_folder

HOLDER = """
import sys
from flakefs.mongo.embedded import EmbeddedOptions, hold
with hold(EmbeddedOptions(data=sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
print("left", flush=True)
"""


class Holder:
    """A process that holds the embedded servers until it is told to leave."""

    def __init__(self, data: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait_held(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "holds\n"

    def leave(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.stdout.readline() == "left\n"
        assert self.process.wait() == 0

    def kill(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder for embedded servers; whatever still runs on it afterwards is killed."""
    top = private_folder("flakefs-emb-")
    path = top / "data"
    yield path
    if path.is_dir() and not path.is_mount():
        with contextlib.suppress(Exception):
            for server in embedded_servers(EmbeddedOptions(data=str(path)))[1]:
                server.kill()
    shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def new_holder(data: Path) -> Iterator[Callable[[], Holder]]:
    """Call it for a further holder process of the data folder."""
    holders: list[Holder] = []

    def make() -> Holder:
        holders.append(Holder(data))
        return holders[-1]

    yield make
    for holder in holders:
        holder.kill()

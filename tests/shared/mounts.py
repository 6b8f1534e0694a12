"""What the tests on two real mounts share."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flakefs.app import overview
from flakefs.app.overview import SessionStatus
from flakefs.app.stack import metadata_door
from flakefs.config import load
from flakefs.testing.mounted import Mount

PATIENCE_SECONDS = 30.0
MARKS = [
    pytest.mark.mount,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
]


def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.002)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """All at once, each in a thread; the results, or errno of the OSError, in order."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def refused(call: Callable[[], object]) -> bool:
    """Does it fail as on a mount that can store nothing?"""
    try:
        call()
    except OSError as error:
        return error.errno in (errno.EIO, errno.EROFS)
    return False


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def sessions(mount: Mount) -> list[SessionStatus]:
    """Those marked alive. In this process: closing its files in a child would ask the mounts they are on."""
    with metadata_door(load(mount.config), purpose="test") as (door, _):
        return overview.sessions(door, mount.database)

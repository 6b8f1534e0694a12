"""What the tests of this folder share: errors by number, other users, times that moved."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can act as other users")


def failing(*codes: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno in codes)


def permissions(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


@contextmanager
def moves(path: Path, *expected: str) -> Iterator[None]:
    """Exactly these of atime, mtime and ctime of *path* change; ctime never goes back."""

    def times() -> dict[str, int]:
        facts = path.lstat()
        return {name: getattr(facts, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}

    before = times()
    yield
    after = times()
    assert {name for name in before if after[name] != before[name]} == set(expected)
    assert after["ctime"] >= before["ctime"]


class Person:
    """A process of another user whose attributes are system calls: `person.mkdir("d", 0o755)`.

    Paths are relative to `folder`. An error is raised here as the OSError it is.
    """

    def __init__(self, top: Path, uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
        self.uid, self.gid, self.folder = uid, gid, "."
        words = [str(uid), str(gid), ",".join(map(str, groups))]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("somebody.py")), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=top,
        )  # fmt: skip

    def __getattr__(self, function: str) -> Callable[..., Any]:
        return partial(self._call, function)

    def _call(self, function: str, *arguments: Any) -> Any:
        self.ask(function, *arguments)
        return self.answer()

    def ask(self, function: str, *arguments: Any) -> None:
        """Begin a call that may wait; answer() takes its result."""
        assert self._process.stdin is not None
        pickle.dump((self.folder, function, arguments), self._process.stdin)
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        code, result = pickle.load(self._process.stdout)
        if code:
            raise OSError(code, result)
        return result

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

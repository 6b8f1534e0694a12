"""Real input for a real mount."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flakefs.testing.mounted import Mount, NewMount, mounted
from flakefs.testing.mounted import new_mount as alone_mount

__all__ = ["alone_mount", "mounted"]

SHARED = bool(os.environ.get("FLAKEFS_PROGRAMS_SHARED"))
"""A second, idle mount of the file system makes the one that programs use work in shared mode."""

DJANGO = "Django==5.2.19"
QUIET_GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/acceptance/" in str(item.path):
            item.add_marker(pytest.mark.mount)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))
            if not os.access("/dev/fuse", os.R_OK | os.W_OK):
                item.add_marker(pytest.mark.skip(reason="needs /dev/fuse"))


@pytest.fixture
def new_mount(alone_mount: NewMount) -> NewMount:
    def make(*, start: bool = True, **options: Any) -> Mount:
        mount = alone_mount(start=start, **options)
        if SHARED and start:
            mount.another()
        return mount

    return make


@dataclass(frozen=True)
class Django:
    """The source tree on the local disk."""

    tree: Path
    """With what a source tree lacks: hard links, symbolic links, odd modes, names and times."""
    archive: Path
    """A tar archive of it."""
    repository: Path
    """A git repository made from it."""


@pytest.fixture(scope="session")
def django(tmp_path_factory: pytest.TempPathFactory) -> Django:
    source = _sdist()
    top = tmp_path_factory.mktemp("django")
    tree = top / "tree"
    with tarfile.open(source) as file:
        file.extractall(top, filter="data")
    next(top.glob("[Dd]jango-*")).rename(tree)
    repository = top / "repository"
    subprocess.run(["cp", "-a", tree, repository], check=True)
    for words in (
        ["init", "-q", "-b", "main"],
        ["add", "-A", "-f"],
        ["commit", "-q", "-m", "all of it"],
        ["repack", "-adq"],
    ):
        git(repository, *words)
    _add_oddities(tree)
    archive = top / "tree.tar"
    subprocess.run(["tar", "--format=posix", "-cf", archive, "-C", tree, "."], check=True)
    assert sum(1 for _ in tree.rglob("*")) > 7000, "this is not the tree that was meant"
    return Django(tree, archive, repository)


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "gc.auto=0", "-c", "core.fsync=none", "-c", "core.compression=1", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | QUIET_GIT).stdout


@pytest.fixture(scope="session", name="git")
def git_command() -> Callable[..., str]:
    return git


def _sdist() -> Path:
    """The archive from PyPI, kept in the user's cache; skips the test when it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flakefs-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (found := list(cache.glob("[Dd]jango-5.2.19.tar.gz"))):
            words = ["--no-binary", ":all:", "--no-deps", "-q", "-d", str(cache), DJANGO]
            done = subprocess.run([sys.executable, "-m", "pip", "download", *words], capture_output=True, text=True)
            found = list(cache.glob("[Dd]jango-5.2.19.tar.gz"))
            if done.returncode or not found:
                last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
                pytest.skip(f"the package registry has not given {DJANGO}: {last}")
    return found[0]


def _add_oddities(tree: Path) -> None:
    (tree / "empty folder").mkdir()
    os.link(tree / "README.rst", tree / "README.again")
    os.link(tree / "README.rst", tree / "docs" / "README.third")
    (tree / "link").symlink_to("docs/README.third")
    (tree / "dangling").symlink_to("no/such/file")
    (tree / "empty").touch()
    odd = os.fsencode(tree) + b"/odd \xff\n name"
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    (tree / "setup.cfg").write_text("x")
    (tree / "setup.cfg").chmod(0o4711)
    (tree / "secret").write_text("s")
    (tree / "secret").chmod(0o400)
    os.utime(tree / "empty", ns=(1_000_000_001, 1_234_567_890_123_456_789))
    os.utime(tree / "dangling", ns=(5, 987_654_321_987_654_321), follow_symlinks=False)
    (tree / "docs").chmod(0o1775)
    os.utime(tree / "docs", ns=(7, 1_111_111_111_111_111_111))

"""One mount for all tests of this folder, and processes of other users on it."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, lasting_mount, mounted, new_mount
from flakefs.testing.servers import Servers
from tests.posix.kit import ROOT, Person

__all__ = ["mounted", "new_mount"]

HERE = Path(__file__).parent
SHARED = bool(os.environ.get("FLAKEFS_POSIX_SHARED"))
"""A second, idle mount of the file system makes the first one work in shared mode."""
_folders = itertools.count(1)


class Place:
    """The mount, from the first test that asks for it until the last of this folder has ended."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self._servers = servers
        self._folder = folder
        self._stack = ExitStack()
        self._mount: Mount | None = None
        self._people: dict[tuple[int, int, tuple[int, ...]], Person] = {}

    @property
    def mount(self) -> Mount:
        if self._mount is None:
            words = "allow_other" if ROOT else ""
            self._mount = self._stack.enter_context(lasting_mount(self._servers, self._folder, words=words))
            if SHARED:
                self._mount.another()
        return self._mount

    def person(self, uid: int, gid: int, groups: tuple[int, ...]) -> Person:
        key = (uid, gid, groups)
        if key not in self._people:
            self._people[key] = Person(self.mount.path, uid, gid, groups)
        return self._people[key]

    def close(self) -> None:
        for person in self._people.values():
            person.end()
        self._people.clear()
        self._mount = None
        self._stack.close()


_places: list[Place] = []


@pytest.fixture(scope="session")
def place(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    _places.append(Place(servers, tmp_path_factory.mktemp("posix")))
    yield _places[-1]
    _places.pop().close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    try:
        return (yield)
    finally:  # what the test has open is closed
        if (nextitem is None or HERE not in nextitem.path.parents) and _places:
            _places[-1].close()  # other folders' tests are free to stop the servers


@pytest.fixture
def shared_mount(place: Place) -> Mount:
    return place.mount


@pytest.fixture
def folder(place: Place, request: pytest.FixtureRequest) -> Path:
    """A new folder of this test, with mode 0755 and its umask as usual."""
    name = re.sub(r"\W+", "-", request.node.name)[:80]
    path = place.mount.path / f"{next(_folders)}-{name}"
    path.mkdir()
    path.chmod(0o755)
    return path


@pytest.fixture
def person(place: Place, folder: Path) -> Callable[..., Person]:
    """person(uid, gid, *groups): a process of that user, whose paths start at `folder`. Skips when not root."""

    def get(uid: int = 1001, gid: int = 2001, *groups: int) -> Person:
        if not ROOT:
            pytest.skip("only root can act as other users")
        found = place.person(uid, gid, groups)
        found.folder = folder.name
        return found

    return get


@pytest.fixture
def common(folder: Path) -> Path:
    """The folder of this test, in which everybody may do everything."""
    folder.chmod(0o777)
    return folder


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.mount)
            if not os.access("/dev/fuse", os.R_OK | os.W_OK):
                item.add_marker(pytest.mark.skip(reason="needs /dev/fuse"))

"""Two real mounts of one file system: what programs on both see (P2, and section 6 of the design)."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import re
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from flakefs.testing.servers import Servers
from flakefs.tools.problems import DAMAGE
from tests.shared.mounts import MARKS, names, together, until

pytestmark = MARKS

ROUNDS = 8
_families = itertools.count(1)
Roots = tuple[Path, Path]


@pytest.fixture(scope="module")
def mounts(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Mount]]:
    """For all tests of this file; each works in a folder of its own."""
    name = f"two{os.getpid()}_{next(_families)}"
    one = Mount(servers, tmp_path_factory.mktemp("two"), name, f"{name}_chunks")
    try:
        one.mount()
        yield one, one.another()
    finally:
        try:
            one.close(verify=True)
        finally:
            for server in servers.running():
                with server.client() as client:
                    for database in (one.database, one.node_database):
                        client.drop_database(database)


@pytest.fixture
def pair(mounts: tuple[Mount, Mount], request: pytest.FixtureRequest) -> Iterator[Roots]:
    """The same empty folder on both."""
    name = re.sub(r"\W+", "-", request.node.name)[:100]
    one, other = (mount.path / name for mount in mounts)
    one.mkdir()
    until(other.is_dir)
    yield one, other
    assert not [problem for problem in mounts[0].fsck().found if problem.kind.level == DAMAGE]


@pytest.fixture(params=["there", "back"])
def ways(pair: Roots, request: pytest.FixtureRequest) -> Roots:
    """What is done at the first is to show at the second."""
    return pair if request.param == "there" else (pair[1], pair[0])


def shows(folder: Path, expected: list[str]) -> bool:
    return names(folder) == expected


# -- what one does shows at the other --


def test_names_show(ways: Roots) -> None:
    here, there = ways
    assert not (there / "new").exists()  # the kernel remembers that
    assert names(there) == []
    (here / "new").write_bytes(b"1")
    until((there / "new").exists)
    assert names(there) == ["new"]
    (here / "folder").mkdir()
    until((there / "folder").is_dir)
    assert (there / "folder").stat().st_nlink == 2
    os.rename(here / "new", here / "folder" / "moved")
    until(lambda: not (there / "new").exists())
    until((there / "folder" / "moved").exists)
    os.link(here / "folder" / "moved", here / "second")
    until(lambda: (there / "second").exists() and (there / "second").stat().st_nlink == 2)
    os.symlink("folder/moved", here / "symlink")
    until((there / "symlink").is_symlink)
    assert (there / "symlink").read_bytes() == b"1"
    os.unlink(here / "folder" / "moved")
    until(lambda: not (there / "folder" / "moved").exists())
    until(lambda: (there / "second").stat().st_nlink == 1)
    os.rmdir(here / "folder")
    until(lambda: not (there / "folder").exists())
    assert names(there) == ["second", "symlink"]


def test_attributes_show(ways: Roots) -> None:
    here, there = ways
    (here / "f").write_bytes(b"1")
    until((there / "f").exists)
    before = there.stat().st_mtime_ns
    os.chmod(here / "f", 0o4711)
    until(lambda: stat.S_IMODE((there / "f").stat().st_mode) == 0o4711)
    os.chown(here / "f", 12, 34)
    until(lambda: (there / "f").stat().st_uid == 12 and (there / "f").stat().st_gid == 34)
    os.utime(here / "f", ns=(5, 7))
    until(lambda: (there / "f").stat().st_mtime_ns == 7)
    os.setxattr(here / "f", "user.a", b"b")
    until(lambda: os.listxattr(there / "f") == ["user.a"])
    assert os.getxattr(there / "f", "user.a") == b"b"
    os.truncate(here / "f", 10_000_000)
    until(lambda: (there / "f").stat().st_size == 10_000_000)
    (here / "g").write_bytes(b"")
    until(lambda: there.stat().st_mtime_ns > before)


@pytest.mark.parametrize("size", [20, 300_000])
def test_p2_what_was_closed_is_there_for_whoever_opens_it_then(pair: Roots, size: int) -> None:
    """At once: nothing is waited for."""
    roots = [*pair]
    for number in range(30):
        writer, reader = roots[number % 2], roots[1 - number % 2]
        data = random.Random(number).randbytes(size + number % 3)
        (writer / "f").write_bytes(data)
        assert (reader / "f").read_bytes() == data


def test_p2_parts_that_were_changed_are_there_for_whoever_opens_it_then(pair: Roots) -> None:
    roots = [*pair]
    content = bytearray(random.Random(0).randbytes(200_000))
    (roots[0] / "f").write_bytes(content)
    for number in range(20):
        writer, reader = roots[number % 2], roots[1 - number % 2]
        part, at = b"%05d" % number * 10, number * 9_000
        with open(writer / "f", "r+b") as file:
            file.seek(at)
            file.write(part)
        content[at : at + len(part)] = part
        assert (reader / "f").read_bytes() == content


def test_p2_programs_that_open_a_changed_file_at_once_all_see_the_change(pair: Roots) -> None:
    """The kernel forgets the pages of before when the first of them gets its answer; the others must not keep them."""
    here, there = pair
    (here / "f").write_bytes(b"%08d" % 0 * 1_000)

    def read(_: int) -> bytes:
        with open(there / "f", "rb", buffering=0) as file:
            return file.read(8)

    until((there / "f").exists)
    with ThreadPoolExecutor(3) as programs:
        for number in range(1, 200):
            list(programs.map(read, range(3)))
            with open(here / "f", "r+b", buffering=0) as file:
                file.write(b"%08d" % number)
            assert set(programs.map(read, range(3))) == {b"%08d" % number}


def test_pages_of_an_open_file_are_renewed(ways: Roots) -> None:
    here, there = ways
    (here / "f").write_bytes(b"a" * 100_000)
    until((there / "f").exists)
    with open(there / "f", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[50_000:50_010] == b"a" * 10
        assert os.pread(file.fileno(), 10, 99_990) == b"a" * 10
        with open(here / "f", "r+b") as writing:
            writing.write(b"b" * 100_000)
        until(lambda: os.pread(file.fileno(), 10, 99_990) == b"b" * 10)
        until(lambda: mapped[50_000:50_010] == b"b" * 10)


def test_a_listing_on_one_and_changes_on_the_other(pair: Roots) -> None:
    """Names that stay are listed once, whatever comes and goes."""
    one, other = pair
    stay = {f"stay{number}" for number in range(60)}
    for name in stay:
        (one / name).touch()
    until(lambda: stay <= set(names(other)))
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            (one / f"x{number}").touch()
            if number > 5:
                (one / f"x{number - 5}").unlink()
            number += 1

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        for _ in range(30):
            found = os.listdir(other)
            assert len(found) == len(set(found))
            assert stay <= set(found)
        stop.set()
        changing.result()
    until(lambda: names(one) == names(other))


# -- one winner --


def test_one_of_many_makes_a_name(pair: Roots) -> None:
    roots = [*pair] * 3

    def exclusively(path: Path) -> str:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return "made"

    def folder(path: Path) -> str:
        path.mkdir()
        return "made"

    def linked(source: Path, path: Path) -> str:
        os.link(source, path)
        return "made"

    (roots[0] / "source").touch()
    until((roots[1] / "source").exists)
    for number in range(ROUNDS):
        for results in (
            together(*(partial(exclusively, root / f"file{number}") for root in roots)),
            together(*(partial(folder, root / f"folder{number}") for root in roots)),
            together(*(partial(linked, root / "source", root / f"link{number}") for root in roots)),
        ):
            assert sorted(results) == ["EEXIST"] * 5 + ["made"]
    assert (roots[0] / "source").stat().st_nlink == 1 + ROUNDS


def test_one_of_many_takes_a_name_away(pair: Roots) -> None:
    roots = [*pair] * 2

    def moved(root: Path, number: int, to: int) -> str:
        os.rename(root / f"f{number}", root / f"to{number}.{to}")
        return f"to{number}.{to}"

    def removed(root: Path, number: int) -> str:
        os.unlink(root / f"g{number}")
        return "gone"

    for number in range(ROUNDS):
        (roots[0] / f"f{number}").write_text(f"{number}")
        (roots[0] / f"g{number}").touch()
        until((roots[1] / f"g{number}").exists)
        results = together(*(partial(moved, root, number, to) for to, root in enumerate(roots)))
        assert results.count("ENOENT") == 3
        winner = next(result for result in results if result != "ENOENT")
        assert all((root / winner).read_text() == f"{number}" for root in roots)
        results = together(*(partial(removed, root, number) for root in roots))
        assert sorted(results) == ["ENOENT"] * 3 + ["gone"]
    until(lambda: names(roots[0]) == names(roots[1]))
    assert len(names(roots[0])) == ROUNDS


def test_renames_over_one_name_leave_one_whole_file(pair: Roots) -> None:
    roots = [*pair] * 2
    for number in range(ROUNDS):
        for index, root in enumerate(roots):
            (root / f"mine{index}").write_text(f"{number} {index}")
        results = together(*(partial(os.replace, r / f"mine{i}", r / "target") for i, r in enumerate(roots)))
        assert results == [None] * 4
        assert {(root / "target").read_text() for root in roots} <= {f"{number} {index}" for index in range(4)}
        assert len({(root / "target").read_text() for root in roots}) == 1
    until(lambda: names(roots[0]) == names(roots[1]) == ["target"])


def test_rmdir_against_create(pair: Roots) -> None:
    one, other = pair
    seen = set()
    for number in range(3 * ROUNDS):
        (one / "d").mkdir()
        until((other / "d").exists)
        remover, maker = (one, other) if number % 2 else (other, one)
        removed, made = together(partial(os.rmdir, remover / "d"), (maker / "d" / "f").touch)
        seen.add((removed, made))
        if made is None:
            assert removed == "ENOTEMPTY"
            until((remover / "d" / "f").exists)
            (one / "d" / "f").unlink()
            (one / "d").rmdir()
        else:
            assert (removed, made) == (None, "ENOENT")
        until(lambda: not (one / "d").exists() and not (other / "d").exists())
    print(seen)


def test_moves_of_folders_never_make_a_circle(pair: Roots) -> None:
    one, other = pair
    for _ in range(2 * ROUNDS):
        for name in ("x", "y"):
            (one / name).mkdir()
            until((other / name).exists)
        results = together(
            lambda: os.rename(one / "x", one / "y" / "x"), lambda: os.rename(other / "y", other / "x" / "y")
        )
        assert results.count(None) == 1, results
        assert {result for result in results if result} <= {"ENOENT", "EINVAL", "ELOOP"}
        top = names(one)
        assert top in (["x"], ["y"])
        until(partial(shows, other, top))
        for root, folders, _ in os.walk(one, topdown=False):
            for name in folders:
                os.rmdir(Path(root) / name)
        until(lambda: names(other) == [])


# -- content from two sides --


def test_appended_records_are_all_there(pair: Roots) -> None:
    """Each is written by one write(2) at the end of the file as it is at that moment."""
    roots = [*pair] * 2
    (roots[0] / "log").touch()
    until((roots[1] / "log").exists)

    def append(writer: int) -> None:
        descriptor = os.open(roots[writer] / "log", os.O_WRONLY | os.O_APPEND)
        try:
            for number in range(25):
                record = f"{writer}:{number}:".encode().ljust(50 + 7 * writer, b".") + b"\n"
                assert os.write(descriptor, record) == len(record)
        finally:
            os.close(descriptor)

    assert together(*(lambda writer=writer: append(writer) for writer in range(4))) == [None] * 4
    for root in roots[:2]:
        lines = (root / "log").read_bytes().splitlines()
        assert len(lines) == 100
        for writer in range(4):
            mine = [line for line in lines if line.startswith(b"%d:" % writer)]
            assert [int(line.split(b":")[1]) for line in mine] == list(range(25))
            assert {len(line) for line in mine} == {50 + 7 * writer}


@pytest.mark.parametrize("part", [300, 5_000, 70_000])
def test_writers_of_different_parts_lose_nothing(pair: Roots, part: int) -> None:
    roots = [*pair]
    (roots[0] / "f").touch()
    until((roots[1] / "f").exists)

    def write(writer: int) -> None:
        for number in range(12):
            with open(roots[writer] / "f", "r+b", buffering=0) as file:
                os.pwrite(file.fileno(), b"%d" % writer * part, (2 * number + writer) * part)
                if number % 3 == 0:
                    os.fsync(file.fileno())

    assert together(lambda: write(0), lambda: write(1)) == [None, None]
    expected = (b"0" * part + b"1" * part) * 12
    assert [(root / "f").read_bytes() == expected for root in roots] == [True, True]


def test_writers_of_the_same_bytes_leave_those_of_one(pair: Roots) -> None:
    roots = [*pair]
    (roots[0] / "f").write_bytes(b"-" * 8192)

    def write(writer: int) -> None:
        with open(roots[writer] / "f", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"%d" % writer * 8192, 0)

    for _ in range(ROUNDS):
        assert together(lambda: write(0), lambda: write(1)) == [None, None]
        found = {(root / "f").read_bytes() for root in roots}
        assert len(found) == 1
        assert found <= {b"0" * 8192, b"1" * 8192}


# -- names that go --


@pytest.mark.parametrize("how", ["unlink", "replace"])
def test_a_file_that_lost_its_name_is_there_for_those_who_have_it_open(ways: Roots, how: str) -> None:
    here, there = ways
    data = random.Random(1).randbytes(300_000)
    (here / "f").write_bytes(data)
    (here / "g").write_bytes(b"new")
    with open(there / "f", "r+b", buffering=0) as file:
        if how == "unlink":
            os.unlink(here / "f")
            until(lambda: not (there / "f").exists())
        else:
            os.replace(here / "g", here / "f")
            until(lambda: (there / "f").read_bytes() == b"new")
        assert os.pread(file.fileno(), len(data), 0) == data
        until(lambda: os.fstat(file.fileno()).st_nlink == 0)
        os.pwrite(file.fileno(), b"more", len(data))
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 10, len(data) - 2) == data[-2:] + b"more"

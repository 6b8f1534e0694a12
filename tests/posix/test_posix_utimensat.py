"""utimensat: NOW, OMIT, nanoseconds, far times, symbolic links, and who may."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount
from tests.posix.calls import AT_SYMLINK_NOFOLLOW, NOW, OMIT, utimensat
from tests.posix.kit import Person, failing, moves

CLOCK_REALTIME_COARSE = 5
SET = (1_234_567_890, 987_654_321)
SET_NS = 1_234_567_890_987_654_321


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "file"
    path.touch(0o644)
    return path


@pytest.mark.parametrize(
    ("atime", "mtime", "moved"),
    [
        ((0, NOW), (0, NOW), "atime mtime ctime"),
        ((0, NOW), (0, OMIT), "atime ctime"),
        ((0, OMIT), (0, NOW), "mtime ctime"),
        ((0, OMIT), (0, OMIT), ""),
    ],
)
def test_now_and_omit(file: Path, atime: tuple[int, int], mtime: tuple[int, int], moved: str) -> None:
    settle()
    with moves(file, *moved.split()):
        utimensat(file, atime, mtime)


def settle() -> None:
    """Until the kernel's clock of ticks has passed what happened before: "now" may come as the time of a tick."""
    moment = time.time_ns()
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= moment:
        pass


def test_touch_is_later_than_what_was_written_before(folder: Path) -> None:
    """Within one tick; seen over many, because a tick may end in between."""
    written, touched = folder / "written", folder / "touched"
    touched.touch()
    later = 0
    for _ in range(50):
        written.write_bytes(b"w")
        os.utime(touched)
        later += touched.stat().st_mtime_ns > written.stat().st_mtime_ns
    assert later > 25


def test_one_is_set_and_one_is_left(file: Path) -> None:
    before = file.stat()
    utimensat(file, SET, (0, OMIT))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (SET_NS, before.st_mtime_ns)
    utimensat(file, (0, NOW), SET)
    assert file.stat().st_atime_ns > SET_NS
    assert file.stat().st_mtime_ns == SET_NS
    assert file.stat().st_ctime_ns > before.st_ctime_ns


@pytest.mark.parametrize("seconds", [-(2**31) - 1, -1, 0, 2**31 - 1, 2**31, 2**32, 2**32 + 2**31, 9_223_372_036])
def test_times_far_away_are_kept(file: Path, shared_mount: Mount, seconds: int) -> None:
    utimensat(file, (seconds, 1), (seconds, 854_775_807))
    os.stat(file)
    shared_mount.sync()
    assert file.stat().st_atime_ns == seconds * 10**9 + 1
    assert file.stat().st_mtime_ns == seconds * 10**9 + 854_775_807


def test_what_64_bits_of_nanoseconds_cannot_say_becomes_the_nearest(file: Path, shared_mount: Mount) -> None:
    utimensat(file, (2**62, 0), (-(2**40), 0))
    shared_mount.sync()
    assert file.stat().st_atime_ns == 2**63 - 1
    assert file.stat().st_mtime_ns == -(2**63)


def test_the_link_itself_or_what_it_points_to(folder: Path, file: Path) -> None:
    link = folder / "link"
    link.symlink_to("file")
    utimensat(link, SET, SET, AT_SYMLINK_NOFOLLOW)
    assert link.lstat().st_mtime_ns == SET_NS != file.stat().st_mtime_ns
    utimensat(link, (5, 6), (7, 8))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (5_000_000_006, 7_000_000_008)
    assert link.lstat().st_mtime_ns == SET_NS


@pytest.mark.parametrize("mode", [0o644, 0o666])
def test_who_may(folder: Path, person: Callable[..., Person], mode: int) -> None:
    """The owner and root: any time. Who may write: both NOW. Everybody: both OMIT."""
    owner, other = person(1001, 2001), person(1002, 2002)
    path = folder / "f"
    path.touch()
    path.chmod(mode)
    os.chown(path, 1001, 2001)
    owner.utimensat("f", SET, SET)
    assert path.stat().st_mtime_ns == SET_NS
    other.utimensat("f", (0, OMIT), (0, OMIT))
    for atime, mtime in ((SET, SET), ((0, NOW), (0, OMIT)), ((0, OMIT), SET)):
        with failing(errno.EPERM):
            other.utimensat("f", atime, mtime)
    assert path.stat().st_mtime_ns == SET_NS
    if mode == 0o666:
        other.utimensat("f", (0, NOW), (0, NOW))
        assert path.stat().st_mtime_ns > SET_NS
    else:
        with failing(errno.EACCES):
            other.utimensat("f", (0, NOW), (0, NOW))


def test_nanoseconds_out_of_range(file: Path) -> None:
    with moves(file), failing(errno.EINVAL):
        utimensat(file, (0, 10**9), (0, 0))

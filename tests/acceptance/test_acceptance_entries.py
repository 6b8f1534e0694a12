"""One folder with very many entries, and one very deep tree."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, NewMount

ENTRIES = int(os.environ.get("FLAKEFS_ENTRIES", "3000"))
"""tests/run-long takes 1,000,000."""
LEVELS = int(os.environ.get("FLAKEFS_LEVELS", "1000"))
MEMORY_MIB = 1024
"""More than this the process of a mount may never have held, whatever the number of entries."""
LOOKS = 2000


def name(number: int) -> str:
    return f"entry-{number:07}"


def peak_mib(mount: Mount) -> int:
    lines = Path(f"/proc/{mount.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


def told(what: str, count: int, began: float, mount: Mount) -> None:
    seconds = time.monotonic() - began
    print(f"{what:28} {count:8} in {seconds:7.1f} s, {count / max(seconds, 1e-9):8.0f}/s, peak {peak_mib(mount)} MiB")


def listed(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


@pytest.mark.timeout(86_400)
def test_a_folder_with_very_many_entries(new_mount: NewMount) -> None:
    mount = new_mount()
    folder = mount.path / "many"
    folder.mkdir()
    began = time.monotonic()
    for number in range(ENTRIES):
        os.close(os.open(folder / name(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    told("created", ENTRIES, began, mount)
    began = time.monotonic()
    mount.remount()  # nothing is in memory
    told("stored and mounted again", 1, began, mount)

    began = time.monotonic()
    listing = listed(folder)
    first = next(listing)
    told("first name", 1, began, mount)
    names = [first, *listing]
    told("listed", ENTRIES, began, mount)
    assert len(names) == ENTRIES
    assert set(names) == set(map(name, range(ENTRIES)))
    del names

    chance = random.Random(1)
    began = time.monotonic()
    for _ in range(LOOKS):
        assert (folder / name(chance.randrange(ENTRIES))).stat().st_size == 0
        assert not (folder / f"missing-{chance.randrange(ENTRIES)}").exists()
    told("looked up, and missing", 2 * LOOKS, began, mount)

    began = time.monotonic()
    check_listing_of_changes(folder)
    told("listed while changing", ENTRIES, began, mount)

    began = time.monotonic()
    for entry in os.listdir(folder):
        os.unlink(folder / entry)
    told("removed", ENTRIES, began, mount)
    folder.rmdir()
    mount.sync()
    assert peak_mib(mount) < MEMORY_MIB


def check_listing_of_changes(folder: Path) -> None:
    """What is there all the time is listed once; what comes, goes or moves meanwhile, at most once by each name."""
    stays = {name(number) for number in range(ENTRIES) if number % 5}
    goes = iter([name(number) for number in range(0, ENTRIES, 5)])
    seen: list[str] = []
    made = 0
    for entry in listed(folder):
        seen.append(entry)
        if len(seen) % 10 == 0 and (going := next(goes, None)) is not None:
            os.unlink(folder / going)
            os.close(os.open(folder / f"new-{made:07}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            made += 1
    assert made > 0
    assert len(seen) == len(set(seen)), "a name is listed twice"
    assert stays <= set(seen), "a name is lost"


def test_a_very_deep_tree(mounted: Mount) -> None:
    """1,000 levels: their path still fits into 4096 bytes, which cp needs."""
    top = mounted.path / "deep"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(LEVELS):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    with open(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor), "wb") as file:
        file.write(b"at the bottom")
    os.close(descriptor)
    assert len(found(top)) == LEVELS + 1
    mounted.remount()
    assert len(found(top)) == LEVELS + 1
    run("cp", "-a", top, mounted.path / "copy")
    assert found(mounted.path / "copy") == found(top)
    run("rm", "-rf", top)
    run("rm", "-rf", mounted.path / "copy")
    assert os.listdir(mounted.path) == []


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def found(top: Path) -> list[str]:
    return run("find", top, "-mindepth", "1", "-printf", "%d %y %f %n\\n").splitlines()

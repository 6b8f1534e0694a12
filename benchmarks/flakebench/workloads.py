"""The workloads on a folder: each returns how many seconds it took, nothing but the work itself counted.

"Stored" means an fsync of the top folder at the end: sync(2) does not reach a FUSE file system, fsync of a folder does.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flakebench.content import MIB, Noise
from flakebench.targets import BenchmarkError

SMALL = 4096
RANDOM_FILE = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything; --quick makes it less."""

    bulk_mib: int = 1024
    files: int = 3000
    transactions: int = 200
    random_writes: int = 4000


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sequential_write(folder: Path, sizes: Sizes) -> float:
    noise = Noise(MIB)

    def work() -> None:
        with (folder / "bulk").open("wb", buffering=0) as file:
            for _ in range(sizes.bulk_mib):
                file.write(noise.next())
            os.fsync(file.fileno())

    return timed(work)


def sequential_read(folder: Path, sizes: Sizes) -> float:
    buffer = bytearray(MIB)
    total = 0

    def work() -> None:
        nonlocal total
        with (folder / "bulk").open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count

    seconds = timed(work)
    if total != sizes.bulk_mib * MIB:
        raise BenchmarkError(f"{folder}/bulk has {total} bytes instead of {sizes.bulk_mib * MIB}")
    return seconds


def new_files(folder: Path, sizes: Sizes) -> float:
    noise = Noise(SMALL)
    top = folder / "small"
    top.mkdir()
    names = [os.fspath(top / f"file-{number:05}") for number in range(sizes.files)]

    def work() -> None:
        for name in names:
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(handle, noise.next())
            os.close(handle)
        fsync_folder(top)

    return timed(work)


def unpack(folder: Path, tree: Path) -> float:
    top = folder / "tree"
    top.mkdir()

    def work() -> None:
        subprocess.run(["tar", "xf", str(tree), "-C", str(top)], check=True)
        fsync_folder(top)

    return timed(work)


def find_and_stat(folder: Path, expected: int) -> float:
    """`find` that prints what only stat knows, so every entry is looked at."""
    command = ["find", str(folder / "tree"), "-mindepth", "1", "-printf", "%m %s %T@ %n\n"]
    output = b""

    def work() -> None:
        nonlocal output
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

    seconds = timed(work)
    if output.count(b"\n") != expected:
        raise BenchmarkError(f"find printed {output.count(bytes([10]))} entries of {folder}/tree instead of {expected}")
    return seconds


def remove_tree(folder: Path) -> float:
    def work() -> None:
        subprocess.run(["rm", "-rf", str(folder / "tree")], check=True)
        fsync_folder(folder)

    return timed(work)


def sqlite_transactions(folder: Path, sizes: Sizes) -> float:
    """One row a transaction with sqlite's defaults: rollback journal, three or four fsyncs each."""
    path = folder / "data.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, body BLOB)")

    def work() -> None:
        for number in range(sizes.transactions):
            database.execute("BEGIN")
            database.execute("INSERT INTO entry VALUES (?, ?)", (number, os.urandom(200)))
            database.execute("COMMIT")

    seconds = timed(work)
    database.close()
    path.unlink()
    return seconds


def random_writes(folder: Path, sizes: Sizes, seed: int) -> float:
    path, noise, bulk = folder / "random", Noise(SMALL), Noise(MIB)
    places = random.Random(seed)
    offsets = [places.randrange(RANDOM_FILE // SMALL) * SMALL for _ in range(sizes.random_writes)]
    with path.open("wb", buffering=0) as file:
        for _ in range(RANDOM_FILE // MIB):
            file.write(bulk.next())
        os.fsync(file.fileno())

    def work() -> None:
        handle = os.open(path, os.O_WRONLY)
        for offset in offsets:
            os.pwrite(handle, noise.next(), offset)
        os.fsync(handle)
        os.close(handle)

    seconds = timed(work)
    path.unlink()
    return seconds


def clean(folder: Path, name: str) -> None:
    """Remove what a workload left, not timed."""
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    fsync_folder(folder)

"""What is written: random bytes that nothing has seen before, and the source tree of Django."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from flakebench.targets import BenchmarkError

MIB = 1 << 20
_STAMP = 16


class Noise:
    """Blocks that neither compress nor repeat, at the cost of a few bytes each: random once, then stamped anew."""

    def __init__(self, size: int) -> None:
        self._bytes = bytearray(os.urandom(size))

    def next(self) -> bytearray:
        """A block unlike every earlier one; valid until the next call."""
        self._bytes[:_STAMP] = os.urandom(_STAMP)
        return self._bytes


def source_tree(cache: Path) -> Path:
    """A plain tar of Django's source distribution, fetched from the package index once."""
    found = sorted(cache.glob("django-*.tar"))
    if found:
        return found[-1]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--no-binary",
                ":all:",
                "-d",
                folder,
                "Django",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            raise BenchmarkError(f"the Django source tree cannot be downloaded with pip: {done.stderr.strip()[-500:]}")
        plain = Path(folder) / archives[0].name.lower().removesuffix(".gz")
        with gzip.open(archives[0]) as packed, plain.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        return plain.rename(cache / plain.name)


def entries(tree: Path) -> int:
    """How many files and folders unpacking makes."""
    with tarfile.open(tree) as archive:
        return len(archive.getnames())

"""Random operations on files of a mount, maps and direct I/O among them, compared with memory.

`tests/run-long fsx` does it for as long as one likes.
"""

from __future__ import annotations

import os
import random

import pytest

from flakefs.testing.fsx import Fsx
from flakefs.testing.mounted import NewMount

SECONDS = float(os.environ.get("FLAKEFS_FSX_SECONDS", "0"))
SEED = int(os.environ.get("FLAKEFS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
ROUND = 30.0
"""Seconds until the next remount."""


@pytest.mark.timeout(300 + SECONDS)
@pytest.mark.parametrize("chunk_size", [64 * 1024, 1024 * 1024])
def test_fsx(new_mount: NewMount, chunk_size: int) -> None:
    mount = new_mount(chunk_size=chunk_size, words="commit_interval=0.5")
    print(f"seed {SEED}")
    fsx = Fsx(mount.path, SEED)
    try:
        rounds = max(2, round(SECONDS / 2 / ROUND))
        for _ in range(rounds):
            if SECONDS:
                fsx.run(seconds=SECONDS / 2 / rounds)
            else:
                fsx.run(operations=250)
            fsx.close()
            mount.remount()
            fsx.compare()
            fsx.reopen()
        changed = mount.path / "fsx0"
        changed.write_bytes(changed.read_bytes()[:-1] + b"!!")
        with pytest.raises(AssertionError, match=rf"seed {SEED}, operation {fsx.count}, fsx0: whole .* differs at"):
            fsx.compare()
    finally:
        fsx.close()
    print(f"{fsx.count} operations")
    assert fsx.count >= rounds * 2

"""Killing a mount, or its servers, while a workload runs on it, and looking at what is left.

Purpose
    `Killer` has a mount and its workload; a test tells it when and what to kill, and asks for the figures at the end.

Invariants
    T12  After every kill of a mount: fsck finds no damage, gc frees every leak, and the tree is a state of the workload
         that has every fsync answered before (testing.workload, T10).
    T13  A test that killed nothing that ran, or had nothing promised or at risk, fails (tried()).

Concurrency
    One thread beside the workload's.

Not here
    The seed (FLAKEFS_SEED) and the number of kills (FLAKEFS_KILLS) come from the environment; tests/run-long sets them.
"""

from __future__ import annotations

import errno
import os
import random
import time

from flakefs.app.stack import metadata_door
from flakefs.config import load
from flakefs.testing.mounted import Mount, Settings
from flakefs.testing.workload import Workload, seen_at, seen_in, short
from flakefs.tools import fsck
from flakefs.tools.gc import collect
from flakefs.tools.problems import DAMAGE, LEFTOVER

SETTINGS: Settings = {
    "namespace": {"commit_interval_seconds": 0.05, "error_timeout_seconds": 90.0},
    "vfs": {"error_timeout_seconds": 90.0},
    "engine": {"error_timeout_seconds": 90.0},
}
"""Commits follow each other closely, so that many kills hit one; and a slow machine has time to start servers."""
CHUNK_SIZE = 64 * 1024
DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
"""What a program sees of a mount whose process is gone."""
TROUBLE = (
    r"does not answer|cannot answer at the moment|has answered nobody|cannot be stored|no node answers|not asked yet"
)
"""What a mount may log while its servers are gone."""


def kills() -> int:
    """How many each test does."""
    return int(os.environ.get("FLAKEFS_KILLS", "20"))


def new_chance() -> random.Random:
    """A seed that is printed, or the one to try again."""
    seed = int(os.environ.get("FLAKEFS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FLAKEFS_SEED={seed}")
    return random.Random(seed)


class Killer:
    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.chance = new_chance()
        self.load = Workload(mount.path, self.chance)
        self.kills = 0
        """Of the mount, noticed by the running workload."""
        self.promised = 0
        """Of these, how many came after an fsync."""
        self.at_risk = 0
        """Of these, how many came when more was done than promised."""
        self.lost = 0
        """Of these, how many took something that was not promised."""
        self.leaked = 0
        """Chunks that gc had to free."""

    def random_moment(self) -> None:
        """Return at some moment of the running workload: after so many operations, or in an fsync."""
        load, chance = self.load, self.chance
        begun = len(load.ops)
        if chance.random() < 0.4:
            fsyncs = load.fsyncs + chance.randint(1, 4)
            load.wait(lambda: load.fsyncs >= fsyncs)
            begun = len(load.ops)
            load.wait(lambda: any(op.promises for op in load.ops[begun:]))
        else:
            begun += chance.randint(3, 80)
            load.wait(lambda: len(load.ops) >= begun)
        time.sleep(chance.choice((0.0, 0.0, chance.uniform(0, 0.005), chance.uniform(0, 0.1))))

    def kill_mount(self) -> None:
        """SIGKILL while the workload runs; returns when that has noticed."""
        assert not self.load.ended, f"the workload ended before the kill: {self.load.error!r}"
        self.mount.kill()
        self.load.wait(lambda: False)
        self.load.close()
        error = self.load.error
        assert error is not None
        assert error.errno in DEAD, f"a killed mount answered {error!r} in {self.load.ops[-1]}"
        self.kills += 1

    def recover(self) -> None:
        """T12; then mount, and go on from the state that was found."""
        self.check()
        self.mount.mount()
        load = self.load
        number, tree = load.explain(seen_at(self.mount.path))
        self.promised += load.fsyncs > 0
        self.at_risk += load.durable < len(load.ops) - 1
        self.lost += number < len(load.ops) - 1
        print(f"kill {self.kills}: {len(load.ops)} operations, {load.durable} durable, {number} found")
        self.load = Workload(self.mount.path, self.chance, tree)

    def compare(self) -> None:
        """Let the workload rest: the mount shows exactly what was done."""
        self.load.stop()
        assert self.load.error is None, f"{self.load.ops[-1]} met {self.load.error!r}"
        found, wanted = seen_at(self.mount.path), seen_in(self.load.tree)
        wrong = [path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path)]
        assert not wrong, "wrong on the mount:\n" + "\n".join(
            f"{path!r} is {short(found.get(path))}, not {short(wanted.get(path))}; last touched by "
            + "; ".join(f"{n}: {op}" for n, op in enumerate(self.load.ops) if repr(path)[2:-1] in str(op))[-1500:]
            for path in sorted(wrong)
        )

    def check(self) -> None:
        """The first half of T12."""
        with metadata_door(load(self.mount.config), purpose="fsck") as (door, resolve):
            report = fsck.check(door, self.mount.database, resolve, deep=True)
            damage = [str(problem) for problem in report.found if problem.kind.level == DAMAGE]
            assert not damage, "fsck found:\n" + "\n".join(damage)
            self.leaked += report.leaked_chunks
            if report.leaked_chunks:
                collect(door, self.mount.database, resolve, grace_seconds=0)
                assert not fsck.check(door, self.mount.database, resolve).leaked_chunks, "gc left leaks"

    def finish(self) -> None:
        """End without a kill: everything is there, and nothing is left over."""
        self.compare()
        self.load.close()
        self.mount.remount()
        number, _ = self.load.explain(seen_at(self.mount.path))
        assert number == len(self.load.ops)
        self.mount.unmount()
        self.check()
        found = [problem for problem in self.mount.fsck().found if problem.kind.level in (DAMAGE, LEFTOVER)]
        assert not found, "fsck found:\n" + "\n".join(map(str, found))

    def tried(self) -> None:
        """T13. For five kills or more: of fewer, all may have come before the first fsync."""
        figures = (
            f"{self.kills} kills: {self.promised} after an fsync, {self.at_risk} with more at risk, {self.lost} lost"
        )
        print(f"{figures} something; {self.leaked} chunks leaked")
        assert self.promised * 3 >= self.kills > 0, figures
        assert self.at_risk * 4 >= self.kills, figures

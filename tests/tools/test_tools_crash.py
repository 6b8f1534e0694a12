"""A writer dies at one request after the other: what it leaves is whole, and tidied up by gc and the next mount."""

from __future__ import annotations

import multiprocessing
import runpy
from pathlib import Path
from typing import Any

import trio

from flakefs.app.stack import metadata_door
from flakefs.namespace import NamespaceOptions
from flakefs.testing.stack import Fresh, NewFresh
from flakefs.tools.gc import collect
from flakefs.tools.problems import Report

WORKLOAD = str(Path(__file__).with_name("crash_workload.py"))


def workload() -> dict[str, Any]:
    return runpy.run_path(WORKLOAD, run_name="looked at")


def run_until(fresh: Fresh, last: int, progress: Path) -> bool:
    """The workload in a process that dies at its *last*-th write; did it die?"""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flakefs.app.stack", "pymongo.monitoring"])
    given = {"config": fresh.config, "last": last, "folder": b"run%d" % last, "progress": str(progress)}
    process = context.Process(target=runpy.run_path, args=(WORKLOAD, {"GIVEN": given}, "crash"))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -9), f"the workload ended with {process.exitcode}"
    return process.exitcode == -9


async def state(fresh: Fresh, kit: dict[str, Any], last: int) -> Any:
    async with fresh.open(writable=False) as stack:
        return await kit["read_state"](stack.fs, b"/run%d" % last)


def check_crashed(fresh: Fresh, kit: dict[str, Any], last: int, progress: Path) -> Report:
    """No damage, and the state after the last step that was durable, or after the next."""
    report = fresh.fsck(deep=True)
    assert report.clean, f"after death at write {last}:\n{report.text()}"
    notes = progress.read_bytes() if progress.exists() else b""
    found = trio.run(state, fresh, kit, last)
    if not notes:
        assert found in (None, {})
    else:
        done = len(notes) - 1
        possible = kit["STATES"][done : done + 2]
        assert found in possible, f"after death at write {last}: {done} steps were durable"
    return report


def test_death_at_any_write_leaves_a_state_the_workload_passed_through(new_fresh: NewFresh, tmp_path: Path) -> None:
    """P1, P4, O1, O2, O3, O4, O5, O6: fsck finds no damage, and nothing durable is lost."""
    fresh = new_fresh(namespace=NamespaceOptions(commit_interval_seconds=3600.0))
    kit = workload()
    deaths = leaks = left = 0
    last = 1
    while run_until(fresh, last, tmp_path / str(last)):
        report = check_crashed(fresh, kit, last, tmp_path / str(last))
        deaths += 1
        leaks += report.leaked_chunks
        left += report.kinds["orphan-left"]
        last += 1
    assert deaths > 20, "the injector did not bite"
    assert leaks, "no death fell between storing a chunk and the commit that names it"
    assert left, "no death fell while an unlinked file was open"
    assert trio.run(state, fresh, kit, last) == kit["STATES"][-1]
    tidy(fresh)


def tidy(fresh: Fresh) -> None:
    """O9: after gc, nothing is left of what the dead have left."""
    with metadata_door(fresh.config, purpose="gc") as (door, resolve):
        collect(door, fresh.config.database, resolve, grace_seconds=0.0)
    report = fresh.fsck()
    assert report.leaked_chunks == 0
    assert report.clean

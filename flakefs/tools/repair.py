"""Mends what can be mended without losing anything.

Purpose
    Check, mend what was found, and check again, because one mended thing shows the next: a file that got a name back
    needs its count of names, an orphan that went leaves counts that are too high.

Invariants
    M5  Nobody else writes meanwhile (exclusively()); it refuses beside a live writer.
    M6  It can be interrupted anywhere and run again.
    M7  Files whose content is gone or wrong are never changed: they are reported.

Concurrency
    Blocks; for commands and worker threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from flakefs.mongo.door import Door
from flakefs.tools import mend_names as names
from flakefs.tools.chunks import Resolve, open_nodes
from flakefs.tools.exclusive import Writer, exclusively
from flakefs.tools.fsck import Progress, check
from flakefs.tools.gc import collect
from flakefs.tools.mend_content import ContentMender
from flakefs.tools.problems import Problem, Report
from flakefs.tools.reader import Reader
from flakefs.tools.system import System

ROUNDS_MAX = 8
"""A chain of findings that show each other is shorter: orphan, index, volume, leak."""

NAMES: dict[str, Callable[[Writer, Problem], None]] = {
    "root-missing": names.root,
    "root-wrong": names.root,
    "name-twice": names.rename,
    "bad-name": names.rename,
    "database-index-missing": names.make_indexes,
    "link-dangling": names.remove_link,
    "link-to-folder": names.remove_link,
    "parent-missing": names.rescue,
    "parent-removed": names.rescue,
    "parent-not-folder": names.rescue,
    "unreachable": names.rescue,
    "name-not-promoted": names.promote,
    "nameless": names.rescue,
    "orphan-left": names.drop_orphan,
    "orphan-without-inode": names.orphan_entry,
    "orphan-with-name": names.orphan_entry,
    "segment-lost": names.revive,
    "nlink-file": names.link_count,
    "nlink-folder": names.link_count,
    "size-wrong": names.size,
    "used-wrong": names.used,
}
CONTENT: dict[str, Callable[[ContentMender, Problem], None]] = {
    "counter-low": ContentMender.counter,
    "session-gone": ContentMender.session,
    "node-marker": ContentMender.marker,
    "segment-empty": ContentMender.empty_segment,
    "index-missing": ContentMender.unindexed,
    "locator-differs": ContentMender.locator,
    "chunk-size": ContentMender.stored_size,
    "index-unused": ContentMender.unused,
    "refcount-low": ContentMender.count,
    "refcount-high": ContentMender.count,
    "volume-wrong": ContentMender.volume,
    "node-wrong": ContentMender.node,
    "volume-counts": ContentMender.volume_counts,
}
FIRST = ("counter-low", "node-marker", "root-missing", "root-wrong")
"""What the others build on: numbers to give, and a root to put things under."""
LAST = ("volume-counts", "database-index-missing")
"""What other mending changes, or makes possible."""


def repair(
    metadata: Door, database: str, resolve: Resolve, *, deep: bool = False, progress: Progress | None = None
) -> Report:
    """Mend, free leaked chunks, and return the report of the last check, which also counts what was `mended`.

    Raises HeldElsewhere beside a live writer, and what check() raises.
    """
    work = partial(_rounds, metadata, database, resolve, deep, progress)
    return exclusively(metadata, database, "fsck --repair", work)


def _rounds(
    metadata: Door, database: str, resolve: Resolve, deep: bool, progress: Progress | None, writer: Writer
) -> Report:
    mended: Counter[str] = Counter()
    last: list[str] = []
    again = partial(check, metadata, database, resolve, deep=deep, progress=progress, own_epoch=writer.epoch)
    report = again()
    for _ in range(ROUNDS_MAX):
        todo = [problem for problem in report.found if problem.kind.mended]
        if not todo or last == (last := [str(problem) for problem in todo]):
            break  # nothing left to mend, or the last round changed nothing
        before = report.kinds
        _mend(metadata, database, resolve, writer, todo)
        report = again()
        mended += before - report.kinds
    if report.leaked_chunks:
        freed = collect(metadata, database, resolve, grace_seconds=0.0, own_epoch=writer.epoch)
        mended["leaked chunks"] += freed.chunks
        report.leaked_chunks -= freed.chunks
        report.leaked_bytes -= freed.bytes
    report.mended = mended
    return report


def _mend(metadata: Door, database: str, resolve: Resolve, writer: Writer, todo: list[Problem]) -> None:
    order = {kind: number for number, kind in enumerate(FIRST)} | dict.fromkeys(LAST, 99)
    reader = Reader(metadata, database, None)
    system = System(reader, Report())
    record = system.check_format()
    system.check_places()
    with open_nodes(system.nodes.values(), resolve) as nodes:
        content = ContentMender(writer, record.uuid, nodes)
        for problem in sorted(todo, key=lambda problem: order.get(problem.kind.id, 50)):
            if problem.kind.id in NAMES:
                NAMES[problem.kind.id](writer, problem)
            else:
                CONTENT[problem.kind.id](content, problem)

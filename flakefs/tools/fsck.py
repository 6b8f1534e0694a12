"""The whole check of a file system, in order.

Purpose
    check() reads everything that is committed and names each contradiction between documents, index, counts and
    chunks on nodes. It changes nothing and can run beside a live mount.

Invariants
    F8  Beside a live mount, check() finds no damage where there is none: metadata is read at one moment, orphans of
        live sessions and young chunks are theirs, and differences to nodes are looked at twice (F6).

Concurrency
    Blocks; for commands and worker threads.

Not here
    Mending (tools.repair), freeing leaked chunks (tools.gc).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from flakefs.errors import Conflict
from flakefs.mongo.door import Door
from flakefs.tools.chunks import Resolve, born, open_nodes
from flakefs.tools.content import Index
from flakefs.tools.holders import holders, report_holders, server_time
from flakefs.tools.inodes import Inodes
from flakefs.tools.nodes import NodeCheck
from flakefs.tools.paths import add_paths
from flakefs.tools.problems import Report
from flakefs.tools.reader import Reader, open_reader
from flakefs.tools.system import System
from flakefs.tools.tree import Tree

Progress = Callable[[str], None]
"""Told what is being looked at, for a person who waits."""

YOUNG_SECONDS = 3600.0
"""Chunks younger than this may still be waiting for their commit while somebody writes."""


def check(
    metadata: Door,
    database: str,
    resolve: Resolve,
    *,
    deep: bool = False,
    progress: Progress | None = None,
    own_epoch: int | None = None,
) -> Report:
    """Everything; *deep* reads every chunk and checks its hash, too.

    *own_epoch*: the session of the caller, who is not to be taken for somebody else. Raises NotFormatted,
    FormatUnsupported, Damaged (no readable format document), Unavailable and Refused (of the metadata server).
    """
    say = progress or (lambda _: None)
    report = Report(deep=deep)
    now = Reader(metadata, database, None)
    others = [holder for holder in holders(now) if holder.epoch != own_epoch]
    writing = any(holder.lives and holder.writes for holder in others)
    # Without a writer nothing changes, and plain reads have no limit in time (a server keeps history for minutes).
    with open_reader(metadata, database, snapshot=writing) as reader:
        say("set-up")
        system = System(reader, report)
        record = system.check_format()
        system.check_places(record.replication)
        system.check_counters()
        system.check_indexes()
        report_holders(others, report)
        _check_metadata(reader, report, system, {h.epoch for h in others if h.lives} | {own_epoch or 0}, say)
        say("chunks on nodes")
        oldest = server_time(metadata) - timedelta(seconds=YOUNG_SECONDS)
        nodes_check = NodeCheck(
            reader, now, report, record.uuid, system.volumes, lambda key: writing and born(key) > oldest
        )
        with open_nodes(system.nodes.values(), resolve) as nodes:
            nodes_check.run(nodes, deep)
            nodes_check.lost_content(nodes)
        add_paths(reader, report)
    if not writing and not report.clean:
        _check_nobody_came(now, {holder.epoch for holder in others} | {own_epoch or 0})
    return report


def _check_nobody_came(now: Reader, known: set[int]) -> None:
    """Without a writer at the start there was no snapshot: one who came later makes differences that are none."""
    for holder in holders(now):
        if holder.writes and holder.epoch not in known:
            raise Conflict(f"{holder.words} began to write {now.database} while it was being checked: check again")


def _check_metadata(reader: Reader, report: Report, system: System, live: set[int], say: Progress) -> None:
    """Names, inodes, and the index of chunks."""
    say("folders")
    tree = Tree(reader, report, live)
    tree.load()
    index = Index(reader, report, system.volumes)
    for number, tally in enumerate(index.tallies()):
        say("files" if number == 0 else f"chunks, part {number + 1}")
        if number == 0:
            Inodes(reader, report, tree, tally).walk()
            report.counts["extents"] = tally.extents
        else:
            index.walk_extents(tally)
        index.compare(tally)
    index.finish()

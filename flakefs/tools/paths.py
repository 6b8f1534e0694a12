"""Tells people the path of what a finding names by number."""

from __future__ import annotations

import dataclasses
import re

from flakefs.format import documents as d
from flakefs.format.names import from_stored
from flakefs.tools.problems import Report
from flakefs.tools.reader import Reader
from flakefs.values import ROOT_INO

PATHS_MAX = 1_000
"""Findings that are given a path: each costs a query a folder."""
DEPTH_MAX = 200
_INODE = re.compile(r"(?:inode|folder) (\d+)\b")


def add_paths(reader: Reader, report: Report) -> None:
    """Append the path to `where` of the first findings about an inode."""
    known: dict[int, bytes | None] = {ROOT_INO: b""}
    for number, problem in enumerate(report.found[:PATHS_MAX]):
        match = _INODE.fullmatch(problem.where)
        path = path_of(reader, int(match[1]), known) if match else None
        if path is not None:
            shown = (path or b"/").decode("utf-8", "backslashreplace")
            report.found[number] = dataclasses.replace(problem, where=f"{problem.where} ({shown})")


def path_of(reader: Reader, ino: int, known: dict[int, bytes | None]) -> bytes | None:
    """The path of the first name; None when it cannot be reached from the root."""
    trail: list[tuple[int, bytes]] = []
    while ino not in known and len(trail) < DEPTH_MAX:
        document = reader.one(d.INODES, ino)
        try:
            parent, name = int(document["p"]), from_stored(document["n"])  # type: ignore[index]
        except d.UNREADABLE:
            parent, name = 0, b"?"
        if parent <= 0:
            known[ino] = None
            break
        trail.append((ino, name))
        ino = parent
    path = known.get(ino)
    for child, name in reversed(trail):
        path = None if path is None else path + b"/" + name
        known[child] = path
    return path

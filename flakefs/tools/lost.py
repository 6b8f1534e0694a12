"""Which files suffer when chunks have no good copy.

Concurrency
    One thread, blocking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flakefs.format import documents as d
from flakefs.format.documents import Document
from flakefs.tools.paths import path_of
from flakefs.tools.reader import Reader
from flakefs.values import ROOT_INO


def files_of(reader: Reader, lost: set[bytes]) -> dict[int, set[bytes]]:
    """Inode -> the chunks of *lost* that its extents name; one walk over all maps."""
    files: dict[int, set[bytes]] = {}
    if lost:
        for ino, names in _named_by(reader, lost):
            files.setdefault(ino, set()).update(names)
    return files


def words(names: set[bytes]) -> str:
    """About one file."""
    return f"{len(names)} of its chunks are lost, the first is {min(names).hex()}"


def report(files: Mapping[str, int], chunks: int) -> list[str]:
    """A line for each of *files*, as paths_of() names them; or one about *chunks* that no file names any more."""
    if chunks and not files:
        return [f"{chunks} chunks have no good copy; no file names them any more"]
    return [f"lost: {path}: {count} of its chunks have no good copy" for path, count in files.items()]


def chunks_in(reader: Reader, volumes: Iterable[int]) -> set[bytes]:
    """The names of all chunks of these volumes: for those that have no node left."""
    wanted = {"v": {"$in": list(volumes)}}
    if not wanted["v"]["$in"]:
        return set()
    return {bytes(entry["_id"]) for entry in reader.stream(d.CHUNKS, wanted, fields={"_id": 1})}


def paths_of(reader: Reader, lost: set[bytes]) -> dict[str, int]:
    """Path of each file that suffers -> number of its chunks that are lost."""
    known: dict[int, bytes | None] = {ROOT_INO: b""}
    found = {}
    for ino, names in files_of(reader, lost).items():
        path = path_of(reader, ino, known)
        shown = f"inode {ino}" if path is None else (path or b"/").decode("utf-8", "backslashreplace")
        found[shown] = len(names)
    return found


def _named_by(reader: Reader, lost: set[bytes]) -> Iterator[tuple[int, set[bytes]]]:
    def names(document: Document) -> set[bytes]:
        extents: list[Any] = document.get("e") or []
        return {bytes(e["h"]) for e in extents if isinstance(e, dict) and isinstance(e.get("h"), bytes)} & lost

    for document in reader.stream(d.INODES, {"e": {"$exists": True}}, fields={"e": 1}):
        if found := names(document):
            yield int(document["_id"]), found
    for document in reader.stream(d.EXTENTS, page=100):
        if found := names(document):
            yield int(document["_id"]["i"]), found

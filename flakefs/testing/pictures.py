"""What can be seen of a folder: for comparing two trees, and one tree before and after.

Purpose
    `picture` of a tree: everything by which two trees could differ, path by path. `differences` says in a few lines
    what does.

Invariants
    T8  Two pictures are equal only when the trees have the same paths, types, modes, owners, sizes, contents, link
        targets and hard links, and (`times`) the same modification times to the nanosecond.

Concurrency
    Synchronous; nothing may change the tree meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import NamedTuple


class Entry(NamedTuple):
    mode: int
    owner: tuple[int, int]
    size: int
    """0 for folders: file systems count differently."""
    content: bytes
    """SHA-256 of a file, target of a link."""
    mtime: int
    """ns; 0 when times do not count."""
    names: tuple[bytes, ...]
    """All names of a file with hard links, in order."""


Picture = dict[bytes, Entry]


def picture(top: str | os.PathLike[str], *, times: bool = True) -> Picture:
    """Every path below *top* (itself as b"") and what is there."""
    root = os.fsencode(top)
    seen: dict[bytes, os.stat_result] = {b"": os.lstat(root)}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            seen[os.path.relpath(path, root)] = os.lstat(path)
    linked: dict[int, list[bytes]] = {}
    for path, facts in seen.items():
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
            linked.setdefault(facts.st_ino, []).append(path)
    return {
        path: Entry(
            mode=facts.st_mode,
            owner=(facts.st_uid, facts.st_gid),
            size=0 if stat.S_ISDIR(facts.st_mode) else facts.st_size,
            content=_content(os.path.join(root, path), facts.st_mode),
            mtime=facts.st_mtime_ns if times else 0,
            names=tuple(sorted(linked.get(facts.st_ino, ()))) if stat.S_ISREG(facts.st_mode) else (),
        )
        for path, facts in seen.items()
    }


def _content(path: bytes, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return b""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def differences(found: Picture, wanted: Picture) -> list[str]:
    """At most 20 lines that say where the two differ; empty when they do not."""
    lines = [f"missing: {os.fsdecode(path)}" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"too much: {os.fsdecode(path)}" for path in sorted(found.keys() - wanted.keys())]
    for path in sorted(found.keys() & wanted.keys()):
        if found[path] != wanted[path]:
            pairs = zip(Entry._fields, found[path], wanted[path], strict=True)
            what = ", ".join(f"{name} {one!r} instead of {two!r}" for name, one, two in pairs if one != two)
            lines.append(f"{os.fsdecode(path)}: {what}")
    return lines[:20]

"""What fsck can find: the kinds of problems, one problem, and the report.

Purpose
    The list of everything that is checked, for people (docs/operations.md), for repair and for tests.

Invariants
    F1  Every kind is planted and found in a test.
    F2  A kind with `mended` is gone after repair, whatever else is wrong with what it names.

Not here
    How it is found (tools.tree, tools.content, tools.nodes, tools.system), how it is mended (tools.repair).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flakefs.values import readable

DAMAGE = "damage"
"""Documents or chunks contradict each other: exit status 1."""
LEFTOVER = "leftover"
"""What a crash leaves behind; costs space and nothing else: exit status 0."""
NOTE = "note"
"""Worth knowing."""

DETAILED_MAX = 100_000
"""Problems kept one by one; the rest is only counted."""


class Kind(NamedTuple):
    """A kind of problem. *what* says what is wrong in general; a Problem says where and with which numbers."""

    id: str
    what: str
    mended: bool
    level: str = DAMAGE


_KINDS = (
    # The set-up
    Kind("format-wrong", "the format document contradicts itself or this program", False),
    Kind("unreadable-document", "a document lacks a field or has one of a wrong type", False),
    Kind("database-index-missing", "an index that lookups or uniqueness rely on is missing", True),
    Kind("counter-low", "a counter would give a number again that is taken", True),
    Kind("session-gone", "a session is marked alive but its process is gone; the next mount ends it", True, NOTE),
    Kind("session-live", "a session is using the file system", False, NOTE),
    # Names
    Kind("root-missing", "the root folder is missing", True),
    Kind("root-wrong", "inode 1 is no proper root folder", True),
    Kind("parent-missing", "the folder that holds this name does not exist", True),
    Kind("parent-removed", "the folder that holds this name has no name itself", True),
    Kind("parent-not-folder", "the parent of this name is no folder", True),
    Kind("unreachable", "folders contain each other and cannot be reached from the root", True),
    Kind("bad-name", "a name that no path can reach", True),
    Kind("name-twice", "two entries of one folder have the same name", True),
    Kind("link-dangling", "a further hard link leads to an inode that does not exist", True),
    Kind("link-to-folder", "a further hard link leads to a folder", True),
    Kind("nlink-file", "the number of names of a file is wrong", True),
    Kind("nlink-folder", "the link count of a folder is not 2 + its sub-folders", True),
    Kind("name-not-promoted", "an inode has lost its first name but still has further ones", True),
    Kind("nameless", "an inode has no name and is not waiting for its last close", True),
    Kind("orphan-left", "an unlinked file was open when its session ended", True, LEFTOVER),
    Kind("orphan-without-inode", "an orphan entry names an inode that does not exist", True),
    Kind("orphan-with-name", "an orphan entry names an inode that has a name", True),
    # Inodes
    Kind("mode-unknown", "the mode has no known file type", False),
    Kind("attribute-wrong", "an attribute is out of its range", False),
    Kind("size-wrong", "the size contradicts the type or is negative", True),
    Kind("target-wrong", "a symbolic link has no target that a link can have", False),
    Kind("used-wrong", "the count of used bytes is not what the extents cover", True),
    # Extents
    Kind("extents-wrong", "extents overlap, are out of order, or leave their chunk or segment", False),
    Kind("extents-misplaced", "something that is no regular file has extents", False),
    Kind("extents-past-size", "extents lie past the end of the file", False),
    Kind("literal-wrong", "literal content in a file that is too large for it or has chunks too", False),
    Kind("segment-lost", "extents of an inode that does not exist", True),
    Kind("segment-empty", "a segment document without extents", True),
    # The index of chunks
    Kind("index-wrong", "an index entry has impossible numbers", False),
    Kind("index-missing", "an extent names a chunk that is not in the index", True),
    Kind("index-unused", "an index entry that no extent names", True),
    Kind("locator-differs", "an extent and the index name different places for one chunk", True),
    Kind("refcount-low", "a reference count is too low: the chunk could be freed while files need it", True),
    Kind("refcount-high", "a reference count is too high: the chunk would never be freed", True),
    Kind("key-twice", "two index entries name the same chunk of a volume", False),
    Kind("index-volume-unknown", "index entries name a volume that has no document", False),
    # Volumes and nodes
    Kind("volume-wrong", "a volume document has impossible values", True),
    Kind("volume-node-unknown", "a volume lies on a node that has no document", False),
    Kind("volume-without-nodes", "a volume lies on no node: its chunks were given up", False),
    Kind("volume-short", "a volume has fewer copies, or copies in worse places, than its replication asks for", False),
    Kind("chunk-class", "a chunk lies in a volume of another replication than its files asked for", False),
    Kind("volume-counts", "the chunk or byte count of a volume is wrong", True),
    Kind("node-wrong", "a node document has impossible values; repair makes it readonly", True),
    Kind("node-unreachable", "a node does not answer, so its chunks could not be checked", False),
    Kind("node-marker", "the node's marker does not name this file system and this node", True),
    Kind("node-volume-stray", "a node holds a collection of this file system that is no volume of it", False, NOTE),
    Kind("node-copy-left", "a node holds the unfinished copy of a volume; the next vacuum removes it", False, NOTE),
    # Chunks on nodes
    Kind("node-collection-missing", "a node lacks the whole collection of a volume that lies there", False),
    Kind("chunk-missing", "a node lacks a chunk", False),
    Kind("chunk-hash", "a chunk is labelled with the hash of another one", False),
    Kind("chunk-size", "a chunk has another stored size than the index says", True),
    Kind("chunk-corrupt", "the content of a chunk is not what was stored", False),
    Kind("chunk-codec", "a chunk is stored with a codec this program does not know", False),
    Kind("content-lost", "a file names chunks that no node has whole; reading them says EIO", False),
)
KINDS = {kind.id: kind for kind in _KINDS}


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: what kind, where, in which words, and the numbers that repair needs."""

    kind: Kind
    where: str
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind.id}: {self.where}: {self.detail}"


@dataclass(slots=True)
class Report:
    """What a check found. Exit status 1 only for damage: leftovers and leaks lose nothing."""

    found: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Of everything that was looked at: folders, files, extents, index entries, chunks..."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Findings of each kind, those past DETAILED_MAX included."""
    leaked_chunks: int = 0
    """Chunks on nodes that no index entry names; `flakefs gc` frees them."""
    leaked_bytes: int = 0
    deep: bool = False
    mended: Counter[str] = field(default_factory=Counter)
    """Findings that repair mended, by kind."""

    def add(self, kind: str, where: str, detail: str, **facts: Any) -> None:
        self.kinds[kind] += 1
        if len(self.found) < DETAILED_MAX:
            self.found.append(Problem(KINDS[kind], where, detail, facts))

    @property
    def problems(self) -> list[Problem]:
        """Damage only."""
        return [problem for problem in self.found if problem.kind.level == DAMAGE]

    @property
    def leftovers(self) -> list[Problem]:
        return [problem for problem in self.found if problem.kind.level == LEFTOVER]

    @property
    def notes(self) -> list[Problem]:
        return [problem for problem in self.found if problem.kind.level == NOTE]

    @property
    def clean(self) -> bool:
        """No damage."""
        return not any(KINDS[kind].level == DAMAGE for kind in self.kinds)

    @property
    def exit_status(self) -> int:
        return 0 if self.clean else 1

    def text(self) -> str:
        """All findings, a line each, and the sums."""
        lines = [str(problem) for problem in self.found]
        hidden = sum(self.kinds.values()) - len(self.found)
        if hidden:
            lines.append(f"... and {hidden} more")
        if self.leaked_chunks:
            lines.append(
                f"{self.leaked_chunks} chunks ({readable(self.leaked_bytes)}) are in no index; flakefs gc frees them"
            )
        lines += [f"mended: {kind} x {count}" for kind, count in sorted(self.mended.items())]
        lines.append(", ".join(f"{count} {name}" for name, count in self.counts.items()))
        return "\n".join(lines)

"""Checks the shape of the namespace: parents, names, links, orphans.

Purpose
    A first walk over the inodes keeps what must be known as a whole: folders and their parents, and where further
    hard links lead. With it each single inode can be judged when the second walk (tools.inodes) passes it.

Invariants
    F3  Memory is proportional to the number of folders, further hard links and orphans, never to that of files.

Concurrency
    One thread, blocking, on one Reader.

Not here
    Attributes and extents of inodes (tools.inodes).
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Mapping
from typing import Any

from flakefs.errors import Damaged, PosixError
from flakefs.format import documents as d
from flakefs.format.documents import Document, InodeRecord, LinkRecord
from flakefs.format.names import checked, to_stored
from flakefs.tools.problems import Report
from flakefs.tools.reader import Reader
from flakefs.values import ROOT_INO


class Tree:
    """The folders of a file system, and what leads into and out of them."""

    def __init__(self, reader: Reader, report: Report, live_sessions: set[int]) -> None:
        self._reader = reader
        self._report = report
        self._live = live_sessions
        self._folders: dict[int, int] = {}
        """Ino -> parent, of every folder."""
        self._subfolders: Counter[int] = Counter()
        self._links: Counter[int] = Counter()
        """Ino -> further hard links that lead to it; an entry goes when its inode passes, what stays dangles."""
        self._link_targets_seen: set[int] = set()
        self._orphans: dict[int, int] = {}
        """Ino -> session; an entry goes when its inode passes."""
        self._strangers: dict[int, str] = {}
        """Parents that are no folders: ino -> kind of problem."""

    def load(self) -> None:
        """The first walk."""
        fields = {"p": 1, "n": 1, "mode": 1, "i": 1}
        for document in self._reader.stream(d.INODES, fields=fields, page=10_000):
            try:
                self._note(document)
            except d.UNREADABLE:
                continue  # the second walk names it
        for document in self._reader.stream(d.ORPHANS):
            try:
                self._orphans[int(document["_id"])] = int(document["session"])
            except d.UNREADABLE as error:
                self._report.add("unreadable-document", f"orphan {document['_id']}", f"cannot be read ({error!r})")
        self._report.counts["orphans"] = len(self._orphans)
        self._check_reachable()

    def _note(self, document: Mapping[str, Any]) -> None:
        ino = int(document["_id"])
        if ino < 0:
            self._links[int(document["i"])] += 1
        elif stat.S_ISDIR(document["mode"]):
            parent = int(document["p"])
            self._folders[ino] = parent
            if parent > 0:
                self._subfolders[parent] += 1

    def is_folder(self, ino: int) -> bool:
        return ino in self._folders

    def _check_reachable(self) -> None:
        """Folders that contain each other: one problem a circle. What hangs below one is reached once it is mended."""
        known = {ROOT_INO}
        for start in self._folders:
            path: dict[int, None] = {}
            ino = start
            while ino not in known and ino not in path and ino in self._folders:
                path[ino] = None
                ino = self._folders[ino]
            if ino in path:
                circle = list(path)[list(path).index(ino) :]
                self._report.add(
                    "unreachable",
                    f"folder {min(circle)}",
                    "contains itself: " + " in ".join(map(str, [*circle[:20], circle[0]])),
                    ino=min(circle),
                )
            known.update(path)

    def check_link(self, document: Document) -> None:
        """A document with a negative id, in the second walk."""
        self._report.counts["further links"] += 1
        try:
            link = d.read_link(document)
        except Damaged as error:
            self._report.add("unreadable-document", f"link {document['_id']}", str(error))
            return
        where = f"link {link.id} ({link.name!r} in folder {link.parent})"
        self._check_place(link, link.id, where, document["n"])
        if link.ino in self._folders:
            self._report.add("link-to-folder", where, f"leads to folder {link.ino}", id=link.id)
            self._links[link.ino] -= 1
        elif link.ino not in self._link_targets_seen:
            self._link_targets_seen.add(link.ino)
            if self._reader.one(d.INODES, link.ino) is None:
                self._report.add("link-dangling", where, f"leads to inode {link.ino}, which does not exist", id=link.id)
                self._link_targets_seen.discard(link.ino)

    def check_inode(self, inode: InodeRecord, stored_name: Any) -> None:
        """Name, place and number of names of an inode, in the second walk."""
        ino = inode.ino
        where = f"inode {ino}"
        links = self._links.pop(ino, 0)
        orphan_of = self._orphans.pop(ino, None)
        folder = ino in self._folders
        if ino == ROOT_INO:
            self._check_root(inode)
        elif inode.parent == -ino:
            self._check_nameless(inode, links, orphan_of)
            return
        else:
            self._check_place(inode, ino, f"{where} ({inode.name!r} in folder {inode.parent})", stored_name)
        if orphan_of is not None:
            said = f"has the name {inode.name!r} in folder {inode.parent}"
            self._report.add("orphan-with-name", where, said, ino=ino)
        if folder:
            expected = 2 + self._subfolders[ino]
            if inode.nlink != expected:
                said = f"link count {inode.nlink}, with {expected - 2} sub-folders it must be {expected}"
                self._report.add("nlink-folder", where, said, ino=ino, nlink=expected)
        elif inode.nlink != 1 + links:
            said = f"link count {inode.nlink}, but it has {1 + links} names"
            self._report.add("nlink-file", where, said, ino=ino, nlink=1 + links)

    def pass_unreadable(self, ino: int) -> None:
        """An inode that is there but cannot be judged: nothing that leads to it dangles."""
        self._links.pop(ino, None)
        self._orphans.pop(ino, None)

    def _check_root(self, inode: InodeRecord) -> None:
        if ROOT_INO not in self._folders:
            self._report.add("root-wrong", "inode 1", f"its mode is {inode.mode:o}, which is no folder")
        elif inode.parent != 0 or inode.name:
            self._report.add(
                "root-wrong", "inode 1", f"it has the name {inode.name!r} in {inode.parent}, it must have none"
            )

    def _check_nameless(self, inode: InodeRecord, links: int, session: int | None) -> None:
        where = f"inode {inode.ino}"
        if links:
            said = f"lost its first name and has {links} further ones"
            self._report.add("name-not-promoted", where, said, ino=inode.ino)
        elif session is None:
            self._report.add("nameless", where, "has no name and no orphan entry", ino=inode.ino)
        elif session not in self._live:
            said = f"was unlinked and still open when session {session} ended"
            self._report.add("orphan-left", where, said, ino=inode.ino)
        elif inode.nlink and inode.ino not in self._folders:
            said = f"link count {inode.nlink}, but it has no name"
            self._report.add("nlink-file", where, said, ino=inode.ino, nlink=0)

    def _check_place(self, entry: InodeRecord | LinkRecord, key: int, where: str, stored_name: Any) -> None:
        """Parent and name of an inode or a link; *key* is its `_id`."""
        kind = self._parent_problem(entry.parent)
        if kind:
            self._report.add(kind, where, _PARENT_WORDS[kind].format(entry.parent), id=key)
        try:
            checked(entry.name)
        except PosixError as error:
            self._report.add("bad-name", where, str(error), id=key)
        else:
            if isinstance(to_stored(entry.name), str) != isinstance(stored_name, str):
                self._report.add(
                    "bad-name", where, "is valid UTF-8 and stored as BinData, so no look-up finds it", id=key
                )

    def _parent_problem(self, parent: int) -> str:
        grandparent = self._folders.get(parent)
        if grandparent is not None:
            return "parent-removed" if grandparent == -parent else ""
        kind = self._strangers.get(parent)
        if kind is None:
            kind = "parent-missing" if self._reader.one(d.INODES, parent) is None else "parent-not-folder"
            self._strangers[parent] = kind
        return kind

    def finish(self) -> None:
        """After the second walk: what no inode has answered to."""
        if ROOT_INO not in self._folders and self._reader.one(d.INODES, ROOT_INO) is None:
            self._report.add("root-missing", "inode 1", "there is no such document")
        for ino in self._orphans:
            said = f"there is no inode {ino}"
            self._report.add("orphan-without-inode", f"orphan {ino}", said, ino=ino)
        self._report.counts["folders"] = len(self._folders)


_PARENT_WORDS = {
    "parent-missing": "its folder {} does not exist",
    "parent-removed": "its folder {} has been removed",
    "parent-not-folder": "its parent {} is no folder",
}

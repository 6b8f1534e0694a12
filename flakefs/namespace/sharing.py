"""What a commit in shared mode does beside storing its documents: news, and checks of folders.

Invariants
    SH1  Every binding and every inode that the group changes is in its news.
    SH2  Runs inside the transaction, after its writes: what it reads is what will be committed, as far as nobody else
         is allowed to commit meanwhile (T5).

Concurrency
    Runs in a worker thread on what a cut took.

Not here
    Applying the news of others (namespace.coherence).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from bson.binary import Binary
from bson.int64 import Int64
from pymongo.client_session import ClientSession
from pymongo.database import Database

from flakefs.errors import Conflict
from flakefs.format.documents import INODES, Document
from flakefs.format.news import (
    ATTRIBUTES,
    CONTENT,
    GONE,
    BindingNews,
    FolderNews,
    InodeNews,
    News,
    encode_news,
)
from flakefs.namespace.group import Action, Group, InodeChange, LinkChange
from flakefs.namespace.times import FolderChange
from flakefs.values import ROOT_INO

DEPTH_MAX = 100_000


def telling(group: Group, number: int) -> Binary:
    """SH1."""
    inodes = []
    for change in group.inodes:
        record = change.record
        gone = change.action is Action.DELETE
        what = ATTRIBUTES | (GONE if gone or not record.nlink else 0)
        if change.segments:
            what |= CONTENT
        inodes.append(InodeNews(record.ino, record.version + (not gone), what))
    folders = [
        FolderNews(folder.inode.ino, folder.raised.time, folder.nlink, folder.raised.mset) for folder in group.folders
    ]
    return encode_news(News(number, False, inodes, list(_bindings(group)), folders))


def _bindings(group: Group) -> Iterator[BindingNews]:
    """Names that go first: one may be taken again."""
    changes: list[InodeChange | LinkChange] = [*group.inodes, *group.links]
    for change in changes:
        record, was = change.record, change.was
        if was is None and change.action is Action.DELETE:
            was = (record.parent, record.name)
        if was is not None and was[0] > 0 and (change.action is Action.DELETE or was != (record.parent, record.name)):
            yield BindingNews(was[0], was[1], record[0], 0, record.version)
    for change in changes:
        record, was = change.record, change.was
        moved = was is not None and was != (record.parent, record.name)
        if record.parent > 0 and (change.action is Action.INSERT or (change.action is Action.UPDATE and moved)):
            yield BindingNews(record.parent, record.name, record[0], record.ino, record.version + 1)


def named_folders(group: Group) -> list[FolderChange]:
    """The folders that have to be there when the group is committed."""
    removed = {change.record.ino for change in group.inodes if _removes_folder(change)}
    return [folder for folder in group.folders if folder.inode.ino not in removed]


def _removes_folder(change: InodeChange) -> bool:
    record = change.record
    return change.action is not Action.INSERT and not record.nlink and stat.S_ISDIR(record.mode)


def check_folders(db: Database[Document], session: ClientSession, group: Group) -> None:
    """Raise Conflict when a folder that is removed is not empty, or one that was moved lies inside itself (SH2)."""
    inodes = db[INODES]
    removed: list[int] = []
    moved: list[tuple[int, int]] = []
    for change in group.inodes:
        record = change.record
        if _removes_folder(change):
            removed.append(record.ino)
        elif stat.S_ISDIR(record.mode) and change.was is not None and change.was[0] != record.parent:
            moved.append((record.ino, record.parent))
    for ino in removed:
        if inodes.find_one({"p": Int64(ino)}, {"_id": 1}, session=session) is not None:
            raise Conflict(f"somebody else made something in folder {ino} meanwhile")
    for ino, parent in moved:
        at = parent
        for _ in range(DEPTH_MAX):
            if at == ROOT_INO:
                break
            above = inodes.find_one({"_id": Int64(at)}, {"p": 1}, session=session)
            if above is None or at == ino or above["p"] < 0:
                raise Conflict(f"folder {ino} would lie inside itself, or nowhere")
            at = int(above["p"])

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
    folders = [FolderNews(folder.inode.ino, folder.time, folder.nlink) for folder in group.folders]
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


def check_folders(db: Database[Document], session: ClientSession, group: Group) -> None:
    """Raise Conflict when a folder that gets a name is gone, one that is removed is not empty, or one that was moved
    lies inside itself (SH2).
    """
    inodes = db[INODES]
    parents = {folder.inode.ino for folder in group.folders}
    removed: list[int] = []
    moved: list[tuple[int, int]] = []
    for change in group.inodes:
        record = change.record
        if not stat.S_ISDIR(record.mode) or change.action is Action.INSERT:
            continue
        if not record.nlink:
            removed.append(record.ino)
        elif change.was is not None and change.was[0] != record.parent:
            moved.append((record.ino, record.parent))
    parents.difference_update(removed)
    if parents:
        query = {"_id": {"$in": [Int64(ino) for ino in parents]}, "p": {"$gte": 0}}
        found = {int(document["_id"]) for document in inodes.find(query, {"_id": 1}, session=session)}
        if found != parents:
            raise Conflict(f"folders were removed by somebody else meanwhile: {sorted(parents - found)}")
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

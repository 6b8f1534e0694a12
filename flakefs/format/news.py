"""News: what one commit of a session changed, for the caches of the other sessions.

Purpose
    Every commit in shared mode writes into its own session's document, field `news`, what it changed. The update of
    that field is the event that the others hear of.

Invariants
    N1  `news` is ONE binary value that differs from commit to commit (it holds the commit's number): so the
        `updateDescription.updatedFields` of a change event always has the whole of it, and has that of the very commit
        the event is about. (The document that a look-up returns may be of a later commit: two commits, one news lost.)
    N2  The numbers of a session's commits follow each other; one that is missing means that an event was lost.
    N3  decode(encode(x)) == x. What is too long is told as "everything" (`all`).

Fields of a session document that shared mode adds: `sees` Int64 (the highest epoch this session has acknowledged),
`shared` bool, `x` Int64 (raised by the exclusive commits of others), `alone` bool (tolerates no other writer), `news`.

Concurrency
    Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import bson
from bson.binary import Binary
from bson.int64 import Int64

from flakefs.errors import Damaged
from flakefs.format.documents import UNREADABLE

ITEMS_MAX = 1_000
BYTES_MAX = 1024 * 1024

ATTRIBUTES = 1
CONTENT = 2
GONE = 4
"""The last name of the inode went, or its document did."""


class InodeNews(NamedTuple):
    ino: int
    version: int
    """Of the document after the commit (of a deleted one: before it)."""
    what: int
    """ATTRIBUTES, CONTENT, GONE together."""


class BindingNews(NamedTuple):
    """(parent, name) leads to `ino` through the document `id` (negative: a further link); 0 and 0: to nothing."""

    parent: int
    name: bytes
    id: int
    ino: int
    version: int


class FolderNews(NamedTuple):
    """Names in a folder changed, so its times did; and its number of sub-folders, if `nlink` is not 0."""

    ino: int
    time: int
    nlink: int
    mset: int = 0
    """The mark of the mtime that `time` takes the place of (namespace.times); 0: none was known."""


class News(NamedTuple):
    number: int
    """Of the commit, as in the field `commits`."""
    all: bool
    """Too much to be listed: everything may have changed."""
    inodes: list[InodeNews]
    bindings: list[BindingNews]
    folders: list[FolderNews]


def encode_news(news: News) -> Binary:
    """The value of the field."""
    if not news.all and len(news.inodes) + len(news.bindings) + len(news.folders) <= ITEMS_MAX:
        encoded = bson.encode(
            {
                "c": Int64(news.number),
                "i": [[Int64(ino), Int64(version), what] for ino, version, what in news.inodes],
                "b": [
                    [Int64(parent), Binary(name), Int64(id), Int64(ino), Int64(version)]
                    for parent, name, id, ino, version in news.bindings
                ],
                "f": _numbers(folder[:3] for folder in news.folders),
                "m": [Int64(folder.mset) for folder in news.folders],
            }
        )
        if len(encoded) <= BYTES_MAX:
            return Binary(encoded)
    return Binary(bson.encode({"c": Int64(news.number), "all": True}))


def decode_news(value: bytes) -> News:
    """Raises Damaged when it is none."""
    try:
        document: dict[str, Any] = bson.decode(bytes(value))
        folders = document.get("f", ())
        return News(
            int(document["c"]),
            bool(document.get("all", False)),
            [InodeNews(int(ino), int(version), int(what)) for ino, version, what in document.get("i", ())],
            [
                BindingNews(int(parent), bytes(name), int(id), int(ino), int(version))
                for parent, name, id, ino, version in document.get("b", ())
            ],
            [
                FolderNews(int(ino), int(time), int(nlink), int(mset))
                for (ino, time, nlink), mset in zip(folders, document.get("m", [0] * len(folders)), strict=True)
            ],
        )
    except (*UNREADABLE, bson.errors.BSONError) as error:
        raise Damaged(f"the news of a session cannot be read ({error!r})") from error


def _numbers(items: Iterable[tuple[int, ...]]) -> list[list[Int64]]:
    return [[Int64(number) for number in item] for item in items]

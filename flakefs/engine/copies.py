"""What one node answers when it is asked for chunks.

Purpose
    Reads copies from one node and gives an answer for each: its verified content, or that it is missing or damaged.

Invariants
    CO1  Only what `verify` gave (format.verifying) is returned as content; only then is a document a good copy.
    CO2  A collection that is renamed or dropped under a query is no damage: it makes Moving, which is asked again.

Concurrency
    Functions that end in _sync run in worker threads, inside the node's door.

Not here
    What a good copy is (format.verifying); which node is asked, and when (engine.asking); putting a good copy in the
    place of a bad one (engine.healing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pymongo.errors import OperationFailure

from flakefs.engine.nodes import Node
from flakefs.errors import ChunkCorrupt, ChunkMissing, FlakeError, Unavailable
from flakefs.format.documents import Document
from flakefs.format.verifying import verify
from flakefs.values import ChunkRef

MOVED = frozenset(
    {
        26,  # NamespaceNotFound
        43,  # CursorNotFound
        175,  # QueryPlanKilled: the collection was dropped or renamed
    }
)

Answer = bytes | FlakeError
"""Content, or why this node does not give it."""


class Moving(Unavailable):
    """The collection went away while it was read: its volume is being moved."""


def documents_sync(node: Node, collection: str, refs: Sequence[ChunkRef]) -> dict[bytes, Document]:
    """The documents that are there, by key (CO2)."""
    try:
        found = node.read_sync(collection, [ref.key for ref in refs])
    except OperationFailure as error:
        if error.code in MOVED:
            raise Moving(f"{collection} on {node.title} was moved while it was read: it will be asked again") from error
        raise
    return {document["_id"].binary: document for document in found}


def read_copies_sync(node: Node, collection: str, volume: int, refs: Sequence[ChunkRef]) -> list[Answer]:
    """One answer for each ref."""
    documents = documents_sync(node, collection, refs)
    where = f"volume {volume} on {node.title}"
    return [judge(ref, documents.get(ref.key), where) for ref in refs]


def judge(ref: ChunkRef, document: Document | None, where: str) -> Answer:
    """CO1; for worker threads, as it decodes and hashes."""
    name = f"chunk {ref.hash.hex()[:12]} (key {ref.key.hex()})"
    if document is None:
        return ChunkMissing(f"{name} is missing in {where}: run flakefs fsck and restore a copy")
    verdict = verify(document, ref)
    if verdict.content is None:
        return ChunkCorrupt(f"{name} is damaged in {where}: {verdict.said}; run flakefs fsck")
    return verdict.content


def is_bad(answer: Answer) -> bool:
    """Does the node have no good copy? (When it did not answer nobody knows.)"""
    return isinstance(answer, ChunkMissing | ChunkCorrupt)


def better(old: Answer | None, new: Answer) -> Answer:
    """Which of two replicas' answers counts: content, then "nobody knows", then what a person can still look at."""
    if old is None or isinstance(new, bytes):
        return new
    rank: Callable[[Answer], int] = lambda answer: (  # noqa: E731
        3
        if isinstance(answer, bytes)
        else 2
        if isinstance(answer, Unavailable)
        else 1
        if isinstance(answer, ChunkCorrupt)
        else 0
    )
    return new if rank(new) > rank(old) else old

"""Whether a copy of a chunk, as it lies on a node, is good: the one judgement of everybody who reads copies.

Purpose
    Mounts read content (engine.copies), fsck and scrub name what is wrong (tools.nodes, tools.scrub), repair and moves
    choose the copy to pass on (tools.mend_copies, tools.volume_copies). They differ in what they know of the chunk
    beforehand and in what follows; what a good copy is they all ask here.

Invariants
    VF1  Content is given exactly when its hash is the one in the chunk's name. With a ref it has its length too.
    VF2  A document of any shape gets a verdict: nothing is raised, and no length that the document claims is allocated
         beyond what the chunk can have.

Not here
    The label of a chunk that the index names otherwise (tools.nodes); who has a better copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

from bson.errors import BSONError

from flakefs.errors import ChunkCorrupt, Damaged
from flakefs.format.codec import CODECS, decode, decode_unsized
from flakefs.format.documents import read_chunk
from flakefs.format.hashing import chunk_hash, content_hash_of
from flakefs.values import ChunkRef

UNDECODABLE = (BSONError, IndexError)
"""A raw document is decoded as it is looked at."""


class Flaw(Enum):
    """What is wrong with a copy. The value is its kind among the problems that fsck names (tools.problems)."""

    CODEC = "chunk-codec"
    CONTENT = "chunk-corrupt"
    LABEL = "chunk-hash"
    """The content is the chunk's; only `h` says otherwise."""


class Verdict(NamedTuple):
    content: bytes | None = None
    """The plain content (VF1); None when the copy has not got it."""
    flaw: Flaw | None = None
    said: str = ""
    """The flaw in words."""


def verify(document: Mapping[str, Any], ref: ChunkRef) -> Verdict:
    """What *document* is worth as a copy of the chunk *ref*. Decodes and hashes: for worker threads."""
    try:
        by_ref = {**document, "h": ref.hash}
    except UNDECODABLE as error:
        return _undecodable(error)
    verdict = _verdict(by_ref, partial(decode, length=ref.length))
    label = document.get("h")
    if verdict.content is not None and not (isinstance(label, bytes) and bytes(label) == ref.hash):
        said = label.hex() if isinstance(label, bytes) and label else "without"
        return verdict._replace(flaw=Flaw.LABEL, said=f"labelled {said}")
    return verdict


def verify_by_label(document: Mapping[str, Any], length_max: int) -> Verdict:
    """The same for a copy of which only its own label says what it is: *length_max* bounds its plain length."""
    return _verdict(document, partial(decode_unsized, at_most=length_max))


def _verdict(document: Mapping[str, Any], decoded: Callable[[str, bytes], bytes]) -> Verdict:
    """By the label."""
    try:
        chunk = read_chunk(document)
        if chunk.codec not in CODECS:
            return Verdict(flaw=Flaw.CODEC, said=f"has codec {chunk.codec!r}; a newer FlakeFS may know it")
        content = decoded(chunk.codec, chunk.data)
    except (ChunkCorrupt, Damaged) as error:
        return Verdict(flaw=Flaw.CONTENT, said=str(error))
    except UNDECODABLE as error:
        return _undecodable(error)
    if chunk_hash(content) != content_hash_of(chunk.hash):
        return Verdict(flaw=Flaw.CONTENT, said="it holds other bytes than its hash says")
    return Verdict(content)


def _undecodable(error: Exception) -> Verdict:
    return Verdict(flaw=Flaw.CONTENT, said=f"the document cannot be decoded ({error})")

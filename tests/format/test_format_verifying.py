"""The judgement of copies of chunks: VF1, VF2."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any

import bson
import pytest
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from hypothesis import given
from hypothesis import strategies as st

from flakefs.format.codec import encode
from flakefs.format.documents import Document, chunk_document
from flakefs.format.hashing import chunk_hash, chunk_name, content_hash_of
from flakefs.format.verifying import Flaw, verify, verify_by_label
from flakefs.tools.problems import KINDS
from flakefs.values import ChunkRef

KEY = bytes(range(12))
CONTENT = b"content that compresses " * 1000
CODECS = ("none", "zstd", "lz4")
ODD = st.sampled_from([None, 3, -1, 2.5, "x", b"x", [], [1], {}, {"i": "x"}, ObjectId(KEY), 2**40, 2**62])


def ref_of(content: bytes = CONTENT, code: str = "") -> ChunkRef:
    return ChunkRef(chunk_name(chunk_hash(content), code), 1, KEY, len(content))


def copy_of(content: bytes = CONTENT, codec: str = "none", code: str = "") -> Document:
    return chunk_document(KEY, ref_of(content, code).hash, *encode(content, codec))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("code", ["", "012"])
def test_a_good_copy(codec: str, code: str) -> None:
    """VF1; as a document and as the bytes of one."""
    document = copy_of(codec=codec, code=code)
    assert verify(document, ref_of(code=code)) == (CONTENT, None, "")
    assert verify_by_label(RawBSONDocument(bson.encode(document)), len(CONTENT)) == (CONTENT, None, "")


@pytest.mark.parametrize(
    ("changes", "flaw", "said"),
    [
        ({"c": "brotli"}, Flaw.CODEC, "has codec 'brotli'"),
        ({"c": 3}, Flaw.CODEC, "has codec 3"),
        ({"d": b"rotten"}, Flaw.CONTENT, "6 bytes instead of 24000"),
        ({"d": CONTENT[:-1] + b"!"}, Flaw.CONTENT, "other bytes than its hash says"),
        ({"d": "text"}, Flaw.CONTENT, "no binary data"),
        ({"d": None}, Flaw.CONTENT, "no binary data"),
        ({"_id": 7}, Flaw.CONTENT, "cannot be read"),
    ],
)
def test_a_bad_copy_is_bad_by_its_ref_and_by_its_label(changes: Document, flaw: Flaw, said: str) -> None:
    """VF1"""
    with_ref = verify(copy_of() | changes, ref_of())
    assert (with_ref.content, with_ref.flaw) == (None, flaw)
    assert said in with_ref.said
    alone = verify_by_label(copy_of() | changes, 1 << 20)
    assert (alone.content, alone.flaw) == (None, flaw)


@pytest.mark.parametrize("label", [chunk_hash(b"another"), chunk_name(chunk_hash(CONTENT), "001"), b"", None, 2**40])
def test_content_under_a_wrong_label_is_good_where_a_ref_says_what_it_is(label: object) -> None:
    verdict = verify(copy_of() | {"h": label}, ref_of())
    assert (verdict.content, verdict.flaw) == (CONTENT, Flaw.LABEL)
    assert verdict.said == f"labelled {label.hex() if isinstance(label, bytes) and label else 'without'}"
    unlabelled = {name: value for name, value in copy_of().items() if name != "h"}
    assert verify(unlabelled, ref_of()).flaw is Flaw.LABEL
    assert verify_by_label(unlabelled, 1 << 20).flaw is Flaw.CONTENT


@pytest.mark.parametrize("codec", CODECS)
def test_another_length_than_the_ref_says(codec: str) -> None:
    """VF1: also with the right hash."""
    for length in (len(CONTENT) - 1, len(CONTENT) + 1):
        verdict = verify(copy_of(codec=codec), ref_of()._replace(length=length))
        assert (verdict.content, verdict.flaw) == (None, Flaw.CONTENT)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("_id", "h", "c", "d"), ODD)), st.sampled_from(CODECS))
def test_any_document_gets_a_verdict(changes: dict[str, Any], codec: str) -> None:
    """VF1, VF2"""
    document = copy_of(codec=codec) | changes
    for verdict in (verify(document, ref_of()), verify_by_label(document, len(CONTENT))):
        assert verdict.content in (None, CONTENT)
        assert (verdict.content is None) <= (verdict.flaw in (Flaw.CONTENT, Flaw.CODEC))
        assert bool(verdict.said) == (verdict.flaw is not None)


def test_bytes_that_are_no_document() -> None:
    """VF2: whichever byte of a raw one is broken."""
    content = os.urandom(20)
    good, ref, undecodable = bson.encode(copy_of(content)), ref_of(content), 0
    for at in range(4, len(good)):  # before them lies the length by which the driver cuts documents out of an answer
        raw = bytearray(good)
        raw[at] ^= 0x80
        try:
            document = RawBSONDocument(bytes(raw))
        except bson.errors.InvalidBSON:
            continue  # the driver does not hand it out
        verdict = verify_by_label(document, 1 << 20)
        assert verdict.content is None or content_hash_of(bytes(document["h"])) == chunk_hash(verdict.content)
        by_ref = verify(document, ref)
        assert by_ref.content is None or bytes(by_ref.content) == content
        undecodable += "cannot be decoded" in by_ref.said
    assert undecodable


@pytest.mark.parametrize("field", ["h", "d"])
def test_a_number_in_the_place_of_bytes_allocates_nothing(field: str) -> None:
    """VF2"""
    document = copy_of() | {field: 1 << 28}
    tracemalloc.start()
    try:
        verify(document, ref_of())
        verify_by_label(document, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_flaws_are_kinds_of_problems() -> None:
    assert {flaw.value for flaw in Flaw} <= set(KINDS)

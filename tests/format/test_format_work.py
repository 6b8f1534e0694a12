"""Documents of long work (D1 to D4)."""

from __future__ import annotations

import pytest
from bson import decode, encode
from bson.objectid import ObjectId

from flakefs.errors import Damaged
from flakefs.format.work import ScrubRecord, read_scrub

FULL = ScrubRecord(
    began=5, boot="b", pid=2**40, start=2**60, host="h", volume=3, node=2, key=ObjectId(), read=7, size=2**50, mended=1,
    doubts=(ObjectId(), ObjectId()), extra=4, lost=(b"x" * 32, b"y" * 35),
)  # fmt: skip


@pytest.mark.parametrize("record", [FULL, ScrubRecord(began=5, boot="b", pid=1, start=1, host="h")])
def test_what_is_written_is_read(record: ScrubRecord) -> None:
    """D1"""
    assert read_scrub(decode(encode(record.document()))) == record


@pytest.mark.parametrize("field", ["began", "doubts", "lost", "pid"])
def test_what_cannot_be_read_is_damaged(field: str) -> None:
    """D4"""
    document = FULL.document()
    with pytest.raises(Damaged):
        read_scrub({**document, field: "a word"})
    del document[field]
    with pytest.raises(Damaged):
        read_scrub(document)

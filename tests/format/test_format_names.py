"""Names: N1, and what may be one."""

from __future__ import annotations

import bson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flakefs.errors import InvalidArgument, NameTooLong
from flakefs.format.names import checked, from_stored, to_stored

names = st.binary(min_size=1, max_size=255)


@given(st.one_of(names, st.text(min_size=1, max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))))
@example(b"\xed\xa0\x80")  # an encoded surrogate is no UTF-8
@example(b"\xc0\xaf")  # overlong
@example("grüße €😀".encode())
@example(b"\xff\xfe")
def test_a_name_has_one_stored_form(name: bytes) -> None:
    """N1"""
    stored = bson.decode(bson.encode({"n": to_stored(name)}))["n"]
    assert from_stored(stored) == name
    try:
        name.decode()
    except UnicodeDecodeError:
        assert isinstance(stored, bytes)
    else:
        assert isinstance(stored, str)


@given(names, names)
def test_different_names_are_stored_differently(one: bytes, other: bytes) -> None:
    """N1: what the unique index compares differs when the names do."""
    assert (to_stored(one) == to_stored(other)) == (one == other)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0"])
def test_what_cannot_be_a_name(name: bytes) -> None:
    with pytest.raises(InvalidArgument):
        checked(name)


def test_length_counts_bytes() -> None:
    assert checked("ü".encode() * 127) == "ü".encode() * 127
    with pytest.raises(NameTooLong):
        checked("ü".encode() * 128)
    assert checked(b"...") == b"..."


@pytest.mark.parametrize("stored", [3, 3.5, None, ["a"], {"a": 1}])
def test_a_name_of_a_wrong_type_is_refused(stored: object) -> None:
    with pytest.raises(TypeError):
        from_stored(stored)  # type: ignore[arg-type]  # what a server may answer all the same

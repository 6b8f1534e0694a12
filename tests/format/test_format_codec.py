"""Codecs: K1, K2, damaged input, threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flakefs.errors import ChunkCorrupt
from flakefs.format.codec import CODECS, PROBE_BYTES, decode, decode_unsized, encode
from flakefs.format.hashing import HASH_BYTES, chunk_hash, chunk_name, content_hash_of, own_code_of, valid_name

contents = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=40), st.integers(1, 3000)),
)


@settings(deadline=None)
@given(contents, st.sampled_from(CODECS))
@example(b"", "zstd")
@example(bytes(1 << 20), "lz4")
def test_round_trip(data: bytes, codec: str) -> None:
    """K1, K2"""
    used, stored = encode(data, codec)
    assert used in (codec, "none")
    assert len(stored) <= len(data)
    assert decode(used, stored, len(data)) == data
    assert encode(bytearray(data), codec) == (used, stored)


@pytest.mark.parametrize("codec", CODECS)
def test_random_bytes_are_stored_as_they_are(codec: str) -> None:
    data = os.urandom(4 * PROBE_BYTES)
    assert encode(data, codec) == ("none", data)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_text_shrinks(codec: str) -> None:
    data = b"the quick brown fox jumps over the lazy dog. " * 4000
    used, stored = encode(data, codec)
    assert used == codec
    assert len(stored) < len(data) // 5


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(CODECS), st.integers(0, 10_000))
def test_any_stored_bytes_decode_to_the_length_or_raise(stored: bytes, codec: str, length: int) -> None:
    try:
        plain = decode(codec, stored, length)
    except ChunkCorrupt:
        return
    assert len(plain) == length


@settings(deadline=None)
@given(st.sampled_from(["zstd", "lz4"]), st.integers(0, 10_000), st.integers(1, 255))
def test_damaged_stored_bytes_never_raise_anything_else(codec: str, where: int, flip: int) -> None:
    data = b"".join(b"line %d\n" % n for n in range(2000))
    used, stored = encode(data, codec)
    assert used == codec
    broken = bytearray(stored)
    broken[where % len(broken)] ^= flip
    try:
        plain = decode(codec, bytes(broken), len(data))
    except ChunkCorrupt:
        return
    assert plain == data or chunk_hash(plain) != chunk_hash(data)


def test_a_header_that_promises_a_terabyte_costs_nothing() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(200_000_000))
    with pytest.raises(ChunkCorrupt, match="no zstd data of 100 bytes"):
        decode("zstd", bomb, 100)


def test_unknown_codec_is_named() -> None:
    with pytest.raises(ChunkCorrupt, match="'brotli'"):
        decode("brotli", b"abc", 3)


def test_threads_do_not_share_compressors() -> None:
    datas = [bytes([n]) * 50_000 + os.urandom(2000) for n in range(32)]

    def both(data: bytes) -> bytes:
        for _ in range(20):
            used, stored = encode(data, "zstd")
            if decode(used, stored, len(data)) != data:
                return b""
        return data

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(both, datas)) == datas


def test_the_hash_is_blake3() -> None:
    """Frozen: another hash is another format."""
    assert HASH_BYTES == 32
    assert chunk_hash(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert chunk_hash(bytearray(b"abc")) == chunk_hash(memoryview(b"abc")) == chunk_hash(b"abc")


def test_names_of_chunks() -> None:
    """H1, H2: frozen."""
    content_hash = chunk_hash(b"abc")
    for code in ("", "000", "012"):
        name = chunk_name(content_hash, code)
        assert name == content_hash + code.encode()
        assert (content_hash_of(name), own_code_of(name)) == (content_hash, code)
        assert valid_name(name)
    assert not any(map(valid_name, (b"", content_hash[:31], content_hash + b"0", content_hash + b"00x")))


@pytest.mark.parametrize("codec", CODECS)
def test_decoding_needs_no_length(codec: str) -> None:
    data = b"content that compresses " * 1000
    used, stored = encode(data, codec)
    assert decode_unsized(used, stored, len(data)) == data
    assert decode_unsized(used, stored, 8 << 20) == data
    if codec != "none":
        with pytest.raises(ChunkCorrupt):
            decode_unsized(used, stored, len(data) - 1)
        with pytest.raises(ChunkCorrupt):
            decode_unsized(used, b"\0" + stored[1:], 8 << 20)

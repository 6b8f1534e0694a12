"""What a commit tells the other sessions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flakefs.errors import Damaged
from flakefs.format.news import BindingNews, FolderNews, InodeNews, News, decode_news, encode_news

number = st.integers(0, 2**63 - 1)
inodes = st.lists(st.builds(InodeNews, number, number, st.integers(1, 7)), max_size=5)
names = st.binary(max_size=255)
bindings = st.lists(st.builds(BindingNews, number, names, st.integers(-(2**63), 2**63 - 1), number, number), max_size=5)
folders = st.lists(st.builds(FolderNews, number, number, st.integers(-9, 9), number), max_size=5)


@given(st.builds(News, number, st.just(False), inodes, bindings, folders))
def test_news_round_trip(news: News) -> None:
    """N2 (its number), N3."""
    assert decode_news(encode_news(news)) == news


def test_too_much_is_everything() -> None:
    """N3."""
    news = News(7, False, [InodeNews(ino, 1, 1) for ino in range(1_001)], [], [])
    assert decode_news(encode_news(news)) == News(7, True, [], [], [])


def test_news_of_two_commits_differ() -> None:
    """N1."""
    assert encode_news(News(1, False, [], [], [])) != encode_news(News(2, False, [], [], []))


def test_what_is_no_news_is_damaged() -> None:
    with pytest.raises(Damaged):
        decode_news(b"\x05\0\0\0\0")

"""stat() and find() ask again while the metadata server is away (P5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import flakefs
from flakefs.api import facts
from flakefs.errors import Unavailable
from flakefs.namespace import queries
from flakefs.testing.stack import NewFresh, new_fresh

__all__ = ["new_fresh"]


def away_twice(call: Callable[..., Any]) -> Callable[..., Any]:
    failures = [Unavailable("away")] * 2

    def asked(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return call(*args, **options)

    return asked


@pytest.fixture
def fs(new_fresh: NewFresh) -> Iterator[flakefs.Client]:
    with flakefs.connect(new_fresh().config) as client:
        client.mkdir("/d")
        with client.open("/d/f", "wb") as file:
            file.write(b"content" * 2_000)
        yield client


def test_stat(fs: flakefs.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "chunk_facts", away_twice(facts.chunk_facts))
    assert len(fs.stat("/d/f").chunks) == 1


def test_find(fs: flakefs.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.sync()
    monkeypatch.setattr(queries, "find", away_twice(queries.find))
    assert [entry.path for entry in fs.find("/", kind="file")] == [b"/d/f"]

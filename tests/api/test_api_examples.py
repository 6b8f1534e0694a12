"""The examples of docs/api.md are run, against a real file system."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest

from flakefs.app.stack import metadata_door
from flakefs.config import load
from flakefs.engine.admin import create_filesystem
from flakefs.namespace import schema
from flakefs.testing.servers import Servers

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture
def here(servers: Servers, new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder whose flakefs.conf leads to an empty file system, and with a README.md."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLAKEFS_CONFIG", raising=False)
    database = new_database()
    (tmp_path / "README.md").write_text("hello " * 1000)
    (tmp_path / "flakefs.conf").write_text(
        f'[metadata]\nuri = "{servers.metadata_uri}"\ndatabase = "{database}"\n[engine]\nreserve_bytes = 0\n'
    )
    with metadata_door(load(), purpose="format") as (door, resolve):
        create_filesystem(
            door, database, chunk_size=1 << 20, codec="zstd", first_node_uri=servers.node_uri(1),
            first_node_database=new_database(), resolve=resolve, prepare=schema.create,
        )  # fmt: skip


@pytest.mark.usefixtures("here")
def test_the_examples_of_the_page() -> None:
    text = PAGE.read_text().replace("```", "")
    test = doctest.DocTestParser().get_doctest(text, {}, "api.md", str(PAGE), 0)
    output: list[str] = []
    result = doctest.DocTestRunner().run(test, out=output.append)
    assert result.failed == 0, "".join(output)
    assert result.attempted > 30

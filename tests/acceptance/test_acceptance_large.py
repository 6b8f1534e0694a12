"""A large file, and a database that lives on the mount."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from flakefs.testing.mounted import Mount, NewMount

MIB = 1024 * 1024
LARGE_MIB = int(os.environ.get("FLAKEFS_LARGE_MIB", "256"))
"""tests/run-long takes 1024."""
TRANSACTIONS = 200


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_large_random_file(new_mount: NewMount) -> None:
    mount = new_mount()
    path = mount.path / "large"
    written = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(LARGE_MIB):
            piece = os.urandom(MIB)
            written.update(piece)
            file.write(piece)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    mount.remount()
    assert path.stat().st_size == LARGE_MIB * MIB
    assert path.stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert digest(path) == written.hexdigest()


def test_a_database_with_many_transactions(mounted: Mount) -> None:
    path = mounted.path / "database.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table t (number integer primary key, text blob)")
        for number in range(TRANSACTIONS):
            with database:
                database.execute("insert into t values (?, ?)", (number, os.urandom(500)))
                database.execute("update t set text = ? where number = ?", (b"changed", number // 2))
        with database:
            database.execute("delete from t where number % 5 = 0")
        rows = list(database.execute("select * from t order by number"))
    before = digest(path)
    mounted.remount()
    assert digest(path) == before
    assert [name.name for name in mounted.path.iterdir()] == ["database.sqlite"]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert list(database.execute("select * from t order by number")) == rows
    assert len(rows) == TRANSACTIONS - TRANSACTIONS // 5

"""Times of folders, which shared mode writes outside of the commits (P1)."""

from __future__ import annotations

import pytest

from flakefs.errors import Unavailable
from flakefs.format.documents import INODES
from flakefs.namespace import shared as module
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from tests.shared.conftest import ROOT, put, shared


async def test_they_survive_the_end_of_a_mount_while_the_server_is_away(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = module._raise_times, [Unavailable("away")] * 3

    def away(*args: object) -> None:
        if failures:
            raise failures.pop()
        real(*args)

    monkeypatch.setattr(module, "_raise_times", away)
    async with fresh.open() as other:
        async with fresh.open() as one:
            await shared(one)
            folder = (await one.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
            await put(one.fs, b"f", b"", parent=folder)
            mtime = (await one.fs.ns.get(folder)).mtime
        assert not failures
        document = await other.fs.ns._cache.read(lambda db: db[INODES].find_one({"_id": folder}))
        assert document is not None
        assert document["mtime"] == mtime
    await fresh.assert_sound_now()

"""A chunk document is damaged, deleted or swapped by hand: EIO for that file, and for no other (P7)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from bson.binary import Binary

from flakefs.testing.mounted import Mount
from flakefs.testing.servers import Servers

SIZE = 300_000
Document = dict[str, Any]


def deleted(collection: Any, victim: Document, other: Document) -> None:
    collection.delete_one({"_id": victim["_id"]})


def damaged(collection: Any, victim: Document, other: Document) -> None:
    data = bytearray(victim["d"])
    data[len(data) // 2] ^= 1
    collection.update_one({"_id": victim["_id"]}, {"$set": {"d": Binary(bytes(data))}})


def shortened(collection: Any, victim: Document, other: Document) -> None:
    collection.update_one({"_id": victim["_id"]}, {"$set": {"d": Binary(victim["d"][:-1])}})


def emptied(collection: Any, victim: Document, other: Document) -> None:
    collection.replace_one({"_id": victim["_id"]}, {})


def swapped(collection: Any, victim: Document, other: Document) -> None:
    """The content of another chunk, with all that belongs to it."""
    collection.replace_one({"_id": victim["_id"]}, {**other, "_id": victim["_id"]})


def swapped_data(collection: Any, victim: Document, other: Document) -> None:
    """The label stays, the content is another chunk's."""
    collection.update_one({"_id": victim["_id"]}, {"$set": {"d": other["d"]}})


SAYS = {
    deleted: "is missing",
    damaged: "damaged|other bytes",
    shortened: "damaged|other bytes",
    emptied: "damaged",
    swapped: "other bytes",
    swapped_data: "other bytes",
}


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_p7_damaged_chunks(new_mount: Callable[..., Mount], servers: Servers, codec: str) -> None:
    mount = new_mount(codec=codec)
    names = [harm.__name__ for harm in SAYS] + ["whole", "donor"]
    contents = {name: os.urandom(SIZE // 2) + (name.encode() * SIZE)[: SIZE // 2] for name in names}
    for name, content in contents.items():
        (mount.path / name).write_bytes(content)
    mount.remount()
    hashes = {name: content_hash(mount, name) for name in names}
    with servers.node(1).client() as client:
        database = client[mount.node_database]
        (name,) = (name for name in database.list_collection_names() if name.startswith("vol_"))
        collection = database[name]
        stored = {name: collection.find_one({"h": Binary(hashes[name])}) for name in names}
        chunks = {name: chunk for name, chunk in stored.items() if chunk is not None}
        assert len(chunks) == len(names)
        for harm in SAYS:
            harm(collection, chunks[harm.__name__], chunks["donor"])

        for harm, says in SAYS.items():
            victim = mount.path / harm.__name__
            ino = victim.stat().st_ino
            for _ in range(2):  # also when it was tried before
                with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
                    victim.read_bytes()
            line = rf"read of inode {ino} \(handle \d+\): .*chunk {hashes[harm.__name__].hex()[:12]} .*({says})"
            assert re.search(line, mount.log_text()), f"{harm.__name__}: the log does not name file and chunk"
            mount.expect_log(line)
        mount.check_log()
        for name in ("whole", "donor"):
            assert (mount.path / name).read_bytes() == contents[name]
        (mount.path / "new").write_bytes(contents["whole"])  # the mount lives on
        mount.sync()

        found = mount.fsck().found
        lost = [problem.where for problem in found if problem.kind.id == "content-lost"]
        for harm in SAYS:
            assert any(f"/{harm.__name__})" in where for where in lost), f"{harm.__name__} is not in {lost}"
        for chunk in chunks.values():  # restored from a backup
            collection.replace_one({"_id": chunk["_id"]}, chunk, upsert=True)
    for name in names:
        assert (mount.path / name).read_bytes() == contents[name]


def content_hash(mount: Mount, name: str) -> bytes:
    """The hash of a file's only chunk."""
    with mount.servers.metadata.client() as client:
        document = client[mount.database]["inodes"].find_one({"n": name})
    assert document is not None
    (extent,) = document["e"]
    return bytes(extent["h"])

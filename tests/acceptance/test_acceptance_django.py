"""A source tree of thousands of files goes in by every usual way, survives a remount, and goes without a trace (P1)."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

from bson.objectid import ObjectId

from flakefs.app.stack import metadata_door
from flakefs.config import load
from flakefs.testing.mounted import Mount, NewMount
from flakefs.testing.pictures import differences, picture
from flakefs.tools.gc import collect

TREES = ("copied", "unpacked", "synced")


def stored(mount: Mount) -> tuple[int, int]:
    """(chunks, bytes) as the volumes' documents count them, after everything is stored."""
    mount.sync()
    with mount.servers.metadata.client() as client:
        volumes = list(client[mount.database]["volumes"].find())
    return sum(volume["chunks"] for volume in volumes), sum(volume["bytes"] for volume in volumes)


def on_nodes(mount: Mount) -> dict[str, int]:
    """Chunk documents by collection, as the node itself counts them."""
    with mount.servers.node(1).client() as client:
        database = client[mount.node_database]
        names = [name for name in database.list_collection_names() if name.startswith("vol_")]
        return {name: len(list(database[name].find({}, {"_id": 1}))) for name in names}


def together(*calls: Callable[[], object]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def run(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, f"{words[0]} failed:\n{done.stderr[-3000:]}"
    assert not done.stderr, done.stderr[-3000:]


def test_the_django_tree_by_every_way(new_mount: NewMount, django: Any, git: Callable[..., str]) -> None:
    mount = new_mount()
    top = mount.path
    run("cp", "-a", django.tree, top / "copied")
    once, once_bytes = stored(mount)
    assert once > 1000

    # The same tree a second time grows what the nodes store by less than 1 %.
    (top / "unpacked").mkdir()
    run("tar", "-xpf", django.archive, "-C", top / "unpacked")
    _, twice_bytes = stored(mount)
    assert once_bytes <= twice_bytes < 1.01 * once_bytes

    # Two at the same time.
    together(
        partial(run, "rsync", "-aH", f"{django.tree}/", top / "synced"),
        partial(git, top, "clone", "-q", str(django.repository), "cloned"),
    )
    mount.remount()

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool:
        wanted, *found = pool.map(picture, (django.tree, *(top / name for name in TREES)))
    for name, seen in zip(TREES, found, strict=True):
        assert not differences(seen, wanted), f"{name} is not the tree"
    assert git(top / "cloned", "status", "--porcelain", "--ignored") == ""
    git(top / "cloned", "fsck", "--full")
    head = git(django.repository, "rev-parse", "HEAD")
    assert git(top / "cloned", "rev-parse", "HEAD") == head
    mount.check_fsck()

    together(*(partial(run, "rm", "-rf", top / name) for name in (*TREES, "cloned")))
    assert list(top.iterdir()) == []
    mount.unmount()
    assert_empty(mount)


def assert_empty(mount: Mount) -> None:
    """After gc nothing is left but the root folder: no chunk on a node, every count zero."""
    with metadata_door(load(mount.config), purpose="gc") as (door, resolve):
        collect(door, mount.database, resolve, grace_seconds=0)
        database = door.client[mount.database]
        assert database["chunks"].count_documents({}) == 0
        assert database["extents"].count_documents({}) == 0
        assert database["orphans"].count_documents({}) == 0
        assert [document["_id"] for document in database["inodes"].find()] == [1]
        for volume in database["volumes"].find():
            assert (volume["chunks"], volume["bytes"]) == (0, 0), volume
    counts = on_nodes(mount)
    assert counts
    assert set(counts.values()) == {0}, counts


def test_a_chunk_that_is_left_is_seen(new_mount: NewMount) -> None:
    """The last check can fail: it counts what nobody names."""
    mount = new_mount()
    (mount.path / "f").write_bytes(b"x" * 100_000)
    mount.sync()
    (name,) = on_nodes(mount)
    with mount.servers.node(1).client() as client:
        client[mount.node_database][name].insert_one({"_id": ObjectId()})
        assert on_nodes(mount) == {name: 2}
        client[mount.node_database][name].delete_many({"d": {"$exists": False}})

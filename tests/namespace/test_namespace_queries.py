"""find and paths_of, against a walk over the same tree."""

from __future__ import annotations

import fnmatch
import stat
from typing import Any

import pytest

from flakefs.namespace import queries
from tests.namespace.conftest import World


async def build(world: World) -> None:
    async with world.open() as ns:
        folder = await world.folder(ns, ns.root, b"folder")
        deep = await world.folder(ns, folder, b"deep")
        for number, name in enumerate([b"a.txt", b"b.txt", b"c.md", b"[x].txt", b"line\n.txt", b"bad\xff.txt", b"a+b"]):
            file = await world.file(ns, (ns.root, folder, deep)[number % 3], name, b"x" * (number + 1))
            file.mtime = 1000 * number
            ns.changed(file)
        await ns.link(file, deep, b"further.txt", now=9)
        await ns.make(ns.root, b"sym", mode=stat.S_IFLNK | 0o777, uid=0, gid=0, target=b"a.txt", now=10**6)
        held = await world.file(ns, ns.root, b"nameless.txt")
        ns.hold(held.ino)
        await ns.unlink(ns.root, b"nameless.txt", now=11)
        await ns.commit()
        ns.release(held.ino)


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"name": "*.txt"},
        {"name": "a.txt"},
        {"name": "?.txt"},
        {"name": "[ab].txt"},
        {"name": "[!a]*"},
        {"name": "[[]x].txt"},
        {"name": "[x"},
        {"name": "*+*"},
        {"name": "*.TXT"},
        {"name": "line*"},
        {"name": "bad*"},
        {"name": "bad\udcff*"},
        {"name": "bad\udcff.txt"},
        {"name": "further*"},
        {"size_min": 3, "size_max": 5},
        {"newer": 1000, "older": 5000},
        {"type": "d"},
        {"type": "l"},
        {"type": "f", "name": "*.txt", "size_max": 2},
        {"name": "nothing"},
    ],
    ids=str,
)
async def test_find_is_a_walk_without_walking(world: World, question: dict[str, Any]) -> None:
    """U1."""
    await build(world)
    found = dict(queries.find(world.db, **question))
    wanted = {}
    for path, record in world.tree().items():
        name = path.rsplit(b"/", 1)[1].decode("utf-8", "surrogateescape")
        if not fnmatch.fnmatchcase(name, question.get("name", "*")):
            continue
        if not question.get("size_min", 0) <= record.size <= question.get("size_max", 10**9):
            continue
        if not question.get("newer", -1) < record.mtime < question.get("older", 2**63):
            continue
        if "type" in question and stat.S_IFMT(record.mode) != queries.TYPES[question["type"]]:
            continue
        wanted[path] = record
    assert found == wanted


async def test_paths_of(world: World) -> None:
    await build(world)
    by_ino: dict[int, list[bytes]] = {}
    for path, record in world.tree().items():
        by_ino.setdefault(record.ino, []).append(path)
    asked = [*by_ino, 1, 10**9]
    paths = queries.paths_of(world.db, asked)
    assert paths == {ino: sorted(paths) for ino, paths in by_ino.items()} | {1: [b"/"], 10**9: []}

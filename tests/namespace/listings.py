"""What tests ask a namespace again and again: all names of a folder, a name that is there, the map of a file."""

from __future__ import annotations

from flakefs.namespace import FileMap, Inode, Namespace


async def names(ns: Namespace, parent: Inode, limit: int = 3) -> list[bytes]:
    """All names, page by page; checks that cookies ascend (E3)."""
    result, after = [], 0
    while page := await ns.listing(parent, after, limit):
        assert len(page) <= limit
        for cookie, name, inode in page:
            assert cookie > after
            after = cookie
            assert ns.peek(inode.ino) is inode
            result.append(name)
    return result


async def child_of(ns: Namespace, folder: Inode, name: bytes) -> Inode:
    """A name that is there."""
    inode = await ns.child(folder, name)
    assert inode is not None
    return inode


def map_of(file: Inode) -> FileMap:
    assert file.map is not None
    return file.map

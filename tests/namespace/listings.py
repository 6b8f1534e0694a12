"""All names of a folder, for tests."""

from __future__ import annotations

from flakefs.namespace import Namespace


async def names(ns: Namespace, parent, limit: int = 3) -> list[bytes]:
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

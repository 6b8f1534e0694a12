"""Folders in use that another session moved: their new names are looked up, so that they have a path again.

Purpose
    The kernel forgets the old name of such a folder. Until the new one is looked up, whoever works in it has no working
    directory and the old "..", and a rename of it answers ESTALE: the kernel does not take its entry to another place
    while it holds the locks of a rename. So it is looked up from here.

Invariants
    M1  What waits is known by its number, so a folder that is moved all the time is looked up once in each round; of
        more than LOOKED_UP_MAX that wait the rest is left to whoever looks it up next.
    M2  Nothing waits for this: the store is asked in a task of its own, and the kernel in threads.

Concurrency
    Trio task only.

Not here
    When the kernel has forgotten the old names, and what is looked up when it forgets everything (fuse.caches).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio

from flakefs.errors import FlakeError
from flakefs.fuse.told import Place
from flakefs.namespace import Inode, Namespace
from flakefs.values import ROOT_INO

LOOKED_UP_MAX = 1_000
"""Folders that are looked up again at a time."""
DEPTH_MAX = 1_000
LOOKS = 5
PAUSE_SECONDS = 0.05
"""One that is not found by its new name is looked for so often: news of a folder above it may be under way, or the
kernel may be at work in the folder where it was.
"""


class Moved:
    def __init__(self, ns: Namespace, mountpoint: str, missed: Callable[[list[bytes]], Awaitable[list[bytes]]]) -> None:
        self._ns = ns
        self._mountpoint = os.fsencode(mountpoint)
        self._missed = missed  # looks paths up, returns those that it did not find
        # Mutable
        self._news: dict[int, Place] = {}  # the kernel has not forgotten their old names yet
        self._places: dict[int, Place] = {}
        self._wake = trio.Event()

    def add(self, ino: int, place: Place) -> None:
        """News says that an inode has this place now."""
        inode = self._ns.known(ino)
        if ino in self._ns.held and (inode is None or inode.entries is not None) and len(self._news) < LOOKED_UP_MAX:
            self._news[ino] = place

    def take(self) -> dict[int, Place]:
        """Those of which there was news."""
        taken, self._news = self._news, {}
        return taken

    def forgotten(self, taken: dict[int, Place]) -> None:
        """The kernel has forgotten their old names."""
        if taken:
            self._places.update(taken)
            for ino in list(self._places)[LOOKED_UP_MAX:]:
                del self._places[ino]
            self._wake.set()

    async def all_again(self, held: list[int]) -> None:
        """The kernel has forgotten every name: look up what is a folder, where memory last knew it."""
        folders: list[bytes] = []
        for ino in held:
            inode = self._ns.known(ino) if ino in self._ns.held else None
            if inode is not None and inode.entries is not None:
                path = self._known_path(inode)
                if path is not None and len(folders) < LOOKED_UP_MAX:
                    folders.append(path)
        await self._missed(sorted(folders))

    def _known_path(self, inode: Inode) -> bytes | None:
        parts: list[bytes] = []
        at: Inode | None = inode
        while at is not None and at.ino != ROOT_INO and len(parts) < DEPTH_MAX:
            parts.append(at.name)
            at = self._ns.known(at.parent)
        return None if at is None or at.ino != ROOT_INO else b"/".join([self._mountpoint, *reversed(parts)])

    async def run(self) -> None:
        """Look them up, for ever."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            looks: dict[tuple[int, Place], int] = {}
            while self._places:
                places, self._places = self._places, {}
                paths = await self._paths(places)
                missed = {paths[path] for path in await self._missed(sorted(paths))}
                for ino in missed:
                    looked = ino, places[ino]
                    looks[looked] = looks.get(looked, 0) + 1
                    if looks[looked] < LOOKS:
                        self._places.setdefault(ino, places[ino])
                if missed:
                    await trio.sleep(PAUSE_SECONDS)

    async def _paths(self, places: dict[int, Place]) -> dict[bytes, int]:
        paths = {}
        for ino, place in places.items():
            if ino not in self._ns.held:
                continue
            try:
                path = await self._path(place)
            except FlakeError:  # a folder above it is gone, or the server is away: then everything is dropped soon
                continue
            if path is not None:
                paths[path] = ino
        return paths

    async def _path(self, place: Place) -> bytes | None:
        parent, name = place
        parts = [name]
        while parent != ROOT_INO:
            above = self._ns.peek(parent) or await self._ns.get(parent)
            if not above.nlink or len(parts) > DEPTH_MAX:
                return None
            parts.append(above.name)
            parent = above.parent
        return b"/".join([self._mountpoint, *reversed(parts)])

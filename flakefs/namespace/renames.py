"""rename: plain, without replacing, and exchanging.

Invariants
    R1  As H1: everything is loaded, looked at again, checked and changed with no await in between.
    R2  A folder never comes to lie inside itself.
    R3  Two names of the same inode stay as they are, which is a success.
    R4  What is moved is what the caller meant, at that moment: `meant` is asked with no await before the change.

Concurrency
    Belongs to the trio thread.

Not here
    The steps that other changes need too (namespace.changes).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Literal

from flakefs.errors import (
    Exists,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotMeant,
    TooManyLinks,
)
from flakefs.format.names import checked
from flakefs.namespace.bindings import enter, leave
from flakefs.namespace.changes import Changes, Heir
from flakefs.namespace.inode import Entry, Inode, Link, Unknown
from flakefs.namespace.options import LINK_MAX
from flakefs.values import ROOT_INO


class IntoItself(InvalidArgument):
    """A folder would lie inside itself (R2), as far as is known here."""


Meant = Callable[[Inode, Inode | None], bool]
"""(what is moved, what was there or is exchanged with it) -> is that what the caller wants to move (R4)?"""


class _Unchanged(enum.Enum):
    UNCHANGED = "unchanged"


UNCHANGED: Final = _Unchanged.UNCHANGED
"""What an operation returns that had nothing to change (R3)."""


class Renames:
    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._cache = changes.cache
        self._entries = changes.entries

    async def rename(
        self,
        parent: Inode,
        name: bytes,
        new_parent: Inode,
        new_name: bytes,
        *,
        noreplace: bool = False,
        exchange: bool = False,
        meant: Meant | None = None,
        now: int,
    ) -> Literal[_Unchanged.UNCHANGED] | None:
        """See rename(2) and renameat2(2); NotMeant when *meant* says no."""
        _check_request(name, new_name, noreplace, exchange)
        both = (parent.ino, name), (new_parent.ino, new_name)
        await self._changes.begin()
        held: list[Inode | None] = []  # what was loaded stays in memory until the look that counts
        heir: Heir | None = None
        peek, child = self._entries.peek_child, self._entries.child
        while True:
            if await self._changes.uncommitted(both):
                continue
            source, target = peek(parent, name), peek(new_parent, new_name)
            if isinstance(source, Unknown) or isinstance(target, Unknown):
                held += await child(parent, name), await child(new_parent, new_name)
                continue
            if source is None or (exchange and target is None):
                raise NotFound(f"there is no {name if source is None else new_name!r}")
            if noreplace and target is not None:
                raise Exists(f"there is a {new_name!r} already")
            if meant is not None and not meant(source, target):
                raise NotMeant(f"{name!r} leads elsewhere by now")
            if source is target:
                return UNCHANGED
            if not self._ancestors_known(parent, new_parent, source, target):
                held += [*await self._load_ancestors(parent), *await self._load_ancestors(new_parent)]
                continue
            self._check_places(parent, new_parent, source, target if exchange else None)
            if exchange or target is None:
                break
            _check_kinds(name, source, new_name, target)
            if target.entries is None:
                if not self._changes.needs_heir(new_parent, new_name, target, heir):
                    break
                heir = await self._changes.find_heir(target)
            else:
                empty = await self._entries.is_empty(target)
                if empty is False:
                    raise NotEmpty(f"the folder {new_name!r} is not empty")
                if empty is True:
                    break
                held.append(target)
        self._changes.check(parent, new_parent)
        if exchange and target is not None:
            self._exchange(parent, name, source, new_parent, new_name, target, now)
        else:
            self._replace(parent, name, source, new_parent, new_name, target, heir, now)
        for folder in (parent, new_parent):
            self._cache.names_changed(folder, now)
        return None

    # -- with no await --

    def _replace(
        self,
        parent: Inode,
        name: bytes,
        source: Inode,
        new_parent: Inode,
        new_name: bytes,
        target: Inode | None,
        heir: Heir | None,
        now: int,
    ) -> None:
        if target is not None:
            if target.entries is not None:
                self._changes.drop_folder(new_parent, new_name, target, now)
            else:
                self._changes.drop_name(new_parent, new_name, target, heir, now)
        assert parent.entries is not None
        entry = parent.entries[name]
        leave(parent, name)
        self._place(new_parent, new_name, entry, source, now)
        if source.entries is not None and parent is not new_parent:
            self._folder_moves(parent, new_parent, 1)

    def _exchange(
        self,
        parent: Inode,
        name: bytes,
        source: Inode,
        new_parent: Inode,
        new_name: bytes,
        target: Inode,
        now: int,
    ) -> None:
        assert parent.entries is not None
        assert new_parent.entries is not None
        one, other = parent.entries[name], new_parent.entries[new_name]
        self._place(new_parent, new_name, one, source, now)
        self._place(parent, name, other, target, now)
        moved = (source.entries is not None) - (target.entries is not None)
        if moved and parent is not new_parent:
            self._folder_moves(parent, new_parent, moved)
        elif source.entries is not None and parent is not new_parent:
            self._cache.exclusive = self._cache.shared

    def _folder_moves(self, parent: Inode, new_parent: Inode, count: int) -> None:
        self._cache.count_folder(parent, -count)
        self._cache.count_folder(new_parent, count)
        self._cache.exclusive = self._cache.shared

    def _place(self, parent: Inode, name: bytes, entry: Entry, inode: Inode, now: int) -> None:
        """The document behind *entry* gets this name."""
        assert entry is not None
        enter(parent, name, entry)
        if isinstance(entry, Link):
            if entry.was is None and not entry.fresh:
                entry.was = (entry.parent, entry.name)
            entry.parent, entry.name = parent.ino, name
            self._cache.mark_link(entry)
        else:
            inode.move(parent.ino, name)
        inode.ctime = now
        self._cache.mark(inode)

    def _check_places(self, parent: Inode, new_parent: Inode, source: Inode, target: Inode | None) -> None:
        """R2, and the number of sub-folders."""
        self._check_outside(source, new_parent)
        if target is not None:
            self._check_outside(target, parent)
        if parent is not new_parent and source.entries is not None and new_parent.nlink >= LINK_MAX:
            raise TooManyLinks(f"the folder {new_parent.name!r} has {LINK_MAX} sub-folders, more are not possible")

    def _check_outside(self, folder: Inode, place: Inode) -> None:
        if folder.entries is not None:
            current = self._cache.current
            at: Inode | None = place
            while at is not None:
                if at is folder:
                    raise IntoItself(f"the folder {folder.name!r} cannot be moved into itself")
                at = current(at.parent)

    def _ancestors_known(self, parent: Inode, new_parent: Inode, source: Inode, target: Inode | None) -> bool:
        """Are all folders above both in memory, if that matters?"""
        if parent is new_parent:
            return True
        if source.entries is None and (target is None or target.entries is None):
            return True
        current = self._cache.current
        for folder in (parent, new_parent):
            at: Inode | None = folder
            while at is not None and at.ino != ROOT_INO and at.nlink:
                at = current(at.parent)
            if at is None:
                return False
        return True

    async def _load_ancestors(self, folder: Inode) -> list[Inode]:
        held = [folder]
        while folder.ino != ROOT_INO and folder.nlink:
            folder = await self._cache.get(folder.parent)
            held.append(folder)
        return held


def _check_request(name: bytes, new_name: bytes, noreplace: bool, exchange: bool) -> None:
    checked(name)
    checked(new_name)
    if noreplace and exchange:
        raise InvalidArgument("a rename cannot both exchange two names and refuse to replace one")


def _check_kinds(name: bytes, source: Inode, new_name: bytes, target: Inode) -> None:
    """A folder replaces folders only, and nothing else replaces a folder."""
    if target.entries is None and source.entries is not None:
        raise NotDirectory(f"{new_name!r} is not a folder, but {name!r} is")
    if target.entries is not None and source.entries is None:
        raise IsDirectory(f"{new_name!r} is a folder, but {name!r} is not")

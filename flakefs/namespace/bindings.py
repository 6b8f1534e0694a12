"""What memory knows of the names in one folder: single steps that change it, or ask it.

Invariants
    B1  `order`, `aliases`, `complete` and `doubts` of the folder fit its `entries` after each step.
    B2  Whatever is forgotten raises `doubts`: answers that were asked for before may be older than the reason.

Concurrency
    Belongs to the trio thread; nothing here waits.

Not here
    Queries (namespace.entries), what may be changed (namespace.changes), news (namespace.coherence).
"""

from __future__ import annotations

from flakefs.format.documents import LinkRecord
from flakefs.namespace.folders import Record
from flakefs.namespace.inode import Entry, Inode, Link, cookie_of


def enter(parent: Inode, name: bytes, entry: int | Link, cookie: int | None = None) -> None:
    """*name* leads to *entry* now. *cookie*: where a listing had it until now (E3)."""
    entries = parent.entries
    assert entries is not None
    entries[name] = entry
    aliases = parent.aliases
    if aliases is not None:
        aliases.pop(name, None)
    at = cookie_of(entry)
    if cookie is not None and cookie != at:
        if aliases is None:
            aliases = parent.aliases = {}
        aliases[name] = at = cookie
    order = parent.order
    if order is not None:
        if not order or at > order[-1][0]:
            order.append((at, name))
        else:
            parent.order = None


def leave(parent: Inode, name: bytes) -> None:
    """*name* is gone."""
    entries = parent.entries
    assert entries is not None
    if parent.complete:
        del entries[name]
    else:
        entries[name] = None
    if parent.aliases is not None:
        parent.aliases.pop(name, None)


def has_moved(inode: Inode, entry: Entry, parent: Inode, name: bytes) -> bool:
    """Does the inode have another place than the entry says, because of another session?"""
    return isinstance(entry, int) and (inode.parent != parent.ino or inode.name != name)


def known_id(folder: Inode, name: bytes) -> int | None:
    """The id of the document that holds a name, as far as memory knows; 0: there is none, None: unknown."""
    entries = folder.entries or {}
    if name not in entries:
        return 0 if folder.complete else None
    entry = entries[name]
    return 0 if entry is None else entry if isinstance(entry, int) else entry.id


def learn(folder: Inode, name: bytes, record: Record | None) -> None:
    """A query says what *name* leads to."""
    entries = folder.entries
    if entries is None:
        return
    if isinstance(record, LinkRecord):
        enter(folder, name, Link(record.id, folder.ino, name, record.ino, record.version))
    elif record is not None:
        enter(folder, name, record.ino)
    elif name in entries:
        leave(folder, name)
    elif not folder.complete:
        entries[name] = None


def forget_name(parent: Inode, name: bytes) -> None:
    """Nothing is known of *name* any more."""
    if parent.entries is not None:
        parent.entries.pop(name, None)
        parent.doubts += 1
        parent.complete = False
        parent.order = None


def cookie_at(parent: Inode, name: bytes, entry: Entry) -> int:
    """The cookie that listings show for a name that is there."""
    assert entry is not None
    return (parent.aliases or {}).get(name) or cookie_of(entry)

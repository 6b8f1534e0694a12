"""An inode, and a further hard link, in memory.

Invariants
    I1  At most one Inode object per ino exists in a process at any time (namespace.cache holds it).
    I2  `entries` of a folder maps a name to its ino, to the Link whose document holds it, or to None ("surely
        absent"). When `complete`, a name that is not in it is absent too.
    I3  `version` is the one of the last commit that is known to have gone through, 0 before the first.
    I4  `was` is the (parent, name) of the last cut while it differs from the present one, or None.

Concurrency
    Belongs to the trio thread. Layers above read everything, and write only mode, uid, gid, size, atime, mtime,
    ctime and xattrs, followed by Namespace.changed() without an await in between.

Not here
    Which objects stay in memory (namespace.cache), chunk maps (namespace.maps).
"""

from __future__ import annotations

import enum
import stat
from typing import Final, Literal

from flakefs.format.documents import InodeRecord, LinkRecord
from flakefs.namespace.maps import FileMap

ASKED_MTIME, ASKED_ATIME = 1, 2
"""Bits of `asked`."""

WEIGHT_BYTES = 500
"""What one unit of `cached_inodes` stands for."""


class Unknown(enum.Enum):
    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
"""Not in memory: ask the database."""


class Link:
    """A further hard link: (parent, name) leads to inode *ino*. Its document has the id *id* < 0."""

    __slots__ = ("dirty", "fresh", "gone", "id", "ino", "name", "parent", "version", "was")

    def __init__(self, id: int, parent: int, name: bytes, ino: int, version: int) -> None:
        self.id = id
        self.parent = parent
        self.name = name
        self.ino = ino
        self.version = version
        self.was: tuple[int, bytes] | None = None
        self.fresh = version == 0  # in no cut yet
        self.dirty = False
        self.gone = False  # the name was removed, or is that of the inode itself now

    def record(self) -> LinkRecord:
        return LinkRecord(self.id, self.parent, self.name, self.ino, self.version)


Entry = int | Link | None


class Inode:
    """See the module; times are ns since the epoch."""

    __slots__ = (
        "__weakref__",
        "aliases",
        "aset",
        "asked",
        "atime",
        "btime",
        "complete",
        "ctime",
        "dirty",
        "doubts",
        "entries",
        "expires",
        "flying",
        "free",
        "fresh",
        "gid",
        "gone",
        "ino",
        "large",
        "map",
        "mode",
        "mset",
        "mtime",
        "name",
        "nlink",
        "order",
        "orphaned",
        "parent",
        "pending",
        "pending_flying",
        "prefetched",
        "rdev",
        "size",
        "target",
        "uid",
        "version",
        "was",
        "xattrs",
    )

    def __init__(
        self,
        ino: int,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int,
        size: int,
        nlink: int,
        atime: int,
        mtime: int,
        ctime: int,
        btime: int,
        xattrs: dict[bytes, bytes],
        target: bytes,
        version: int,
    ) -> None:
        self.ino = ino
        self.parent = parent
        self.name = name
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.size = size
        self.nlink = nlink
        self.atime = atime
        self.mtime = mtime
        self.ctime = ctime
        self.btime = btime
        self.xattrs = xattrs
        self.target = target
        self.version = version
        self.mset = self.aset = 0  # marks of an mtime and an atime that programs have set (namespace.times)
        self.asked = 0  # which were set since the last cut
        # Content: regular files
        self.map: FileMap | None = None
        # Entries: folders
        self.entries: dict[bytes, Entry] | None = None
        self.complete = False
        self.large = False  # has more entries than are kept whole
        self.prefetched = False
        self.doubts = 0  # how often something in it was forgotten, because others may have changed it
        self.order: list[tuple[int, bytes]] | None = None  # while it is listed: (cookie, name), a sorted superset
        self.aliases: dict[bytes, int] | None = None  # name -> cookie, where it is no longer abs(document id)
        # What the journal keeps
        self.was: tuple[int, bytes] | None = None
        self.fresh = version == 0  # in no cut yet
        self.dirty = False  # differs from the last cut
        self.flying = False  # in the commit that runs
        self.orphaned = False  # an orphan document names it (or will when the running commit is through)
        self.gone = False  # its document is deleted, or never was
        self.expires = 0.0  # when it has to be read again; see namespace.cache
        self.free = False  # no name, and no session waits for it: may be deleted
        self.pending: list[tuple[int, int]] | None = None  # shared mode: ranges written since the last cut
        self.pending_flying: list[tuple[int, int]] | None = None  # and those of the commit that runs

    @property
    def used(self) -> int:
        """Bytes that extents cover."""
        return self.map.used if self.map is not None else 0

    @property
    def place(self) -> tuple[int, bytes]:
        return self.parent, self.name

    def record(self) -> InodeRecord:
        """Its present state, detached; the extents are those of the first segment."""
        file_map = self.map
        return InodeRecord(
            self.ino,
            self.parent,
            self.name,
            self.mode,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.nlink,
            file_map.used if file_map is not None else 0,
            self.atime,
            self.mtime,
            self.ctime,
            self.btime,
            self.xattrs.copy() if self.xattrs else self.xattrs,
            self.target,
            self.version,
            file_map.segment(0) if file_map is not None else [],
            self.mset,
            self.aset,
        )

    def weight(self) -> int:
        """Units of `cached_inodes` that keeping it costs."""
        units = 1
        if self.entries:
            units += len(self.entries) // 4
        if self.map is not None:
            units += 1 + self.map.weight() // WEIGHT_BYTES  # an empty map alone takes about 500 bytes
        if self.xattrs:
            units += sum(map(len, self.xattrs.values())) // WEIGHT_BYTES
        return units

    def move(self, parent: int, name: bytes) -> None:
        """Take another name; the caller marks it dirty."""
        if self.was is None and not self.fresh:
            self.was = (self.parent, self.name)
        self.parent = parent
        self.name = name

    def wrote(self, start: int, stop: int) -> None:
        """Bytes [start, stop) were written and answered, but not committed."""
        pending = self.pending
        if pending is None:
            self.pending = [(start, stop)]
        elif pending[-1][0] <= start <= pending[-1][1]:
            pending[-1] = (pending[-1][0], max(stop, pending[-1][1]))
        else:
            pending.append((start, stop))

    def refresh(self, record: InodeRecord, *, keep_entries: bool = False) -> None:
        """Take the state of *record*, which others may have changed; times that are written later come on top."""
        (_, self.parent, self.name, self.mode, self.uid, self.gid, self.rdev, self.size, self.nlink, _) = record[:10]
        self.atime, self.mtime, self.ctime, self.btime = record.atime, record.mtime, record.ctime, record.btime
        self.xattrs, self.target = record.xattrs, record.target
        self.mset, self.aset = record.mset, record.aset
        if self.map is not None and self.version != record.version:
            self.map = stored_map(record)
        if self.entries is not None and not keep_entries:
            self.forget_entries()
        self.version = record.version

    def forget_entries(self) -> None:
        """The folder is unknown again; nothing of it may be uncommitted."""
        self.entries = {}
        self.doubts += 1
        self.complete = self.prefetched = False
        self.order = self.aliases = None


def stored_map(record: InodeRecord) -> FileMap:
    return FileMap.stored(record.extents, record.size, record.used)


def from_record(record: InodeRecord) -> Inode:
    """An inode as it is stored."""
    inode = Inode(
        record.ino,
        record.parent,
        record.name,
        record.mode,
        record.uid,
        record.gid,
        record.rdev,
        record.size,
        record.nlink,
        record.atime,
        record.mtime,
        record.ctime,
        record.btime,
        record.xattrs,
        record.target,
        record.version,
    )
    inode.mset, inode.aset = record.mset, record.aset
    kind = stat.S_IFMT(record.mode)
    if kind == stat.S_IFREG:
        inode.map = stored_map(record)
    elif kind == stat.S_IFDIR:
        inode.entries = {}
    return inode


def cookie_of(entry: int | Link) -> int:
    """abs(document id): where the name stands in listings."""
    return entry if isinstance(entry, int) else -entry.id


FileKind = Literal["f", "d", "l", "p", "s", "b", "c"]

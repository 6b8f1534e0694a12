"""What all request handlers share: the file system, and what the kernel is told of an inode, for how long.

Invariants
    AN1 Each answer that gives the kernel an inode by a name is counted once with `fs.remember`, in the same step as the
        answer is made (`_given`, and who does not use it).
    AN2 Time-outs are long while what others change comes to us (fuse.caches), and 0 while it may not; see
        SETTLING_SECONDS for attributes after a change.

Concurrency
    Trio task only.

Not here
    The handlers (fuse.naming, fuse.operations).
"""

from __future__ import annotations

from pyfuse3 import EntryAttributes, RequestContext
from pyfuse3 import Operations as Handlers

from flakefs.fuse.attributes import entry_maker, no_entry
from flakefs.fuse.caches import KernelCaches
from flakefs.fuse.options import FuseOptions
from flakefs.fuse.stand_ins import StandIns
from flakefs.namespace import Inode
from flakefs.vfs import Caller, FileSystem

SETTLING_SECONDS = 1.0
"""The kernel takes the attributes in the answer to a change (before Linux 6.16 to setattr, too) whatever their age: it
might have been told before that another mount changed them. So in shared mode it believes them for so long only.
"""


def caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.umask, ctx.pid)


class Answers(Handlers):
    def __init__(self, fs: FileSystem, options: FuseOptions, caches: KernelCaches) -> None:
        super().__init__()
        # Dependencies
        self._fs = fs
        self._ns = fs.ns
        self._caches = caches
        # Constant after construction
        seconds = options.read_only_cache_seconds if fs.ns.read_only else options.cache_seconds
        self._lasting = entry_maker(seconds, fs.chunk_size)
        self._settling = entry_maker(seconds, fs.chunk_size, attributes_seconds=min(seconds, SETTLING_SECONDS))
        self._passing = entry_maker(0, fs.chunk_size)
        self._missing = no_entry(seconds)
        self._missing_now = no_entry(0)
        # Mutable; changed between checkpoints only
        self._stand_ins = StandIns()

    def ino_of(self, fh: int) -> int:
        """For the log (fuse.boundary)."""
        return self._fs.handles.ino_of(fh)

    def _entry(self, inode: Inode, *, changed: bool = False) -> EntryAttributes:
        """*changed*: in the answer to a change."""
        if not self._caches.quiet:
            return self._passing(inode)
        return self._settling(inode) if changed and self._ns.shared else self._lasting(inode)

    def _given(self, parent: int, name: bytes, inode: Inode) -> EntryAttributes:
        """The attributes of an inode that a change here gave this name."""
        self._fs.remember(inode.ino)
        self._caches.given(parent, name, inode)
        return self._entry(inode, changed=True)

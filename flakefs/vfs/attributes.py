"""Rules for mode, owner and times.

Rules
    A1  Writing and changing the owner clear set-user-id, and set-group-id where the group may execute, and drop
        security.capability. Linux leaves that to the file system (FUSE_HANDLE_KILLPRIV) or does it too: twice
        harms nobody.
    A2  What is made in a folder with set-group-id gets the folder's group; a sub-folder also gets the bit.
    A3  atime follows relatime: it moves when it is not after mtime and ctime, or older than a day.
    A4  A time before 1677 or after 2262, which no document can hold, becomes the nearest one that can, as Linux does
        on every file system. One that got through would keep everything else of its group from being stored.

Concurrency
    Functions of values and of one inode; nothing waits.

Not here
    Who may do it: the kernel checks for a mount (default_permissions); may_access() is for access(2).
"""

from __future__ import annotations

import os
import stat

from flakefs.namespace import Inode
from flakefs.vfs.requests import Caller, Changes

CAPABILITY = b"security.capability"
DAY_NS = 86_400 * 10**9
PERMISSIONS = 0o7777
TIME_MIN, TIME_MAX = -(2**63), 2**63 - 1


def without_privileges(mode: int) -> int:
    """*mode* after a write or a change of owner (A1)."""
    if not stat.S_ISREG(mode):
        return mode
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode


def drop_privileges(inode: Inode) -> None:
    """A1 for an inode that is being changed; the caller announces the change."""
    if inode.mode & (stat.S_ISUID | stat.S_ISGID):
        inode.mode = without_privileges(inode.mode)
    if CAPABILITY in inode.xattrs:
        inode.xattrs = {name: value for name, value in inode.xattrs.items() if name != CAPABILITY}


def apply(inode: Inode, changes: Changes, caller: Caller, now: int) -> None:
    """All of *changes* but the size; sets ctime. The caller announces the change."""
    mode, uid, gid, size, atime, mtime = changes
    if uid is not None or gid is not None:
        if not stat.S_ISDIR(inode.mode):
            drop_privileges(inode)
        if uid is not None:
            inode.uid = uid
        if gid is not None:
            inode.gid = gid
    if size is not None:
        if caller.uid != 0:
            drop_privileges(inode)
        inode.mtime = now
    if mode is not None:
        inode.mode = stat.S_IFMT(inode.mode) | (mode & PERMISSIONS)
    if atime is not None:
        inode.atime = min(max(atime, TIME_MIN), TIME_MAX)
    if mtime is not None:
        inode.mtime = min(max(mtime, TIME_MIN), TIME_MAX)
    inode.ctime = now


def of_new(parent: Inode, mode: int, caller: Caller) -> tuple[int, int]:
    """(mode, gid) of what *caller* makes in *parent* (A2)."""
    if parent.mode & stat.S_ISGID:
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
        return mode, parent.gid
    return mode, caller.gid


def atime_is_due(inode: Inode, now: int) -> bool:
    """A3."""
    atime = inode.atime
    return atime <= inode.mtime or atime <= inode.ctime or now - atime >= DAY_NS


def groups_of(thread: int) -> frozenset[int]:
    """Its supplementary groups, which no request tells; none where that may not be seen."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Groups:"):
                    return frozenset(map(int, line.split()[1:]))
    except OSError:
        pass
    return frozenset()


def may_access(inode: Inode, mode: int, caller: Caller) -> bool:
    """access(2): do the permission bits let *caller* do all of *mode* (R_OK, W_OK, X_OK)?"""
    bits = inode.mode
    if caller.uid == 0:
        return not mode & os.X_OK or stat.S_ISDIR(bits) or bool(bits & 0o111)
    if caller.uid == inode.uid:
        granted = bits >> 6
    elif caller.gid == inode.gid or inode.gid in groups_of(caller.pid):
        granted = bits >> 3
    else:
        granted = bits
    return not mode & ~granted & 7


def may_open(inode: Inode, flags: int, caller: Caller) -> bool:
    """Do the permission bits let *caller* open a file with these flags of open(2)?"""
    mode = os.R_OK if flags & os.O_ACCMODE != os.O_WRONLY else 0
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        mode |= os.W_OK
    return may_access(inode, mode, caller)

"""From an inode of `vfs` to what the kernel is told about it.

Purpose
    One function fills pyfuse3's EntryAttributes; it runs for nearly every request, so it is written for speed.

Invariants
    A1  Every field with a dangerous default (both time-outs are 300 s in pyfuse3) is set here, for every entry.
    A2  Numbers of inodes are never used twice, so the generation is always 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from stat import S_IFDIR

from pyfuse3 import EntryAttributes, InodeT, SetattrFields, StatvfsData

from flakefs.namespace import Inode
from flakefs.vfs import Changes, StatFs

BLOCK_SIZE_MAX = 1024 * 1024
"""st_blksize is the chunk size, up to the largest write the kernel sends: cp and others take it as the size of their
buffers, and a copy in pieces of 1 MiB costs the mount little more than half the CPU time of one in
pieces of 128 KiB. NFS says the same."""
PERMISSION_BITS = 0o7777
CLOCK_REALTIME_COARSE = 5
"""The kernel's clock for times of files; Python's `time` has no name for it."""


def entry_maker(
    seconds: float, chunk_size: int, *, attributes_seconds: float | None = None
) -> Callable[[Inode], EntryAttributes]:
    """The function that makes the attributes of an inode. The kernel believes the name that they are told for, and them
    if *attributes_seconds* says nothing else, for *seconds*.
    """
    block_size = min(chunk_size, BLOCK_SIZE_MAX)
    lasting = seconds if attributes_seconds is None else attributes_seconds

    def entry(inode: Inode) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = inode.ino
        attributes.entry_timeout = seconds
        attributes.attr_timeout = lasting
        attributes.st_mode = inode.mode
        attributes.st_nlink = inode.nlink
        attributes.st_uid = inode.uid
        attributes.st_gid = inode.gid
        attributes.st_rdev = inode.rdev
        attributes.st_size = inode.size
        attributes.st_blocks = (inode.used + 511) >> 9
        attributes.st_blksize = block_size
        attributes.st_atime_ns = inode.atime
        attributes.st_mtime_ns = inode.mtime
        attributes.st_ctime_ns = inode.ctime
        return attributes

    return entry


def no_entry(seconds: float) -> EntryAttributes:
    """The answer "there is no such name", which the kernel remembers for *seconds*."""
    attributes = EntryAttributes()
    attributes.st_ino = InodeT(0)
    attributes.entry_timeout = seconds
    attributes.attr_timeout = seconds
    return attributes


def dot_entry(ino: int) -> EntryAttributes:
    """What a listing says about "." and "..": number and type; the kernel takes nothing else from it."""
    attributes = EntryAttributes()
    attributes.st_ino = InodeT(ino)
    attributes.entry_timeout = 0
    attributes.attr_timeout = 0
    attributes.st_mode = S_IFDIR
    return attributes


def statvfs_data(facts: StatFs) -> StatvfsData:
    data = StatvfsData()
    data.f_bsize = facts.block_size
    data.f_frsize = facts.block_size
    data.f_blocks = facts.blocks
    data.f_bfree = facts.free
    data.f_bavail = facts.available
    data.f_files = facts.files
    data.f_ffree = facts.files_free
    data.f_favail = facts.files_free
    data.f_namemax = facts.name_max
    return data


def changes_of(attributes: EntryAttributes, fields: SetattrFields) -> Changes:
    """What setattr is told to change."""
    atime = attributes.st_atime_ns if fields.update_atime else None
    mtime = attributes.st_mtime_ns if fields.update_mtime else None
    if atime is not None or mtime is not None:
        atime, mtime = exact(atime, mtime)
    return Changes(
        attributes.st_mode & PERMISSION_BITS if fields.update_mode else None,
        attributes.st_uid if fields.update_uid else None,
        attributes.st_gid if fields.update_gid else None,
        attributes.st_size if fields.update_size else None,
        atime,
        mtime,
    )


def exact(*times: int | None) -> list[int | None]:
    """The times that setattr is told. "Now" comes as the time of the kernel's last tick, up to 4 ms old: `touch` would
    make a file older than one written before it. pyfuse3 does not say which it is, so the tick itself is taken for it.
    """
    tick, now = time.clock_gettime_ns(CLOCK_REALTIME_COARSE), time.time_ns()
    return [now if each == tick else each for each in times]

"""The replication code of a file or folder: the attribute user.flakefs.replication.

Rules
    G1  A code is stored on the inode as an ordinary attribute; an inode without one has the file system's default.
    G2  What is made in a folder with a code of its own gets that code. Links and renames change nothing, and what is
        there already keeps what it has.
    G3  A block takes the code that its file has when it is sealed. So content that is written keeps the code of its
        time until it is rewritten; all parts that are joined into one block have the present code.

Concurrency
    Nothing waits.

Not here
    What a code means and whether the nodes can satisfy it (format.placement, engine), who may set it (the kernel).
"""

from __future__ import annotations

import stat

from flakefs.errors import InvalidArgument, UsageError
from flakefs.format.placement import check_code
from flakefs.namespace import Inode

ATTRIBUTE = b"user.flakefs.replication"
FACT = b"replication"


def own_code(inode: Inode) -> str:
    """The code that was asked for, "" for the file system's default. What can be no code was not set by us: default."""
    if not inode.xattrs:
        return ""
    value = inode.xattrs.get(ATTRIBUTE, b"")
    return value.decode() if len(value) == 3 and value.isdigit() else ""


def inherited(parent: Inode, mode: int) -> dict[bytes, bytes] | None:
    """The attributes of what is made in *parent* (G2)."""
    if parent.xattrs and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        value = parent.xattrs.get(ATTRIBUTE)
        if value is not None:
            return {ATTRIBUTE: value}
    return None


def checked(value: bytes) -> str:
    """The code in *value*; InvalidArgument when it is none."""
    try:
        return check_code(value.decode(errors="backslashreplace"))
    except UsageError as error:
        raise InvalidArgument(str(error)) from None

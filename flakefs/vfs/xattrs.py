"""Extended attributes.

Rules
    E1  Namespaces user., trusted. and security.; system. (POSIX ACLs among it) is refused with NotSupported.
    E2  A change of attributes makes a new dict, so that a state the journal has taken never changes afterwards.
    E3  All names of one file fit into one listxattr(2) answer, and names and values into its document.
    E4  user.flakefs.* are facts: they can be read and are not listed, so no copying program tries to set them. One of
        them is a wish as well: user.flakefs.replication may be set and removed, and is listed where it was set.
    E5  trusted. attributes are shown to root only, as on every disk; nobody else could read them (the kernel).

Concurrency
    Nothing waits.

Not here
    The facts (vfs.facts), what a replication code means (vfs.replication), rights (the kernel).
"""

from __future__ import annotations

import stat

from flakefs.errors import AttributeTooLarge, Exists, InvalidArgument, NoAttribute, NoSpace, NotPermitted, NotSupported
from flakefs.namespace import Inode
from flakefs.values import XATTR_MAX
from flakefs.vfs import replication
from flakefs.vfs.requests import Caller

PREFIXES = (b"user.", b"trusted.", b"security.")
TRUSTED = b"trusted."
FACTS = b"user.flakefs."
NAME_BYTES_MAX = 255
LIST_BYTES_MAX = 65536
"""The kernel's XATTR_LIST_MAX: a longer list could not be read at all."""
TOTAL_BYTES_MAX = 1024 * 1024
"""Names and values of one inode; its document holds up to 4 KiB of content and one segment of extents beside them."""


def check_name(inode: Inode, name: bytes, *, writing: bool) -> None:
    """E1 and E4, and where Linux allows user. attributes."""
    if not name.startswith(PREFIXES):
        raise NotSupported(f"attributes named {name!r} are not kept; user., trusted. and security. are")
    if len(name) > NAME_BYTES_MAX or name in PREFIXES or b"\0" in name:
        raise InvalidArgument(f"{name[:64]!r} cannot be the name of an attribute")
    if name.startswith(b"user.") and not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
        if writing:
            raise NotPermitted("only files and folders have user. attributes")
        raise NoAttribute("only files and folders have user. attributes")
    if writing and name.startswith(FACTS) and name != replication.ATTRIBUTE:
        raise NotPermitted(f"{name.decode(errors='replace')} is a fact that FlakeFS tells; it cannot be set or removed")


def with_attribute(inode: Inode, name: bytes, value: bytes, *, create: bool, replace: bool) -> dict[bytes, bytes]:
    """The attributes after setting one."""
    check_name(inode, name, writing=True)
    if len(value) > XATTR_MAX:
        raise AttributeTooLarge(f"the value has {len(value)} bytes; at most {XATTR_MAX} are possible")
    if name == replication.ATTRIBUTE:
        replication.checked(value)
    present = name in inode.xattrs or name == replication.ATTRIBUTE  # it can be read everywhere (G1)
    if create and present:
        raise Exists(f"the attribute {name.decode(errors='replace')} is there already")
    if replace and not present:
        raise NoAttribute(f"there is no attribute {name.decode(errors='replace')} to replace")
    result = {**inode.xattrs, name: bytes(value)}
    listed = sum(len(each) + 1 for each in result)
    if listed > LIST_BYTES_MAX or listed + sum(map(len, result.values())) > TOTAL_BYTES_MAX:
        raise NoSpace("the attributes of one file together may have at most 1 MiB, their names 64 KiB")
    return result


def without_attribute(inode: Inode, name: bytes) -> dict[bytes, bytes]:
    """The attributes after removing one."""
    check_name(inode, name, writing=True)
    if name not in inode.xattrs:
        raise NoAttribute(f"there is no attribute {name.decode(errors='replace')}")
    return {each: value for each, value in inode.xattrs.items() if each != name}


def listed(inode: Inode, caller: Caller) -> list[bytes]:
    """The names that *caller* is shown (E5), sorted."""
    names = sorted(inode.xattrs)
    return names if caller.uid == 0 else [name for name in names if not name.startswith(TRUSTED)]

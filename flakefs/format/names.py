"""File names: any bytes but NUL and '/', 1 to 255 of them.

Rule
    N1  A name is stored as a BSON string exactly when it is valid UTF-8, else as BinData,
        so every byte string has one stored form and people can read and query names.
"""

from __future__ import annotations

from bson.binary import Binary

from flakefs.errors import InvalidArgument, NameTooLong
from flakefs.values import NAME_MAX

StoredName = str | bytes | Binary


def checked(name: bytes) -> bytes:
    """*name*, or NameTooLong / InvalidArgument."""
    if len(name) > NAME_MAX:
        raise NameTooLong(f"the name {name[:32]!r}... has {len(name)} bytes; at most {NAME_MAX} are possible")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise InvalidArgument(f"{name!r} cannot be the name of a file")
    return name


def to_stored(name: bytes) -> StoredName:
    """The stored form (N1)."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return Binary(name)


def from_stored(stored: StoredName) -> bytes:
    """The bytes of a stored name. Raises TypeError for what cannot be one: bytes(3) would make up a name."""
    if isinstance(stored, str):
        return stored.encode("utf-8")
    if isinstance(stored, bytes):
        return bytes(stored)
    raise TypeError(f"a name cannot be stored as {type(stored).__name__}")

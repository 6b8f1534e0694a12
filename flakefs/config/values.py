"""One value of the configuration: from what TOML says to what the field wants.

Purpose
    The options of a layer are declared once, in its dataclass; this module reads field types and converts to them.

Invariants
    F1  A value of a wrong type is refused, never guessed: true is no number, "5" is no number, 1 is no switch.
    F2  A field whose name ends in _bytes, or is named capacity, takes bytes as a number or with a unit ("64 MiB").
    F3  Numbers are never negative, and fit 63 bits. Narrower ranges are the business of the options class.
    F4  A list of tables becomes a tuple of the dataclass that its field names, each table checked in the same way.
"""

from __future__ import annotations

import dataclasses
import re
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flakefs.errors import ConfigError

_UNITS = {
    "": 1, "b": 1,
    "k": 1024, "kib": 1024, "kb": 1000,
    "m": 1024**2, "mib": 1024**2, "mb": 1000**2,
    "g": 1024**3, "gib": 1024**3, "gb": 1000**3,
    "t": 1024**4, "tib": 1024**4, "tb": 1000**4,
    "p": 1024**5, "pib": 1024**5, "pb": 1000**5,
}  # fmt: skip
SIZE_END = 2**63
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_KINDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def parse_size(text: str) -> int:
    """Bytes of "64 MiB", "1.5G", "4096": K, M... and KiB, MiB... count by 1024; KB, MB... by 1000. Or ValueError."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is no size; write it like 4096, 64 MiB or 1.5G")
    size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if size >= SIZE_END:
        raise ValueError(f"{text!r} is no size: it has to be below 8192 P")
    return size


def is_size(name: str) -> bool:
    """Does the field *name* hold a number of bytes (F2)?"""
    return name.endswith("_bytes") or name == "capacity"


def converted(value: object, wanted: Any, *, name: str, key: str) -> Any:
    """*value* as the type *wanted* of the field *name*; ConfigError names *key* ("[section] name")."""
    origin = get_origin(wanted)
    if origin is tuple:
        return _tables(value, get_args(wanted)[0], key)
    if origin is Literal:
        allowed = get_args(wanted)
        if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise ConfigError(f"{key} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
        return value
    if origin in (Union, types.UnionType):
        wanted = next(kind for kind in get_args(wanted) if kind is not type(None))
    if wanted is int and is_size(name) and isinstance(value, str):
        try:
            return parse_size(value)
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from None
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        kind = "a size: bytes, or a string like '64 MiB'" if is_size(name) else _KINDS.get(wanted, str(wanted))
        raise ConfigError(f"{key} must be {kind}, not {_shown(value)}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value < SIZE_END:
        raise ConfigError(f"{key} must not be negative or beyond 2^63, and is {value}")
    return value


def _tables(value: object, wanted: Any, key: str) -> tuple[Any, ...]:
    """F4."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ConfigError(f"{key} must be a list of tables like {{ match = ... }}, not {_shown(value)}")
    hints = get_type_hints(wanted)
    made = []
    for number, table in enumerate(value, 1):
        where = f"{key}, entry {number}"
        fields = {field.name for field in dataclasses.fields(wanted)}
        needed = {field.name for field in dataclasses.fields(wanted) if field.default is dataclasses.MISSING}
        for name in sorted(set(table) - fields):
            raise ConfigError(f"{where}: unknown key {name!r}; known are {', '.join(sorted(fields))}")
        for name in sorted(needed - set(table)):
            raise ConfigError(f"{where}: {name} is missing")
        found = {name: converted(each, hints[name], name=name, key=f"{where}: {name}") for name, each in table.items()}
        try:
            made.append(wanted(**found))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return tuple(made)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "a table" if isinstance(value, dict) else repr(value)

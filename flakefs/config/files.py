"""Finding, reading and checking flakefs.conf.

Invariants
    C1  The first place that has a file decides; files are never merged.
    C2  A file that was named (--config, FLAKEFS_CONFIG) and is not there, or is a folder, is an error.
    C3  An unknown section or key is refused by name, with the file and the nearest right one.
    C4  A flakefs.conf that just lies in the working directory and belongs to another user may not choose
        programs to run, files to write, nor secrets to send anywhere.
    C5  A relative path in a file is one beside the file, wherever a command runs: the same file is always the same
        file system.
    C6  A file with a password that others may read is warned of.

Not here
    What the keys are (the options class of each layer; flakefs.config.model names the sections).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from flakefs.config.model import METADATA_KEYS, SECTIONS, Config
from flakefs.config.values import converted
from flakefs.errors import ConfigError
from flakefs.mongo.secrets import REFERENCE, has_clear_secret

NAME = "flakefs.conf"
_TRUSTED_ONLY = (("embedded", "mongod"), ("embedded", "data"), ("mount", "log"))
_PATHS = (*_TRUSTED_ONLY, ("mount", "mountpoint"))


def places() -> list[Path]:
    """Where a configuration is looked for when none is named, in order."""
    user = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return [Path(NAME), Path(user, "flakefs", NAME), Path("/etc/flakefs", NAME), Path("/etc", NAME)]


def find(named: str | None = None) -> Path | None:
    """The file to read; None when there is none and none was asked for."""
    for path, source in ((named, "--config"), (os.environ.get("FLAKEFS_CONFIG"), "FLAKEFS_CONFIG")):
        if path:
            if os.path.isdir(path):
                raise ConfigError(f"the configuration {path} named by {source} is a folder, not a file; name the file")
            if not os.path.isfile(path):
                raise ConfigError(f"the configuration {path} named by {source} is not there; correct the path")
            return Path(path)
    return next((path for path in places() if path.is_file()), None)


def load(path: str | os.PathLike[str] | None = None) -> Config:
    """The configuration in *path*, or in the first place that has one, or the defaults (embedded); or ConfigError."""
    found = find(os.fspath(path) if path is not None else None)
    if found is None:
        return Config()
    try:
        with found.open("rb") as file:
            document = tomllib.load(file)
            owner = os.fstat(file.fileno()).st_uid
    except OSError as error:
        raise ConfigError(f"the configuration {found} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{found} is no TOML: {error}") from error
    config = build(document, str(found))
    named = path is not None or os.environ.get("FLAKEFS_CONFIG")
    if not named and found == Path(NAME) and owner not in (0, os.geteuid()):
        _refuse_foreign(config, found, owner)
    return config


def exposed(config: Config) -> str:
    """What is wrong with the file of *config* when others can read the password in it; "" when nothing is (C6)."""
    if not config.path or not has_clear_secret(config.metadata_uri):
        return ""
    try:
        mode = os.stat(config.path).st_mode
    except OSError:
        return ""
    if not mode & 0o077:
        return ""
    return (
        f"{config.path} holds a password and others can read it: chmod 600 it, or write ${{file:/PATH}} in place "
        "of the password"
    )


def build(document: dict[str, Any], file: str) -> Config:
    """The Config that a parsed TOML *document* describes; *file* is named in errors and kept."""
    hints = get_type_hints(Config)
    values: dict[str, Any] = {"path": os.path.abspath(file)}
    for name, table in document.items():
        if name != "metadata" and name not in SECTIONS:
            what = "section" if isinstance(table, dict) else "key outside of a section"
            raise ConfigError(f"{file}: unknown {what} {name!r}{_nearest(name, ('metadata', *SECTIONS))}")
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: [{name}] is a section; write its keys below a line [{name}]")
        if name == "metadata":
            found = _fields(Config, METADATA_KEYS, table, name, file)
            values |= {METADATA_KEYS[key]: value for key, value in found.items()}
        else:
            options = hints[name]
            found = _fields(options, {f.name: f.name for f in dataclasses.fields(options)}, table, name, file)
            try:
                values[name] = options(**found)
            except (ConfigError, ValueError) as error:
                raise ConfigError(f"{file}: [{name}]: {error}") from error
    return Config(**values)


def _fields(options: Any, keys: Mapping[str, str], table: dict[str, Any], section: str, file: str) -> dict[str, Any]:
    """The checked values of *table*, by key; *keys* leads to the fields of the class *options*."""
    hints = get_type_hints(options)
    values = {}
    for key, value in table.items():
        if key not in keys:
            raise ConfigError(f"{file}: [{section}] has no key {key!r}{_nearest(key, keys)}")
        name = keys[key]
        shown = f"{file}: [{section}] {key}"
        values[key] = converted(value, hints[name], name=key, key=shown)
        if value and (section, key) in _PATHS and not value.startswith("~"):
            values[key] = os.path.join(os.path.dirname(os.path.abspath(file)), value)  # C5
    return values


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _refuse_foreign(config: Config, file: Path, owner: int) -> None:
    """C4."""
    if REFERENCE.search(config.metadata_uri):
        raise ConfigError(
            f"{file} in the working directory belongs to user {owner} and refers to secrets in [metadata] uri; "
            f"name it with --config {file} if you trust it"
        )
    for section, key in _TRUSTED_ONLY:
        if getattr(getattr(config, section), key):
            raise ConfigError(
                f"{file} in the working directory belongs to user {owner} and sets [{section}] {key}; "
                f"name it with --config {file} if you trust it"
            )

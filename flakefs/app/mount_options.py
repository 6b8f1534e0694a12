"""The words after -o of `flakefs mount` and of fstab: what each one means for us.

Invariants
    O1  A word that means nothing to us is refused by name; words that only mount(8) or systemd act on are accepted and
        left to them; one that we know and cannot follow is accepted with a sentence (NOTES).
    O2  Of two words that contradict each other (suid, nosuid) the last one counts, as with mount(8); a word overrides
        the configuration.
    O3  What the kernel grants to root only is refused to others, instead of being left out silently.

Not here
    The command line itself (cli.mount, cli.mount_helper), values and their units (config).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from flakefs.config import Config
from flakefs.errors import UsageError
from flakefs.fuse.options import KERNEL_FLAGS, KERNEL_OPPOSITES, ROOT_FLAGS

T = TypeVar("T")

NETDEV_SECONDS = 60.0
"""With `_netdev` a mount waits so long for its metadata server, unless `wait=` or the configuration says otherwise."""

GENERIC = frozenset(
    {"auto", "noauto", "user", "nouser", "users", "nousers", "owner", "group", "nofail", "defaults"}
    | {"diratime", "nostrictatime", "lazytime", "nolazytime", "iversion"}
    | {"noiversion", "silent", "loud", "nomand", "default_permissions", "nonempty"}
)
"""Known everywhere, and without effect here: they ask for what is so anyway, or for nothing that can be seen."""
_TIMES = "access times move as relatime says, or never with noatime"
NOTES = {
    "strictatime": _TIMES,
    "norelatime": _TIMES,
    "nodiratime": _TIMES,
    "mand": "there are no mandatory locks",
}
"""Accepted, so that a line of fstab written for another file system works; the sentence says what holds instead."""
GENERIC_KEYS = (
    "x-",
    "X-",
    "comment",
    "subtype",
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
    "uhelper",
)


@dataclass
class MountWords:
    """What a list of -o words says."""

    config_path: str | None = None
    read_only: bool = False
    wait_seconds: float | None = None
    netdev: bool = False
    notes: list[str] = field(default_factory=list)
    """A sentence for each word that has no effect here (O1)."""
    changes: list[Callable[[Config], Config]] = field(default_factory=list)

    def applied(self, config: Config) -> Config:
        for change in self.changes:
            config = change(config)
        for flag in ROOT_FLAGS:
            if getattr(config.fuse, flag) and os.geteuid() != 0:  # O3
                raise UsageError(f"mount option {flag} is for mounts by root only: leave it out, or mount as root")
        wait = self.wait_seconds
        if wait is None:
            wait = config.mount.wait_seconds or (NETDEV_SECONDS if self.netdev else 0.0)
        return replace(config, mount=replace(config.mount, wait_seconds=wait))


def parse(lists: Iterable[str]) -> MountWords:
    """Understand lists of words separated by commas. Raises UsageError for one that is not known (O1)."""
    words = MountWords()
    for word in (word.strip() for words_ in lists for word in words_.split(",")):
        key, equals, value = word.partition("=")
        if not word or word in GENERIC or key.startswith(GENERIC_KEYS):
            continue
        if word in NOTES:
            words.notes.append(f"mount option {word} has no effect: {NOTES[word]}")
        elif equals and key in _VALUES:
            _VALUES[key](words, value)
        elif not equals and word in _FLAGS:
            _FLAGS[word](words)
        else:
            raise UsageError(_unknown(word, key, bool(equals)))
    return words


def _unknown(word: str, key: str, equals: bool) -> str:
    if not equals and key in _VALUES:
        return f"mount option {key!r} needs a value: {key}=..."
    if equals and key in _FLAGS:
        return f"mount option {key!r} takes no value"
    known = sorted({*_VALUES, *_FLAGS})  # atime is in both
    near = difflib.get_close_matches(key, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
    return f"mount option {word!r} is not known{hint}"


def _set_config(words: MountWords, value: str) -> None:
    words.config_path = value


def _set_read_only(words: MountWords) -> None:
    words.read_only = True


def _set_read_write(words: MountWords) -> None:
    words.read_only = False


def _allow_other(words: MountWords) -> None:
    words.changes.append(lambda config: replace(config, fuse=replace(config.fuse, allow_other=True)))


def _netdev(words: MountWords) -> None:
    words.netdev = True


def _wait(words: MountWords, value: str) -> None:
    words.wait_seconds = 0.0 if value == "0" else _seconds("wait", value)


def _kernel(flag: str, *, on: bool) -> Callable[[MountWords], None]:
    """A word that the kernel acts on when it is told to at mounting."""

    def add(words: MountWords) -> None:
        change: dict[str, Any] = {flag: on}
        words.changes.append(lambda config: replace(config, fuse=replace(config.fuse, **change)))

    return add


def _dirsync(words: MountWords) -> None:
    raise UsageError("mount option dirsync has no effect on a FUSE mount: leave it out, and fsync folders that matter")


def _remount(words: MountWords) -> None:
    raise UsageError("a mount cannot be changed with remount: unmount it and mount it again with the other options")


def _database(words: MountWords, value: str) -> None:
    words.changes.append(lambda config: replace(config, database=value))


def _fsname(words: MountWords, value: str) -> None:
    words.changes.append(lambda config: replace(config, fuse=replace(config.fuse, fsname=value)))


def _log(words: MountWords, value: str) -> None:
    words.changes.append(lambda config: replace(config, mount=replace(config.mount, log=value)))


def _engine(name: str) -> Callable[[MountWords, str], None]:
    """A word whose value is an engine option as it stands."""

    def add(words: MountWords, value: str) -> None:
        change: dict[str, Any] = {name: value}
        words.changes.append(lambda config: replace(config, engine=replace(config.engine, **change)))

    return add


def _fewer_copies(words: MountWords, value: str) -> None:
    _one_of("fewer_copies", value, {"refuse": True, "warn": True})
    _engine("fewer_copies")(words, value)


def _close(words: MountWords, value: str) -> None:
    stored = _one_of("close", value, {"stored": True, "fast": False})
    words.changes.append(lambda config: replace(config, vfs=replace(config.vfs, close_stored=stored)))


def _atime(words: MountWords, value: str) -> None:
    _access_times(_one_of("atime", value, {"relatime": "relatime", "noatime": "noatime"}))(words)


def _access_times(kind: str) -> Callable[[MountWords], None]:
    def add(words: MountWords) -> None:
        words.changes.append(lambda config: replace(config, vfs=replace(config.vfs, atime=kind)))

    return add


def _commit_interval(words: MountWords, value: str) -> None:
    seconds = _seconds("commit_interval", value)
    words.changes.append(
        lambda config: replace(config, namespace=replace(config.namespace, commit_interval_seconds=seconds))
    )


def _error_timeout(words: MountWords, value: str) -> None:
    seconds = _seconds("error_timeout", value)
    words.changes.append(
        lambda config: replace(
            config,
            namespace=replace(config.namespace, error_timeout_seconds=seconds),
            vfs=replace(config.vfs, error_timeout_seconds=seconds),
            engine=replace(config.engine, error_timeout_seconds=seconds),
        )
    )


def _one_of(key: str, value: str, choices: dict[str, T]) -> T:
    if value not in choices:
        raise UsageError(f"mount option {key} must be {' or '.join(choices)}, not {value!r}")
    return choices[value]


def _seconds(key: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 86400:
        raise UsageError(f"mount option {key} must be a number of seconds above 0, not {value!r}")
    return seconds


_FLAGS: dict[str, Callable[[MountWords], None]] = {
    "ro": _set_read_only,
    "rw": _set_read_write,
    "allow_other": _allow_other,
    "_netdev": _netdev,
    "dirsync": _dirsync,
    "remount": _remount,
    "noatime": _access_times("noatime"),
    "relatime": _access_times("relatime"),
    "atime": _access_times("relatime"),
    **{flag: _kernel(flag, on=True) for flag in KERNEL_FLAGS},
    **{opposite: _kernel(flag, on=False) for flag, opposite in zip(KERNEL_FLAGS, KERNEL_OPPOSITES, strict=True)},
}
_VALUES: dict[str, Callable[[MountWords, str], None]] = {
    "config": _set_config,
    "database": _database,
    "fsname": _fsname,
    "log": _log,
    "balance": _engine("balance"),
    "dc": _engine("dc"),
    "rack": _engine("rack"),
    "write_dc": _engine("write_dc"),
    "fewer_copies": _fewer_copies,
    "close": _close,
    "atime": _atime,
    "commit_interval": _commit_interval,
    "error_timeout": _error_timeout,
    "wait": _wait,
}

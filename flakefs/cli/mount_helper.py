"""`mount.flakefs`, called by mount(8) for `mount -t flakefs` and for lines of /etc/fstab.

Purpose
    Translates mount(8)'s way of calling into `flakefs mount`. A line of fstab:
        flakefs  /mnt/flake  flakefs  _netdev,nofail,allow_other,nosuid,nodev  0 0
    The first field is a configuration file when it is an absolute path, and a mere label otherwise.

Invariants
    H2  Options that are for mount(8) itself (_netdev, nofail, x-...) are accepted (app.mount_options).
    H3  The first field is what the kernel lists as the source: by that `mount -a` knows what is mounted already.
    H6  Mounts by root are suid and dev unless the words say nosuid and nodev: mount(8) takes these two as given and
        does not pass them on, so that we would never see them. mount.fuse3 does the same.
    H7  user, users, owner and group mean what mount(8) says: nosuid and nodev, the first two noexec as well, unless a
        later word says otherwise. mount(8) itself passes that on in words; others who call us may not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from flakefs.cli import helper

IMPLIED = {
    "user": "noexec,nosuid,nodev",
    "users": "noexec,nosuid,nodev",
    "owner": "nosuid,nodev",
    "group": "nosuid,nodev",
}
"""H7."""
USAGE = "usage: mount.flakefs LABEL|CONFIG_FILE FOLDER [-sfnvrw] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Mount as told; the exit status (H1 of cli.helper)."""

    def mount() -> None:
        source, folder, words, fake = _understood(arguments)
        if not fake:
            _mount(source, folder, words)

    return helper.status("mount.flakefs", mount)


def _understood(arguments: Sequence[str]) -> tuple[str, str, list[str], bool]:
    """(source, folder, lists of -o words, only pretend?)"""
    from flakefs.errors import UsageError

    names: list[str] = []
    words: list[str] = []
    fake = False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-h", "--help"):
            raise UsageError(USAGE)
        if argument in ("-o", "-t", "-N"):
            value = next(rest, None)
            if value is None:
                raise UsageError(f"{argument} needs a value; {USAGE}")
            words += [value] if argument == "-o" else []
            if argument == "-N":
                helper.check_namespace(value)
        elif argument.startswith("-o"):
            words.append(argument[2:])
        elif argument.startswith("-") and len(argument) > 1:
            flags = argument[1:]
            if set(flags) - set("sfnvrw"):
                raise UsageError(f"{argument} is not known; {USAGE}")
            fake = fake or "f" in flags
            words += ["ro"] if "r" in flags else []
        else:
            names.append(argument)
    if len(names) != 2:
        raise UsageError(USAGE)
    return names[0], names[1], words, fake


def _mount(source: str, folder: str, words: list[str]) -> None:
    from flakefs.cli.mount import mount_in_background
    from flakefs.cli.state import State

    words = [_spelled_out(list_) for list_ in words]
    if "," not in source and source.isprintable():  # H3; a comma would end the word
        words = [f"fsname={source}", *words]
    if os.geteuid() == 0:  # H6; what the words say comes later and counts
        words = ["suid,dev", *words]
    mount_in_background(State(config_path=source if source.startswith("/") else None), folder, words, read_only=False)


def _spelled_out(words: str) -> str:
    """H7."""
    return ",".join(f"{word},{IMPLIED[word.strip()]}" if word.strip() in IMPLIED else word for word in words.split(","))


if __name__ == "__main__":
    main()

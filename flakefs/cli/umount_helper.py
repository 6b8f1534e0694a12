"""`umount.fuse.flakefs`, called by umount(8), and so by systemd for a line of /etc/fstab.

Purpose
    Without it umount(8) returns as soon as the kernel has let go, while the process behind the mount still stores; a
    machine that shuts down would then take the network away from it.

Invariants
    H4  The exit status is 0 only when everything is stored (U1 of app.unmounting).
    H5  -l only detaches and -f gives up what cannot be stored, as umount(8) says of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flakefs.cli import helper

USAGE = "usage: umount.fuse.flakefs FOLDER [-flnrv] [-N NAMESPACE] [-t TYPE]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Unmount as told; the exit status (H1 of cli.helper)."""
    from flakefs.app import unmounting

    def unmount() -> None:
        folder, flags = _understood(arguments)
        if "l" in flags:  # H5
            unmounting.detach(folder)
        else:
            unmounting.unmount(folder, force="f" in flags)

    return helper.status("umount.fuse.flakefs", unmount)


def _understood(arguments: Sequence[str]) -> tuple[str, set[str]]:
    """(folder, flags)"""
    from flakefs.errors import UsageError

    names: list[str] = []
    flags: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-t", "-N"):
            value = next(rest, None)
            if value is None:
                raise UsageError(f"{argument} needs a value; {USAGE}")
            if argument == "-N":
                helper.check_namespace(value)
        elif argument.startswith("-") and len(argument) > 1:
            flags |= set(argument[1:])
        else:
            names.append(argument)
    if len(names) != 1 or flags - set("flnrv"):
        raise UsageError(USAGE)
    return names[0], flags


if __name__ == "__main__":
    main()

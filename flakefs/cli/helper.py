"""What the programs that mount(8) and umount(8) call have in common.

Invariants
    H1  The exit status is as these two want it: 0 done, 1 a wrong call, 32 it failed; each failure has a sentence.
    H8  Another mount namespace (-N) is refused: mount(8) and umount(8) leave it to their helpers to go there, and in
        ours the same path may be somebody else's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

FAILED = 32


def status(program: str, call: Callable[[], None]) -> int:
    """The exit status of *program*, which does *call* (H1)."""
    from flakefs.errors import ConfigError, FlakeError, UsageError

    try:
        call()
        return 0
    except (UsageError, ConfigError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except FlakeError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILED


def check_namespace(named: str) -> None:
    """Raise UsageError unless the value of -N, a file or a process, is the mount namespace that we are in (H8)."""
    from flakefs.errors import UsageError

    file = f"/proc/{named}/ns/mnt" if named.isdigit() else named
    try:
        if os.path.samefile(file, "/proc/self/ns/mnt"):
            return
    except OSError as error:
        raise UsageError(f"-N: the namespace {named} cannot be looked at: {error.strerror}") from error
    raise UsageError("-N: a mount lives in the namespace of its process; go there: nsenter --mount=NAMESPACE COMMAND")

"""What the programs that mount(8) and umount(8) call have in common.

Invariants
    H1  The exit status is as these two want it: 0 done, 1 a wrong call, 32 it failed; each failure has a sentence.
"""

from __future__ import annotations

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

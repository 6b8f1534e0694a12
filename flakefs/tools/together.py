"""Sealing many volumes at once: everybody who writes is waited for once, not once a volume.

Concurrency
    Blocks. Each lease is held only while its volume is sealed; who works on one then takes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from flakefs.errors import UsageError
from flakefs.mongo.door import Door
from flakefs.tools.lease import VolumeTaken, volume_lease
from flakefs.tools.sealing import seal, wait_acknowledged


def seal_together(door: Door, database: str, volumes: Iterable[int], say: Callable[[str], None]) -> None:
    """Those that another tool works on are left out. Raises Unavailable when somebody does not follow."""
    epochs = []
    for number in volumes:
        say(f"sealing volume {number}")
        with suppress(VolumeTaken, UsageError), volume_lease(door, database, number, "sealing it") as lease:
            epochs.append(seal(door, database, lease))
    if epochs:
        wait_acknowledged(door, database, max(epochs), say)

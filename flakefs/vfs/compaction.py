"""Rewriting windows that have fallen into many extents.

Invariants
    N1  A rewrite changes no byte that can be read.
    N2  A window that is being written to is left alone here: its next write or its commit may change it anyway, and a
        crowded one is rewritten by the writer.
    N3  At most ROUND windows are rewritten for each commit.

Concurrency
    One task; vfs.reading.rewrite puts the bytes together without an await.
"""

from __future__ import annotations

import logging

from flakefs.errors import FlakeError
from flakefs.vfs.reading import Reader
from flakefs.vfs.writeback import Writeback

log = logging.getLogger(__name__)
ROUND = 16


async def run(writeback: Writeback, reader: Reader) -> None:
    """After every commit, rewrite some of the fragmented windows; until cancelled."""
    while True:
        await writeback.committed.park()
        left = ROUND
        for content in list(writeback.contents.values()):
            for window in [window for window in content.fragmented if window not in content.windows]:
                if not left or writeback.budget.over or writeback.budget.failure is not None:
                    break
                left -= 1
                try:
                    await reader.rewrite(content, window)
                except FlakeError as error:
                    log.debug("a fragmented file could not be rewritten, it stays as it is: %s", error)
                    content.fragmented.discard(window)

"""The one line that long commands draw on a terminal, and where there is none.

Invariants
    BL1  It is one line at any width: on a narrow terminal the speed, the sizes and at last the words are left out, and
         nothing is cut but the words.
    BL2  Nothing is drawn where it could not be taken away again: in a pipe, and on a terminal that is dumb.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from flakefs.cli import output

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SPEED_COLUMNS = 70
SIZES_COLUMNS = 50
WORDS_COLUMNS = 30
"""The terminal is so wide at least when these are shown."""


def terminal() -> Console | None:
    """Where to draw; None: nowhere (BL2)."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return None
    from rich.console import Console

    return Console(stderr=True)


def bar(console: Console, counted: str) -> Progress:
    """A bar for one task with a field `count`: of what is called *counted*. It goes away at its end."""
    from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{output.size(int(speed))}/s", style="progress.data.speed")

    def whole() -> Column:
        return Column(no_wrap=True)

    width = console.width
    columns: list[Any] = [
        BarColumn(20 if width >= SPEED_COLUMNS else 10),
        TextColumn("{task.percentage:>3.0f}%", table_column=whole()),
    ]
    if width >= WORDS_COLUMNS:
        columns.insert(0, TextColumn("{task.fields[count]} " + counted, table_column=whole()))
    if width >= SIZES_COLUMNS:
        columns[-1] = DownloadColumn(binary_units=True, table_column=whole())
    if width >= SPEED_COLUMNS:
        columns += [Speed(table_column=whole()), TimeElapsedColumn(table_column=whole())]
    if width >= WORDS_COLUMNS:
        columns.append(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
        )
    return Progress(*columns, console=console, transient=True, expand=True)

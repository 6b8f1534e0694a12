"""Watching a copy: a bar on a terminal, silence in a pipe.

Concurrency
    Called in the trio thread of the client while the command waits; rich draws from a thread of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from flakefs.cli import output
from flakefs.cli.bar import bar, terminal
from flakefs.cli.common import Failures


class Watcher:
    """Without a terminal: only problems, and with *verbose* each file."""

    def __init__(self, failures: Failures, *, verbose: bool) -> None:
        self._failures = failures
        self._verbose = verbose

    def started(self, path: bytes, size: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def done(self, source: bytes, target: bytes) -> None:
        if self._verbose:
            click.echo(f"{output.name(source)} -> {output.name(target)}")

    def problem(self, message: str) -> None:
        self._failures.add(message)


class Bar(Watcher):
    """Bytes, speed, and the name of the file that is copied now."""

    def __init__(self, failures: Failures, *, verbose: bool, progress: Any, total: int | None) -> None:
        super().__init__(failures, verbose=verbose)
        self._progress = progress
        self._task = progress.add_task("", total=total, count=0)
        self._total = total
        self._announced = 0
        self._files = 0

    def started(self, path: bytes, size: int) -> None:
        from rich.markup import escape

        self._announced += size
        total = self._announced if self._total is None else None
        changes: dict[str, Any] = {} if total is None else {"total": total}
        self._progress.update(self._task, description=escape(output.name(os.path.basename(path))), **changes)

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def done(self, source: bytes, target: bytes) -> None:
        super().done(source, target)
        self._files += 1
        self._progress.update(self._task, count=self._files)


@contextmanager
def watching(failures: Failures, *, verbose: bool, quiet: bool, total: int | None = None) -> Iterator[Watcher]:
    """A Watcher that suits where stderr goes."""
    console = None if quiet else terminal()
    if console is None:
        yield Watcher(failures, verbose=verbose)
        return
    with bar(console, "files") as progress:
        yield Bar(failures, verbose=verbose, progress=progress, total=total)

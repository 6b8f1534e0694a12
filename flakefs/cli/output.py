"""How facts are printed: sizes, times, names, tables, JSON.

Invariants
    J1  JSON goes to stdout, one object or list, names as strings (undecodable bytes as surrogates), times in ns.
    J2  A name never moves the cursor of a terminal: what is not printable appears escaped there.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from flakefs.values import readable


def echo_json(value: object) -> None:
    click.echo(json.dumps(plain(value), indent=2))


def echo_json_list(values: Iterable[object]) -> None:
    """The same for a list of any length, which is never in memory as a whole."""
    first = True
    for value in values:
        click.echo("[" if first else ",")
        click.echo("\n".join("  " + line for line in json.dumps(plain(value), indent=2).splitlines()), nl=False)
        first = False
    click.echo("[]" if first else "\n]")


def plain(value: object) -> Any:
    """Dataclasses, bytes and tuples as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def size(count: int | None) -> str:
    """1.5 GiB"""
    return "-" if count is None else readable(count)


def moment(ns: int, *, exact: bool = False) -> str:
    """Local time; with *exact* all nine digits and the zone."""
    try:
        local = time.localtime(ns // 10**9)
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"
    text = time.strftime("%Y-%m-%d %H:%M:%S", local)
    return f"{text}.{ns % 10**9:09d} {time.strftime('%z', local)}" if exact else text


def name(path: bytes) -> str:
    """For a terminal escaped (J2), for a pipe as it is."""
    if sys.stdout.isatty():
        from flakefs.api.paths import shown

        return shown(path)
    return os.fsdecode(path)


def echo_name(text: bytes, *, end: bytes = b"\n") -> None:
    """One name a line; bytes stay what they are when a program reads."""
    if sys.stdout.isatty():
        click.echo(name(text))
    else:
        click.echo(text + end, nl=False)


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """A plain table; columns in *right* are numbers. Never folded: a line is a row, also for grep."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shape = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, head in enumerate(heads):
        shape.add_column(head, justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        shape.add_row(*(Text(cell) for cell in row))
    terminal = sys.stdout.isatty()
    console = Console(file=io.StringIO(), width=10_000, highlight=False, force_terminal=terminal, no_color=not terminal)
    with console.capture() as capture:
        if title:
            console.print(Text(title, style="bold"))
        console.print(shape)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Lines of `name   value`."""
    rows = list(rows)
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        click.echo(f"{key:<{width}}  {value}")

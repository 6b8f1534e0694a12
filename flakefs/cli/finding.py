"""find: what fits, asked of MongoDB and not walked."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import click

from flakefs.cli import output
from flakefs.cli.common import PATH, SIZE, Param, client, json_option, remote
from flakefs.cli.state import State, pass_state

TYPES = {"f": "file", "d": "folder", "l": "symlink", "p": "fifo", "s": "socket", "c": "character device",
         "b": "block device"}  # fmt: skip
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Moment(Param):
    """A date, or how long ago: 2024-05-01, 2024-05-01T12:30, 90m, 2d."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        try:
            moment = _nanoseconds(text)
        except (ValueError, OverflowError):
            self.fail(
                f"{text!r} is no time; write 2024-05-01, 2024-05-01T12:30, or how long ago: 90m, 12h, 2d", param, ctx
            )
        if not -(2**63) <= moment < 2**63:
            self.fail(f"{text!r} is no time that a file can have; those are in 1678 to 2261", param, ctx)
        return moment


def _nanoseconds(text: str) -> int:
    """Since the epoch; ValueError or OverflowError when *text* is no time, or beyond what Python can reckon with."""
    number, unit = text[:-1], text[-1:]
    if unit in _SPANS and number.replace(".", "", 1).isdigit():
        return time.time_ns() - int(float(number) * _SPANS[unit] * 10**9)
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        found = found.astimezone()
    epoch = datetime.fromtimestamp(0, tz=found.tzinfo)
    return (found - epoch) // timedelta(microseconds=1) * 1000


class SizeRange(Param):
    """+64K, -1.5G, 0: (at least, at most)."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        if isinstance(value, tuple):
            return value
        count = SIZE.convert(value.lstrip("+-"), param, ctx)
        return (None if value.startswith("-") else count), (None if value.startswith("+") else count)


@click.command("find", epilog="Example: flakefs find /photos --name '*.jpg' --size +1M --newer 7d")
@click.argument("path", default=b"/", type=PATH)
@click.option("--name", metavar="GLOB", help="The name fits a pattern: *, ?, [a-z].")
@click.option("--type", "kind", type=click.Choice(list(TYPES)), help="f file, d folder, l symlink, p, s, c, b.")
@click.option(
    "--size",
    "sizes",
    type=SizeRange(),
    multiple=True,
    metavar="[+-]SIZE",
    help="+64K: at least so large; -1.5G: at most; 0: exactly. May be given twice.",
)
@click.option("--newer", type=Moment(), metavar="TIME", help="Changed after a date, or within the last 90m, 12h, 2d.")
@click.option("--older", type=Moment(), metavar="TIME", help="Changed before that.")
@click.option("-l", "long", is_flag=True, help="Size and time of each file, too.")
@click.option("-0", "--print0", is_flag=True, help="End each path with a NUL byte, for xargs -0.")
@json_option
@pass_state
def find_command(
    state: State,
    path: bytes,
    name: str | None,
    kind: str | None,
    sizes: tuple[tuple[int | None, int | None], ...],
    newer: int | None,
    older: int | None,
    long: bool,
    print0: bool,
    as_json: bool,
) -> None:
    """Find files at and below PATH (the top folder by default) that fit all conditions.

    MongoDB searches; folders are not walked, so the order is that of the database. The top folder, which has no name,
    is not listed.
    """
    with client(state, "find", writes=False) as fs:
        entries = fs.find(
            remote(path),
            name=name,
            kind=TYPES[kind] if kind else None,
            size_min=max((low for low, _ in sizes if low is not None), default=None),
            size_max=min((high for _, high in sizes if high is not None), default=None),
            newer=newer,
            older=older,
        )
        if as_json:
            output.echo_json_list(entries)
            return
        for entry in entries:
            if print0:
                click.echo(entry.path + b"\0", nl=False)
                continue
            if long:
                click.echo(f"{entry.size:>12} {output.moment(entry.mtime)} ", nl=False)
            output.echo_name(entry.path)

"""fsck, scrub, gc, and nodes repair: looking after a file system.

Not here
    Checking, mending and sweeping (tools).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from flakefs.cli import output
from flakefs.cli.bar import terminal
from flakefs.cli.common import SIZE, Param, json_option
from flakefs.cli.moving import rate_option, watching
from flakefs.cli.state import State, pass_state

if TYPE_CHECKING:
    from flakefs.tools.problems import Report

HOUR = 3600.0
SPAN_END = 10_000 * 24 * HOUR
"""About as long as time has been counted; what is far beyond no clock can subtract."""


@click.command("fsck", epilog="Example: flakefs fsck --deep && echo sound")
@click.option("--repair", is_flag=True, help="Mend what a crash can leave; nothing may be mounted.")
@click.option("--deep", is_flag=True, help="Read every chunk and check its hash, too.")
@json_option
@pass_state
def fsck_command(state: State, repair: bool, deep: bool, as_json: bool) -> None:
    """Check every invariant between names, files, counts and the chunks on nodes, and name each problem.

    Works while mounted (without --repair). Status 0: sound; leftovers of a crash are no damage. 1: there is damage.
    """
    from flakefs.app.stack import metadata_door
    from flakefs.tools.fsck import check

    config = state.config
    with metadata_door(config, purpose="fsck") as (door, resolve), _saying() as say:
        if repair:
            from flakefs.tools.repair import repair as mend

            report = mend(door, config.database, resolve, deep=deep, progress=say)
        else:
            report = check(door, config.database, resolve, deep=deep, progress=say)
    if as_json:
        output.echo_json(_facts(report))
    else:
        click.echo(report.text())
        if report.clean:
            click.echo("no damage" + ("" if deep else "; --deep would read the content of every chunk, too"))
    click.get_current_context().exit(report.exit_status)


def _facts(report: Report) -> dict[str, Any]:
    return {
        "clean": report.clean,
        "problems": [
            {
                "level": problem.kind.level,
                "kind": problem.kind.id,
                "what": problem.kind.what,
                "where": problem.where,
                "detail": problem.detail,
            }
            for problem in report.found
        ],
        "kinds": dict(report.kinds),
        "mended": dict(report.mended),
        "leaked_chunks": report.leaked_chunks,
        "leaked_bytes": report.leaked_bytes,
        "counts": dict(report.counts),
        "deep": report.deep,
    }


class Span(Param):
    """0, 90s, 15m, 2h, 1d: seconds."""

    name = "time"
    units = {"s": 1.0, "m": 60.0, "h": HOUR, "d": 24 * HOUR}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        unit = self.units.get(text[-1:], 1.0)
        number = text[:-1] if text[-1:] in self.units else text
        try:
            seconds = float(number) * unit
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < SPAN_END:
            self.fail(f"{text!r} is no span of time; write 0, 90s, 15m, 2h or 1d", param, ctx)
        return seconds


@click.command("gc", epilog="Example: flakefs gc --grace 2h")
@click.option(
    "--grace", type=Span(), default="1h", show_default=True,
    help="Chunks younger than this stay: somebody may be about to refer to them.",
)  # fmt: skip
@json_option
@pass_state
def gc_command(state: State, grace: float, as_json: bool) -> None:
    """Free chunks that no file refers to: what a crash has left on the nodes.

    Works while mounted, unless --grace is below 15 minutes. Status 1 when a node does not answer.
    """
    from flakefs.app.stack import metadata_door
    from flakefs.tools.gc import collect

    config = state.config
    with metadata_door(config, purpose="gc") as (door, resolve), _saying() as say:
        freed = collect(door, config.database, resolve, grace_seconds=grace, progress=say)
    if as_json:
        output.echo_json(freed)
    else:
        click.echo(freed.text())
    if freed.unreachable:
        click.get_current_context().exit(1)


@click.command("scrub", epilog="Example: flakefs scrub --rate 50M")
@click.option("--rate", type=SIZE, metavar="SIZE", help="Read at most so much a second.  [default: as fast as it goes]")
@click.option("--restart", is_flag=True, help="From the beginning, although an earlier one was interrupted.")
@json_option
@pass_state
def scrub_command(state: State, rate: int | None, restart: bool, as_json: bool) -> None:
    """Read every copy of every chunk on every node, and mend what has rotted or is missing from a good copy.

    Works while mounted; goes on where it was interrupted. Status 1 when a chunk has no good copy (its files are
    named), or a node does not answer.
    """
    from flakefs.app.stack import metadata_door
    from flakefs.tools.scrub import scrub

    config = state.config
    with metadata_door(config, purpose="scrub") as (door, resolve), watching() as watch:
        done = scrub(door, config.database, resolve, rate=rate, restart=restart, watch=watch)
    if as_json:
        output.echo_json(output.plain(done) | {"sound": done.sound})
    else:
        click.echo(done.text())
    if not done.sound:
        click.get_current_context().exit(1)


@click.command("repair", epilog="Example: flakefs nodes repair && flakefs scrub")
@click.option("--node", "number", type=click.IntRange(min=1), metavar="ID", help="Only the copies on this node.")
@click.option("--force", is_flag=True, help="Use an emptied node again although chunks lay there alone: gives them up.")
@rate_option
@json_option
@pass_state
def repair_command(state: State, number: int | None, force: bool, rate: int | None, as_json: bool) -> None:
    """Bring every volume back to all its copies: on nodes that were away, lost their disk, or were never enough.

    Works while mounted; can be interrupted and run again. Status 0 only when every chunk has all its copies. A node
    that does not answer is waited for; flakefs nodes remove replaces it.
    """
    from flakefs.app.stack import metadata_door
    from flakefs.tools.rate import Rate
    from flakefs.tools.refill import repair_replicas

    config = state.config
    with metadata_door(config, purpose="repair") as (door, resolve), watching() as watch:
        done = repair_replicas(
            door, config.database, resolve, node=number, force=force, watch=watch, rate=Rate(rate),
            reserve_bytes=config.engine.reserve_bytes,
        )  # fmt: skip
    if as_json:
        output.echo_json(output.plain(done) | {"complete": done.complete})
    else:
        click.echo(done.text())
    if not done.complete:
        click.get_current_context().exit(1)


@contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """What is being looked at, on one line of a terminal; nothing elsewhere."""
    console = terminal()
    if console is None:
        yield lambda _: None
        return
    with console.status("...") as status:
        yield status.update

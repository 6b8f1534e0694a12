"""nodes drain, remove and balance, volumes move: where content lies, changed while people work on it.

Not here
    The work itself (tools.drain, tools.remove, tools.balance, tools.moving).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from flakefs.cli import output
from flakefs.cli.bar import bar, terminal
from flakefs.cli.common import SIZE, Param, json_option
from flakefs.cli.state import State, pass_state

if TYPE_CHECKING:
    from rich.progress import Progress

    from flakefs.tools.fleet import Fleet
    from flakefs.tools.moving import Moved, Watch
    from flakefs.tools.remove import Removed

FILES_SHOWN = 1000
rate_option = click.option(
    "--rate", type=SIZE, metavar="SIZE", help="Copy at most so much a second.  [default: as fast as it goes]"
)
id_argument = click.argument("number", type=click.IntRange(min=1), metavar="ID")


class Percent(Param):
    """10%, or 0.1"""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0.001 <= share <= 1:
            self.fail(f"{text!r} is no share; write 10%, from 0.1% to 100%", param, ctx)
        return share


@click.command("drain", epilog="Example: flakefs nodes drain 2 && flakefs nodes remove 2")
@id_argument
@rate_option
@json_option
@pass_state
def drain_command(state: State, number: int, rate: int | None, as_json: bool) -> None:
    """Move everything off node ID, to the least full nodes that keep the replication; it takes no new chunks.

    Works while the file system is mounted. Can be interrupted and run again. Status 1 when something was damaged.
    """
    from flakefs.tools.drain import drain
    from flakefs.tools.rate import Rate

    with _fleet(state, "drain") as fleet, watching() as watch:
        moved = drain(fleet, number, watch, Rate(rate))
    _tell(moved, as_json, {"node": number}, f"node {number} is empty; flakefs nodes remove {number} takes it out")


@click.command("remove", epilog="Example: flakefs nodes remove 2")
@id_argument
@click.option("--force", is_flag=True, help="Also when files are damaged without it, or keep fewer copies.")
@rate_option
@json_option
@pass_state
def remove_command(state: State, number: int, force: bool, rate: int | None, as_json: bool) -> None:
    """Take node ID out of the file system: one that was drained, or one that is dead.

    What lay on a dead node is copied anew from other copies first. When there are none, the damaged files are listed
    and nothing is removed: status 1. The id is never used again.
    """
    from flakefs.tools.rate import Rate
    from flakefs.tools.remove import remove

    with _fleet(state, "remove") as fleet, watching() as watch:
        removed = remove(fleet, number, force=force, watch=watch, rate=Rate(rate))
    if as_json:
        output.echo_json(_removed_facts(removed))
    else:
        _show_removed(removed)
    if not removed.removed:
        click.get_current_context().exit(1)
    _leave(removed.moved)


@click.command("balance", epilog="Example: flakefs nodes balance --threshold 5%")
@click.option(
    "--threshold", type=Percent(), default="10%", show_default=True, metavar="SHARE",
    help="How far a node may be from the mean, in relation to it.",
)  # fmt: skip
@rate_option
@json_option
@pass_state
def balance_command(state: State, threshold: float, rate: int | None, as_json: bool) -> None:
    """Move volumes until all active nodes are about equally full, in relation to their capacity.

    Works while the file system is mounted. Can be interrupted and run again. Status 1 when they cannot be made even.
    """
    from flakefs.tools.balance import balance
    from flakefs.tools.rate import Rate

    with _fleet(state, "balance") as fleet, watching() as watch:
        balanced = balance(fleet, threshold, watch, Rate(rate))
        stored = {number: fleet.stored[number] for number in balanced.fill}
    nodes = [{"node": n, "stored": stored[n], "fill": balanced.fill[n]} for n in sorted(stored)]
    if as_json:
        ending = {"even": balanced.even, "why": balanced.why, "mean": balanced.mean, "nodes": nodes}
        output.echo_json(_facts(balanced.moved) | ending)
    else:
        _show(balanced.moved, balanced.why)
        rows = [(str(n), output.size(stored[n]), f"{balanced.fill[n]:.2%}") for n in sorted(stored)]
        output.table("", ("node", "stored", "full"), rows, right=(0, 1, 2))
    if not balanced.even:
        click.get_current_context().exit(1)
    _leave(balanced.moved)


@click.command("move", epilog="Example: flakefs volumes move 7 --from 1 --to 3")
@click.argument("volume", type=click.IntRange(min=1), metavar="VOLUME")
@click.option("--from", "source", type=click.IntRange(min=1), required=True, metavar="ID", help="Node that has it.")
@click.option("--to", "target", type=click.IntRange(min=1), required=True, metavar="ID", help="Node to take it.")
@rate_option
@json_option
@pass_state
def move_command(state: State, volume: int, source: int, target: int, rate: int | None, as_json: bool) -> None:
    """Move one copy of a volume to another node.

    Works while the file system is mounted. Can be interrupted and run again.
    """
    from flakefs.tools.moving import move_volume
    from flakefs.tools.rate import Rate

    with _fleet(state, "move") as fleet, watching() as watch:
        moved = move_volume(fleet, volume, source, target, watch, Rate(rate))
    _tell(moved, as_json, {"volume": volume}, f"volume {volume} lies on node {target}")


@contextmanager
def _fleet(state: State, purpose: str) -> Iterator[Fleet]:
    """The nodes of the file system; who interrupts the work is told that nothing is half done."""
    from flakefs.app.stack import metadata_door
    from flakefs.tools.fleet import open_fleet

    config = state.config
    try:
        with (
            metadata_door(config, purpose=purpose) as (door, resolve),
            open_fleet(door, config.database, resolve, reserve_bytes=config.engine.reserve_bytes) as fleet,
        ):
            yield fleet
    except KeyboardInterrupt:
        click.echo("flakefs: nothing is lost: the same command goes on from here", err=True)
        raise


def _facts(moved: Moved) -> dict[str, Any]:
    return {
        "moved": [{"volume": v, "from": source, "to": target} for v, source, target in moved.volumes],
        "chunks": moved.chunks,
        "bytes": moved.stored_bytes,
        "mended": moved.mended,
        "damaged_chunks": moved.bad,
        "left": moved.kept,
    }


def _tell(moved: Moved, as_json: bool, facts: dict[str, Any], message: str) -> None:
    """And status 1 when there was damage or something could not be dropped."""
    if as_json:
        output.echo_json(facts | _facts(moved))
    else:
        _show(moved, message)
    _leave(moved)


def _leave(moved: Moved) -> None:
    if moved.bad or moved.kept:
        click.get_current_context().exit(1)


def _show(moved: Moved, message: str) -> None:
    if moved.volumes:
        count = len(moved.volumes)
        copied = f"{output.size(moved.stored_bytes)} in {moved.chunks} chunks"
        click.echo(f"moved {count} volume{'' if count == 1 else 's'}, {copied}")
    if moved.mended:
        click.echo(f"{moved.mended} damaged copies were replaced by good ones")
    for name in moved.bad[:FILES_SHOWN]:
        click.echo(f"chunk {name} is damaged in every copy; flakefs scrub names its files", err=True)
    for text in moved.kept:
        click.echo(f"not dropped: {text}", err=True)
    click.echo(message)


def _show_removed(removed: Removed) -> None:
    damage = removed.damage
    if removed.dead:
        click.echo(f"node {removed.node} is dead: {removed.dead}")
    if damage.chunks:
        click.echo(f"{damage.chunks} chunks have no other copy; files that are damaged without node {removed.node}:")
        for ino, path, count in damage.files[:FILES_SHOWN]:
            shown = output.name(path or b"/") if path is not None else "(open, without a name)"
            click.echo(f"  inode {ino}  {count} chunks  {shown}")
        if len(damage.files) > FILES_SHOWN:
            click.echo(f"  and {len(damage.files) - FILES_SHOWN} more; --json lists all")
    if not removed.removed:
        click.echo("nothing is removed: bring the node back, or give up these files with --force", err=True)
        return
    if removed.short:
        click.echo(f"{len(removed.short)} volumes have fewer copies now; flakefs nodes repair completes them")
    _show(removed.moved, f"node {removed.node} is removed")


def _removed_facts(removed: Removed) -> dict[str, Any]:
    files = [{"inode": ino, "path": path, "lost_chunks": count} for ino, path, count in removed.damage.files]
    return {
        "node": removed.node,
        "removed": removed.removed,
        "dead": removed.dead,
        "lost_chunks": removed.damage.chunks,
        "damaged_files": files,
        "short_volumes": removed.short,
    } | _facts(removed.moved)


@contextmanager
def watching() -> Iterator[Watch]:
    """A bar for the volume that is copied, and below it what is being waited for; nothing without a terminal."""
    from flakefs.tools.moving import Watch

    console = terminal()
    if console is None:
        yield Watch()
        return

    class Bar(Watch):
        def __init__(self, progress: Progress) -> None:
            self._progress = progress
            self._task = progress.add_task("", total=None, count=0)
            self._volumes = 0

        def say(self, text: str) -> None:
            self._progress.update(self._task, description=text)

        def begin(self, text: str, total_bytes: int) -> None:
            self._progress.reset(self._task, total=total_bytes, description=text, count=self._volumes)

        def advance(self, chunks: int, size: int) -> None:
            self._progress.advance(self._task, size)

        def end(self) -> None:
            self._volumes += 1
            self._progress.update(self._task, count=self._volumes)

    with bar(console, "done") as progress:
        yield Bar(progress)

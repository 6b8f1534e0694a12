"""volumes: list, show, vacuum, move.

Not here
    Measuring and rewriting (tools.vacuum), moving (cli.moving).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flakefs.cli import output
from flakefs.cli.common import json_option
from flakefs.cli.lazy import Lazy, LazyGroup
from flakefs.cli.moving import Percent, rate_option, watching
from flakefs.cli.state import State, pass_state
from flakefs.errors import UsageError

if TYPE_CHECKING:
    from flakefs.format.records import VolumeRecord
    from flakefs.tools.fleet import Fleet

COMMANDS = {
    "list": Lazy("flakefs.cli.volumes:list_command", "List the volumes and where they lie."),
    "show": Lazy("flakefs.cli.volumes:show_command", "Show a volume and measure its copies."),
    "vacuum": Lazy("flakefs.cli.volumes:vacuum_command", "Give the disk space of deleted chunks back."),
    "move": Lazy("flakefs.cli.moving:move_command", "Move one copy of a volume to another node."),
}


@click.group("volumes", cls=LazyGroup, lazy=COMMANDS, epilog="Example: flakefs volumes vacuum --min-garbage 10%")
def volumes_group() -> None:
    """List volumes, move one, give disk space back."""


@click.command("list", epilog="Example: flakefs volumes list")
@json_option
@pass_state
def list_command(state: State, as_json: bool) -> None:
    """List the volumes and where they lie.

    State "short": fewer copies than the replication asks for; flakefs nodes repair makes them.
    """
    from flakefs.app.stack import metadata_door
    from flakefs.engine.admin import list_nodes, list_volumes, read_filesystem

    database = state.config.database
    with metadata_door(state.config, purpose="volumes") as (door, _resolve):
        code = read_filesystem(door, database).replication
        nodes, volumes = list_nodes(door, database), list_volumes(door, database)
    known = {node.id: node for node in nodes}
    facts = [_facts(volume, known, code) for volume in volumes]
    if as_json:
        output.echo_json(facts)
        return
    rows = [
        (str(f["id"]), f["state"] + (" short" if f["short"] else ""), f["code"],
         ",".join(map(str, f["nodes"])) or "none", str(f["chunks"]), output.size(f["bytes"]),
         output.size(f["garbage"]), f["work"] or "")
        for f in facts
    ]  # fmt: skip
    heads = ("volume", "state", "code", "nodes", "chunks", "stored", "garbage", "being worked on")
    output.table("", heads, rows, right=(0, 4, 5, 6))


@click.command("show", epilog="Example: flakefs volumes show 3")
@click.argument("number", type=click.IntRange(min=1), metavar="VOLUME")
@json_option
@pass_state
def show_command(state: State, number: int, as_json: bool) -> None:
    """Show a volume and measure its copies on their nodes. Status 1 when a node does not answer."""
    from flakefs.app.stack import metadata_door
    from flakefs.tools.fleet import open_fleet

    config = state.config
    with (
        metadata_door(config, purpose="volumes") as (door, resolve),
        open_fleet(door, config.database, resolve) as fleet,
    ):
        volume = fleet.volumes.get(number)
        if volume is None:
            raise UsageError(f"there is no volume {number}; flakefs volumes list shows them")
        facts = _facts(volume, fleet.records, fleet.format.replication)
        copies = [_copy(fleet, volume, node) for node in volume.nodes]
    if as_json:
        output.echo_json(facts | {"copies": copies})
    else:
        _print(facts, copies)
    if any(copy["problem"] for copy in copies):
        click.get_current_context().exit(1)


def _print(facts: dict[str, Any], copies: list[dict[str, Any]]) -> None:
    output.pairs(
        [
            ("Volume", str(facts["id"])),
            ("State", facts["state"]),
            ("Replication", facts["code"] + ("" if facts["own"] else ", the default")),
            ("Copies", facts["short"] or "as they should be"),
            ("Stored", f"{output.size(facts['bytes'])} in {facts['chunks']} chunks"),
            ("Deleted", f"{output.size(facts['garbage'])} since it was made or vacuumed"),
            ("Made", output.moment(facts["created"])),
            ("Work", facts["work"] or "-"),
        ]
    )
    click.echo()
    rows = [
        (str(c["node"]), str(c["chunks"]), output.size(c["content"]), output.size(c["file"]), output.size(c["free"]))
        for c in copies
    ]
    output.table("Copies", ("node", "chunks", "content", "file", "free in it"), rows, right=(0, 1, 2, 3, 4))
    for copy in copies:
        if copy["problem"]:
            click.echo(copy["problem"], err=True)


def _facts(volume: VolumeRecord, nodes: Any, default_code: str) -> dict[str, Any]:
    from flakefs.tools.lease import holder_text
    from flakefs.tools.replicas import short_of, wanted_code

    short = short_of(volume, nodes, default_code)
    work = volume.work
    return {
        "id": volume.id,
        "state": volume.state,
        "code": wanted_code(volume, default_code),
        "own": volume.own,
        "nodes": list(volume.nodes),
        "short": short.why if short else None,
        "chunks": volume.chunks,
        "bytes": volume.bytes,
        "garbage": volume.garbage,
        "created": volume.created,
        "work": f"{work.what}, by {holder_text(work.by)}" if work else None,
    }


def _copy(fleet: Fleet, volume: VolumeRecord, number: int) -> dict[str, Any]:
    """One copy as its server measures it."""
    from flakefs.errors import FlakeError
    from flakefs.tools.rewriting import measure

    copy: dict[str, Any] = {"node": number, "chunks": None, "content": None, "file": None, "free": None}
    node = fleet.nodes.get(number)
    if node is None:
        return copy | {"problem": f"node {number} is none of the nodes"}
    try:
        if node.failure:
            raise node.failure
        return copy | measure(node, fleet.format.uuid, volume.id)._asdict() | {"problem": None}
    except FlakeError as error:
        return copy | {"problem": str(error)}


class Share(Percent):
    """Percent that may be nought, too: everything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if str(value).removesuffix("%") in ("0", "0.0"):
            return 0.0
        return super().convert(value, param, ctx)


@click.command("vacuum", epilog="Example: flakefs gc && flakefs volumes vacuum")
@click.argument("numbers", type=click.IntRange(min=1), nargs=-1, metavar="[VOLUME]...")
@click.option(
    "--min-garbage", type=Share(), default="20%", show_default=True, metavar="SHARE",
    help="Rewrite a volume when so much of its file on a node holds nothing.",
)  # fmt: skip
@rate_option
@json_option
@pass_state
def vacuum_command(
    state: State, numbers: tuple[int, ...], min_garbage: float, rate: int | None, as_json: bool
) -> None:  # fmt: skip
    """Give the disk space of deleted chunks back: rewrite hollow volumes, drop empty ones.

    All volumes, or those given. What holds nothing is measured on the nodes. Works while mounted; can be interrupted
    and run again. Status 1 when something was left out.
    """
    from flakefs.app.stack import metadata_door
    from flakefs.tools.vacuum import vacuum

    config = state.config
    with metadata_door(config, purpose="vacuum") as (door, resolve), watching() as watch:
        done = vacuum(
            door, config.database, resolve, volumes=numbers, min_garbage=min_garbage, watch=watch, rate=rate
        )  # fmt: skip
    if as_json:
        output.echo_json(
            output.plain(done)
            | {"rewritten": [{"volume": v, "node": n, "freed_bytes": size} for v, n, size in done.rewritten]}
        )
    else:
        click.echo(done.text())
    if done.waiting:
        click.get_current_context().exit(1)

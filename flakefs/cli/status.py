"""status: everything about the file system as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flakefs.cli import output
from flakefs.cli.common import json_option
from flakefs.cli.sessions import print_sessions
from flakefs.cli.state import State, pass_state

if TYPE_CHECKING:
    from flakefs.app.mounts import MountRecord
    from flakefs.app.overview import NodeStatus, Overview


@click.command("status", epilog="Example: flakefs status --json")
@json_option
@pass_state
def status_command(state: State, as_json: bool) -> None:
    """Show the file system, its nodes with their space, and the mounts and commands that use it.

    Status 1 when a node does not answer, or was emptied, or when no node has room for new content.
    """
    from flakefs.app import mounts
    from flakefs.app.overview import overview
    from flakefs.app.stack import metadata_door
    from flakefs.mongo.clients import redacted

    config = state.config
    metadata = redacted(config.metadata_uri) if config.metadata_uri else "embedded"
    with metadata_door(config, purpose="status") as (door, resolve):
        found = overview(door, config.database, resolve, metadata, config.engine)
    users = {session.pid for session in found.sessions if session.lives and session.here}
    here = [mount for mount in mounts.running() if mount.pid in users]
    if as_json:
        output.echo_json(output.plain(found) | {"config": config.path, "mounts": output.plain(here)})
    else:
        _print(found, config.path, here)
    if found.no_room:
        click.echo(found.no_room, err=True)
    if found.no_room or any(node.problem for node in found.nodes):
        click.get_current_context().exit(1)


def _print(found: Overview, path: str, here: list[MountRecord]) -> None:
    record = found.format
    output.pairs(
        [
            ("File system", f"{found.database} ({record.uuid})"),
            ("Metadata", f"{found.metadata}, MongoDB {found.server_version}"),
            ("Configuration", path or "none: the defaults"),
            ("Made", output.moment(record.created)),
            ("Chunk size", f"{output.size(record.chunk_size)}, codec {record.codec}"),
            ("Replication", _replication(found)),
            ("Names", f"about {found.names}"),
            ("Files hold", output.size(found.file_bytes) if found.file_bytes is not None else "too many to add up now"),
            ("Stored", f"{output.size(found.stored_bytes)} in {found.chunks} chunks"),
        ]
    )
    click.echo()
    print_nodes(found.nodes)
    if found.sessions:
        click.echo()
        print_sessions(found.sessions)
    if here:
        click.echo()
        rows = [
            (m.mountpoint, "ro" if m.read_only else "rw", str(m.pid), output.moment(int(m.since * 10**9)), m.log or "-")
            for m in here
        ]
        output.table("Mounts on this machine", ("folder", "mode", "process", "since", "log"), rows, right=(2,))
    elif not found.sessions:
        click.echo("\nNobody uses it at the moment.")


def _replication(found: Overview) -> str:
    """The code, and how many volumes are short of copies."""
    from flakefs.app.replication import meaning

    code = found.format.replication
    short, silent = len(found.short_volumes), len(found.silent_volumes)
    states = []
    if short:
        states.append(f"{_volumes(short, found)} short of copies: flakefs nodes repair")
    if silent:
        why = (
            "does not answer"
            if not any(n.problem and n.answers for n in found.nodes)
            else "does not answer or is not ours"
        )
        states.append(f"{_volumes(silent, found)} without the copy on a node that {why}")
    if not states and found.volumes and code != "000":
        states.append("no volume is short of copies")
    state = "".join(f"; {each}" for each in states)
    return f"{code}, {meaning(code)}{state}"


def _volumes(number: int, found: Overview) -> str:
    return f"{number} of {found.volumes} volumes {'is' if number == 1 else 'are'}"


def state_of(node: NodeStatus) -> str:
    """Its state, or what is wrong with it."""
    if not node.problem:
        return "full" if node.full and node.state == "active" else node.state
    return "not ours" if node.answers else "no answer"


def print_nodes(nodes: tuple[NodeStatus, ...]) -> None:
    """The table of nodes, and a line for each that does not answer."""
    output.table(
        "Nodes",
        ("node", "state", "uri", "database", "dc", "rack", "volumes", "chunks", "stored", "capacity", "free", "disk"),
        [
            (
                str(node.id),
                state_of(node),
                node.uri,
                node.database,
                node.dc or "-",
                node.rack or "-",
                str(node.volumes),
                str(node.chunks),
                output.size(node.stored_bytes),
                output.size(node.capacity),
                output.size(node.disk_free),
                output.size(node.disk_total),
            )
            for node in nodes
        ],
        right=(0, 6, 7, 8, 9, 10, 11),
    )
    for node in nodes:
        if node.problem:
            click.echo(node.problem, err=True)

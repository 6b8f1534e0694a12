"""nodes: add, list, show, set. They work while the file system is mounted; mounts see a change within a second.

Not here
    drain, remove and balance (cli.moving).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flakefs.cli import output
from flakefs.cli.common import SIZE, TEXT, Param, json_option
from flakefs.cli.lazy import Lazy, LazyGroup
from flakefs.cli.state import State, pass_state
from flakefs.errors import UsageError

if TYPE_CHECKING:
    from flakefs.app.overview import NodeStatus

COMMANDS = {
    "add": Lazy("flakefs.cli.nodes:add_command", "Add a storage node; new chunks land there at once."),
    "list": Lazy("flakefs.cli.nodes:list_command", "List the nodes with their space."),
    "show": Lazy("flakefs.cli.nodes:show_command", "Show a node and its volumes."),
    "set": Lazy("flakefs.cli.nodes:set_command", "Change what is known about a node."),
    "drain": Lazy("flakefs.cli.moving:drain_command", "Move everything off a node."),
    "remove": Lazy("flakefs.cli.moving:remove_command", "Take a drained or a dead node out of the file system."),
    "repair": Lazy("flakefs.cli.care:repair_command", "Bring every volume back to all its copies."),
    "balance": Lazy("flakefs.cli.moving:balance_command", "Move volumes until all nodes are about equally full."),
}


ID_MAX = 2**31 - 1


class Capacity(Param):
    """A size, or none."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value == "none" else SIZE.convert(value, param, ctx)


@click.group(
    "nodes", cls=LazyGroup, lazy=COMMANDS, epilog="Example: flakefs nodes add mongodb://store2:27017 --rack r2"
)
def nodes_group() -> None:
    """Add, list, change, empty and remove storage nodes."""


@click.command("add", epilog="Example: flakefs nodes add mongodb://store2:27017 --database flakefs_chunks --rack r2")
@click.argument("uri")
@click.option(
    "--database", metavar="NAME", help="Database on the node.  [default: the one in URI, else <file system>_chunks]"
)
@click.option("--id", "number", type=click.IntRange(1, ID_MAX), help="Id of the node; one that was used is refused.")
@click.option("--dc", type=TEXT, metavar="NAME", help="Data center.  [default: as the rules in [topology] say]")
@click.option("--rack", type=TEXT, metavar="NAME", help="Rack.  [default: the same]")
@click.option("--capacity", type=SIZE, metavar="SIZE", help="Bytes of chunks it may hold.  [default: its disk]")
@json_option
@pass_state
def add_command(
    state: State, uri: str, database: str | None, number: int | None, dc: str | None, rack: str | None,
    capacity: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Add the MongoDB at URI as a storage node, after checking that it can be reached and written.

    Works while the file system is mounted: the next chunks land there. A password in URI is a reference, like
    mongodb://user:${file:/etc/flakefs/secret}@host/ or ${env:NAME}.
    """
    from flakefs.app.stack import database_of, metadata_door
    from flakefs.engine.admin import add_node
    from flakefs.mongo.clients import hosts_of
    from flakefs.mongo.secrets import refuse_clear_secret

    refuse_clear_secret(uri)
    config = state.config
    rule = config.topology.place_of(hosts_of(uri)) if config.topology.rules else None
    with metadata_door(config, purpose="nodes") as (door, resolve):
        node = add_node(
            door,
            config.database,
            uri=uri,
            node_database=database or database_of(uri) or f"{config.database}_chunks",
            dc=dc if dc is not None else rule.dc if rule else "",
            rack=rack if rack is not None else rule.rack if rule else "",
            capacity=capacity,
            id=number,
            resolve=resolve,
        )
        _show(_statuses(state, door, resolve, node.id), as_json, f"node {node.id} is added")


@click.command("list", epilog="Example: flakefs nodes list")
@json_option
@pass_state
def list_command(state: State, as_json: bool) -> None:
    """List the nodes with their space. Status 1 when one does not answer, or was emptied."""
    from flakefs.app.stack import metadata_door
    from flakefs.cli.status import print_nodes

    with metadata_door(state.config, purpose="nodes") as (door, resolve):
        nodes = _statuses(state, door, resolve, None)
    if as_json:
        output.echo_json(nodes)
    else:
        print_nodes(tuple(nodes))
    if any(node.problem for node in nodes):
        click.get_current_context().exit(1)


@click.command("show", epilog="Example: flakefs nodes show 1")
@click.argument("number", type=click.IntRange(min=1), metavar="ID")
@json_option
@pass_state
def show_command(state: State, number: int, as_json: bool) -> None:
    """Show node ID and its volumes. Status 1 when it does not answer, or was emptied."""
    from flakefs.app.stack import metadata_door
    from flakefs.engine.admin import list_volumes

    config = state.config
    with metadata_door(config, purpose="nodes") as (door, resolve):
        [node] = _statuses(state, door, resolve, number)
        volumes = [volume for volume in list_volumes(door, config.database) if number in volume.nodes]
    if as_json:
        output.echo_json(output.plain(node) | {"volume_list": output.plain(volumes)})
    else:
        _print_node(node)
        if volumes:
            click.echo()
            rows = [
                (str(v.id), v.state, v.code, str(v.chunks), output.size(v.bytes), output.size(v.garbage),
                 output.moment(v.created))
                for v in volumes
            ]  # fmt: skip
            heads = ("volume", "state", "code", "chunks", "stored", "garbage", "made")
            output.table("Volumes", heads, rows, right=(0, 3, 4, 5))
    if node.problem:
        click.get_current_context().exit(1)


@click.command("set", epilog="Example: flakefs nodes set 2 --state readonly")
@click.argument("number", type=click.IntRange(min=1), metavar="ID")
@click.option("--state", "new_state", type=click.Choice(["active", "readonly"]), help="readonly: no new chunks.")
@click.option("--dc", type=TEXT, metavar="NAME", help="Data center.")
@click.option("--rack", type=TEXT, metavar="NAME", help="Rack.")
@click.option("--capacity", type=Capacity(), metavar="SIZE", help='Bytes of chunks it may hold; "none": its disk.')
@click.option("--uri", metavar="URI", help="Its data has moved to this address, where it is looked for first.")
@json_option
@pass_state
def set_command(
    state: State, number: int, new_state: str | None, dc: str | None, rack: str | None, capacity: int | None,
    uri: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Change what is known about node ID. Mounts follow without a remount."""
    from flakefs.app.stack import metadata_door
    from flakefs.engine.admin import set_address, set_node

    if new_state is None and dc is None and rack is None and capacity is None and uri is None:
        raise UsageError("nothing to change: give --state, --dc, --rack, --capacity or --uri")
    with metadata_door(state.config, purpose="nodes") as (door, resolve):
        if uri is not None:
            set_address(door, state.config.database, number, uri, resolve=resolve)
        set_node(door, state.config.database, number, state=new_state, dc=dc, rack=rack, capacity=capacity)
        _show(_statuses(state, door, resolve, number), as_json, f"node {number} is changed")


def _statuses(state: State, door: Any, resolve: Any, number: int | None) -> list[NodeStatus]:
    """Of all nodes, or of one."""
    from flakefs.app.overview import node_status
    from flakefs.engine.admin import list_nodes, list_volumes, read_filesystem

    database = state.config.database
    uuid = read_filesystem(door, database).uuid
    nodes = list_nodes(door, database)
    if number is not None:
        known = ", ".join(str(node.id) for node in nodes)
        nodes = [node for node in nodes if node.id == number]
        if not nodes:
            raise UsageError(f"there is no node {number}; the nodes are {known}")
    volumes = list_volumes(door, database)
    return [node_status(node, volumes, resolve, uuid, state.config.engine.reserve_bytes) for node in nodes]


def _show(nodes: list[NodeStatus], as_json: bool, message: str) -> None:
    if as_json:
        output.echo_json(nodes[0])
        return
    click.echo(message)
    _print_node(nodes[0])


def _print_node(node: NodeStatus) -> None:
    from flakefs.cli.status import state_of

    output.pairs(
        [
            ("Node", str(node.id)),
            ("State", state_of(node)),
            ("URI", node.uri),
            ("Database", node.database),
            ("Data center", node.dc or "-"),
            ("Rack", node.rack or "-"),
            ("Capacity", output.size(node.capacity) if node.capacity is not None else "its disk"),
            ("Stored", f"{output.size(node.stored_bytes)} in {node.chunks} chunks, {node.volumes} volumes"),
            ("Disk", f"{output.size(node.disk_free)} of {output.size(node.disk_total)} free"),
        ]
    )
    if node.problem:
        click.echo(node.problem, err=True)

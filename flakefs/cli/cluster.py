"""cluster: dev, status, stop, and kill, start, pause, resume of one member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flakefs.cli import output
from flakefs.cli.common import TEXT, json_option
from flakefs.cli.lazy import Lazy, LazyGroup
from flakefs.cli.state import State, pass_state

if TYPE_CHECKING:
    from flakefs.mongo.cluster import LocalCluster
    from flakefs.mongo.server import Mongod

COMMANDS = {
    "dev": Lazy("flakefs.cli.cluster:dev_command", "Start a cluster on this machine, for trying things out."),
    "status": Lazy("flakefs.cli.cluster:status_command", "List its servers and what they are doing."),
    "stop": Lazy("flakefs.cli.cluster:stop_command", "Stop all its servers; with --remove delete them."),
    "kill": Lazy("flakefs.cli.cluster:kill_command", "Kill one server (SIGKILL)."),
    "start": Lazy("flakefs.cli.cluster:start_command", "Start one server, or all that do not run."),
    "pause": Lazy("flakefs.cli.cluster:pause_command", "Let one server answer nothing (SIGSTOP)."),
    "resume": Lazy("flakefs.cli.cluster:resume_command", "Let a paused server go on."),
}

dir_option = click.option(
    "--dir", "folder", metavar="DIR", help="Folder of the cluster.  [default: the configuration's, else a fixed one]"
)


@click.group("cluster", cls=LazyGroup, lazy=COMMANDS, epilog="Example: flakefs cluster dev -n 3 --racks 3")
def cluster_group() -> None:
    """A cluster of MongoDB servers on this machine, to try out nodes, replication and failures."""


@click.command("dev", epilog="Example: flakefs cluster dev -n 12 --dcs 3 --racks 2 --replication 100")
@click.option("-n", "--nodes", type=click.IntRange(1, 64), metavar="N", help="Storage nodes.  [default: 3]")
@click.option("--racks", type=click.IntRange(1, 64), default=1, show_default=True, help="Racks in each data center.")
@click.option("--dcs", type=click.IntRange(1, 64), default=1, show_default=True, help="Data centers.")
@dir_option
@click.option("--database", type=TEXT, metavar="NAME", help="Name of the file system.  [default: flakefs]")
@click.option("--replication", metavar="CODE", help="Copies of what is written, like 001.  [default: 000]")
@pass_state
def dev_command(
    state: State, nodes: int | None, racks: int, dcs: int, folder: str | None, database: str | None,
    replication: str | None,
) -> None:  # fmt: skip
    """Start N storage nodes and a metadata replica set of three, with a file system, and write a configuration.

    Can be repeated: what is there stays, what is missing is started or added, also with a larger N. The servers listen
    on unix sockets only and go on running until `flakefs cluster stop`.
    """
    from flakefs.app.cluster import config_file, develop

    cluster = develop(
        _folder(state, folder),
        nodes=nodes,
        racks=racks,
        dcs=dcs,
        database=database,
        replication=replication,
        mongod=state.config.embedded.mongod,
        say=click.echo,
    )
    click.echo(f"the cluster in {cluster.folder} is running: {len(cluster.nodes)} nodes, 3 metadata servers")
    click.echo(f"next: flakefs --config {config_file(cluster)} mount FOLDER")
    where = "" if folder is None else f" --dir {cluster.folder}"
    click.echo(f"then: flakefs cluster kill node2{where}; at the end: flakefs cluster stop --remove{where}")


@click.command("status", epilog="Example: flakefs cluster status")
@dir_option
@json_option
@pass_state
def status_command(state: State, folder: str | None, as_json: bool) -> None:
    """List the servers of the cluster. Status 1 when one does not run or answer."""
    members = _cluster(state, folder).status()
    if as_json:
        output.echo_json(members)
    else:
        rows = [(m.name, m.state, str(m.pid or "-"), m.dc or "-", m.rack or "-", m.log) for m in members]
        output.table("Cluster", ("member", "state", "process", "dc", "rack", "log"), rows, right=(2,))
    if any(m.state in ("stopped", "no answer", "not ready") for m in members):
        click.get_current_context().exit(1)


@click.command("stop", epilog="Example: flakefs cluster stop --remove")
@dir_option
@click.option("--remove", is_flag=True, help="Delete the folder: EVERYTHING IN THE FILE SYSTEM IS LOST.")
@pass_state
def stop_command(state: State, folder: str | None, remove: bool) -> None:
    """Stop all servers of the cluster. What is stored stays, unless --remove."""
    from flakefs.mongo.cluster import locked

    cluster = _cluster(state, folder)
    with locked(cluster.folder):
        stopped = cluster.stop()
        click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
        if remove:
            cluster.remove()
            click.echo(f"removed {cluster.folder}")


@click.command("kill", epilog="Example: flakefs cluster kill node2")
@click.argument("name", metavar="MEMBER")
@dir_option
@pass_state
def kill_command(state: State, name: str, folder: str | None) -> None:
    """Kill MEMBER (node2, meta1, ...), as when its machine loses power. Its data stays."""
    _signal(state, folder, name, lambda server: server.kill(), "is killed")


@click.command("start", epilog="Examples: flakefs cluster start node2; flakefs cluster start")
@click.argument("name", metavar="[MEMBER]", required=False)
@dir_option
@pass_state
def start_command(state: State, name: str | None, folder: str | None) -> None:
    """Start MEMBER, or every member that does not run."""
    from flakefs.mongo.cluster import locked

    cluster = _cluster(state, folder)
    with locked(cluster.folder):
        started = cluster.start([name] if name is not None else cluster.servers, state.config.embedded.mongod)
    click.echo(f"started {', '.join(started)}" if started else f"{name or 'everything'} is running already")


@click.command("pause", epilog="Example: flakefs cluster pause node2")
@click.argument("name", metavar="MEMBER")
@dir_option
@pass_state
def pause_command(state: State, name: str, folder: str | None) -> None:
    """Stop MEMBER with SIGSTOP: it accepts connections and answers nothing, as a machine that hangs."""
    _signal(state, folder, name, lambda server: server.pause(), "is paused")


@click.command("resume", epilog="Example: flakefs cluster resume node2")
@click.argument("name", metavar="MEMBER")
@dir_option
@pass_state
def resume_command(state: State, name: str, folder: str | None) -> None:
    """Let MEMBER go on, that was paused."""
    _signal(state, folder, name, lambda server: server.resume(), "goes on")


def _signal(state: State, folder: str | None, name: str, send: Callable[[Mongod], None], done: str) -> None:
    """Send a member a signal, and say so; one that does not run has nobody to send it to, which is fine."""
    server = _cluster(state, folder).server(name)
    running = server.pid() is not None
    if running:
        send(server)
    click.echo(f"{name} {done}" if running else f"{name} was not running")


def _folder(state: State, named: str | None) -> Path:
    """--dir; else the folder of the configuration, when that is a cluster's; else the usual one."""
    from flakefs.mongo.cluster import default_folder, is_cluster

    if named:
        return Path(named)
    beside = Path(state.config.path).parent if state.config.path else None
    return beside if beside is not None and is_cluster(beside) else default_folder()


def _cluster(state: State, named: str | None) -> LocalCluster:
    from flakefs.mongo.cluster import LocalCluster

    return LocalCluster(_folder(state, named))

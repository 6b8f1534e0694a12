"""replication: show, set and unset the replication code of the file system, of folders and of files.

Not here
    What a code means (format.placement), bringing what is stored up to it (flakefs nodes repair).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flakefs.cli import output
from flakefs.cli.common import PATH, Failures, client, json_option, remote
from flakefs.cli.lazy import Lazy, LazyGroup
from flakefs.cli.state import State, pass_state
from flakefs.errors import PosixError, ReadOnly

if TYPE_CHECKING:
    from flakefs.app.replication import Replication

COMMANDS = {
    "get": Lazy("flakefs.cli.replication:get_command", "Show the code of the file system, or of paths."),
    "set": Lazy("flakefs.cli.replication:set_command", "Set the code of the file system, or of paths."),
    "unset": Lazy("flakefs.cli.replication:unset_command", "Take the code of paths away."),
}


@click.group("replication", cls=LazyGroup, lazy=COMMANDS, epilog="Example: flakefs replication set 001 /photos")
def replication_group() -> None:
    """Show and set on how many nodes content is kept, and where.

    A code has three digits: further copies in other data centers, on other racks of the data center, and on other
    nodes of the rack. 000 is one copy, 001 two on two nodes, 010 two on two racks, 100 two in two data centers.
    """


@click.command("get", epilog="Example: flakefs replication get /photos")
@click.argument("paths", nargs=-1, type=PATH, metavar="[PATH...]")
@json_option
@pass_state
def get_command(state: State, paths: tuple[bytes, ...], as_json: bool) -> None:
    """Show the code that new content gets: of the whole file system, or of each PATH."""
    if not paths:
        _show_default(state, as_json)
        return
    from flakefs.api.replication import code_at

    failures = Failures()
    found = []
    with client(state, "replication", writes=False) as fs:
        for path in map(remote, paths):
            try:
                code, own = fs.run(code_at, path)
            except PosixError as error:
                failures.add(str(error))
                continue
            found.append({"path": path, "code": code, "own": own})
            if not as_json:
                whose = "its own" if own else "that of the file system"
                output.echo_name(path + f": {code} ({whose})".encode())
    if as_json:
        output.echo_json(output.plain(found))
    failures.leave()


def _show_default(state: State, as_json: bool) -> None:
    from flakefs.app.replication import default_replication
    from flakefs.app.stack import metadata_door

    with metadata_door(state.config, purpose="replication") as (door, _):
        found = default_replication(door, state.config.database)
    if as_json:
        output.echo_json(output.plain(found))
        return
    click.echo(f"{found.code}: {found.meaning}")
    if found.problem:
        click.echo(found.problem)
    _echo_short(found)


def _echo_short(found: Replication) -> None:
    number = len(found.short_volumes)
    if number:
        verb = "is" if number == 1 else "are"
        click.echo(f"{number} of {found.volumes} volumes {verb} short of copies: flakefs nodes repair makes them")


@click.command("set", epilog="Examples: flakefs replication set 001; flakefs replication set 010 /photos")
@click.argument("code")
@click.argument("paths", nargs=-1, type=PATH, metavar="[PATH...]")
@pass_state
def set_command(state: State, code: str, paths: tuple[bytes, ...]) -> None:
    """Set the code of the file system, or of folders and files.

    The code of a folder is that of everything made in it from then on. A code that the present nodes cannot keep is
    refused. What is stored already keeps its copies: for the file system's code, `flakefs nodes repair` makes the
    further ones; for the code of a folder or file, its content has to be written again.
    """
    from flakefs.format.placement import check_code

    check_code(code)
    if not paths:
        _set_default(state, code)
        return
    _change(state, paths, code)


@click.command("unset", epilog="Example: flakefs replication unset /photos")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@pass_state
def unset_command(state: State, paths: tuple[bytes, ...]) -> None:
    """Take the code of folders and files away: new content gets that of the file system again."""
    _change(state, paths, None)


def _set_default(state: State, code: str) -> None:
    from flakefs.app.replication import default_replication
    from flakefs.app.stack import metadata_door
    from flakefs.engine.admin import set_replication

    with metadata_door(state.config, purpose="replication") as (door, _):
        set_replication(door, state.config.database, code)
        found = default_replication(door, state.config.database)
    click.echo(f"the replication of {state.config.database} is {code} now: {found.meaning}")
    _echo_short(found)


def _change(state: State, paths: tuple[bytes, ...], code: str | None) -> None:
    """Each path that can be changed is, whatever becomes of the others."""
    from flakefs.api.replication import change, code_at

    failures = Failures()
    with client(state, "replication", writes=True) as fs:
        for path in map(remote, paths):
            try:
                fs.run(change, path, code)
                now, _ = fs.run(code_at, path)
                output.echo_name(path + f": {now}, for what is written from now on".encode())
            except ReadOnly:
                raise
            except PosixError as error:
                failures.add(str(error))
    failures.leave()

"""format: a new file system."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from flakefs.cli import output
from flakefs.cli.common import SIZE, json_option
from flakefs.cli.state import State, pass_state
from flakefs.errors import AlreadyFormatted, HeldElsewhere, NotFormatted, UsageError

if TYPE_CHECKING:
    from flakefs.mongo.door import Door


@click.command("format", epilog="Example: flakefs format --chunk-size 4M --codec lz4")
@click.option("--chunk-size", type=SIZE, default="1M", show_default=True, help="A power of two from 64K to 8M.")
@click.option(
    "--codec", type=click.Choice(["zstd", "lz4", "none"]), default="zstd", show_default=True, help="Compression."
)
@click.option(
    "--node", "node_uri", metavar="URI", help="MongoDB of the first storage node.  [default: as the metadata]"
)
@click.option("--node-database", metavar="NAME", help="Database on that node.  [default: <file system>_chunks]")
@click.option(
    "--replication", metavar="CODE", default="000", show_default=True, help="Copies; more than one need more nodes."
)
@click.option("--force", is_flag=True, help="Replace the file system that is there: EVERYTHING IN IT IS LOST.")
@click.option("--confirm", metavar="NAME", help="With --force: the name of the database, instead of being asked.")
@json_option
@pass_state
def format_command(
    state: State,
    chunk_size: int,
    codec: str,
    node_uri: str | None,
    node_database: str | None,
    replication: str,
    force: bool,
    confirm: str | None,
    as_json: bool,
) -> None:
    """Make a new file system in the metadata database of the configuration (by default an embedded MongoDB).

    Refuses when there is one already.
    """
    from flakefs.format.windows import valid_chunk_size

    if not valid_chunk_size(chunk_size):
        raise UsageError(f"the chunk size {chunk_size} cannot be; use a power of two from 64K to 8M")
    _check_replication(replication)
    from flakefs.app.stack import database_of, first_node_uri, metadata_door
    from flakefs.engine.admin import create_filesystem
    from flakefs.namespace import schema

    config = state.config
    uri = node_uri or first_node_uri(config)
    with metadata_door(config, purpose="format") as (door, resolve):
        if _is_formatted(door, config.database):
            _check_replacing(door, config.database, force, confirm)
        record = create_filesystem(
            door,
            config.database,
            chunk_size=chunk_size,
            codec=codec,
            first_node_uri=uri,
            first_node_database=node_database
            or (database_of(node_uri) if node_uri else "")
            or f"{config.database}_chunks",
            resolve=resolve,
            force=force,
            prepare=schema.create,
        )
    if as_json:
        output.echo_json({"database": config.database} | output.plain(record))
        return
    click.echo(
        f"the file system {config.database} is made: chunks of {output.size(record.chunk_size)}, codec {record.codec}"
    )
    click.echo("next: flakefs mount FOLDER, or flakefs put FILE /")


def _check_replication(code: str) -> None:
    """A new file system has one node."""
    from flakefs.format.placement import CODE_DEFAULT, check_code, copies

    if check_code(code) != CODE_DEFAULT:
        raise UsageError(
            f"replication {code} needs {copies(code)} nodes, and a new file system has one: make it without "
            f"--replication, add nodes with `flakefs nodes add`, then run `flakefs replication set {code}`"
        )


def _is_formatted(door: Door, database: str) -> bool:
    from flakefs.engine.admin import read_filesystem

    try:
        read_filesystem(door, database)
    except NotFormatted:
        return False
    return True


def _check_replacing(door: Door, database: str, force: bool, confirm: str | None) -> None:
    """An existing file system goes only with --force, its name typed, and nobody using it."""
    if not force:
        raise AlreadyFormatted(
            f"there is a file system in {database} already; --force replaces it, and everything in it is lost"
        )
    _check_unused(door, database)
    if confirm is None:
        if not sys.stdin.isatty():
            raise UsageError(f"nobody can be asked here; give --confirm {database} to lose everything in {database}")
        confirm = click.prompt(f"Everything in {database} will be lost. Type its name to go on", err=True)
    if confirm != database:
        raise UsageError(f"{confirm!r} is not the name {database!r}; nothing was changed")


def _check_unused(door: Door, database: str) -> None:
    from flakefs.app.overview import sessions

    for session in sessions(door, database):
        if session.lives:
            raise HeldElsewhere(
                f"{database} is in use by {session.kind} {session.where} on {session.host} (process {session.pid}); "
                "unmount it first"
            )

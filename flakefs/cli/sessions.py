"""sessions: who uses the file system, and declaring one dead that hangs.

Not here
    What a session is (namespace.sessions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from flakefs.cli import output
from flakefs.cli.common import json_option
from flakefs.cli.state import State, pass_state
from flakefs.errors import UsageError

if TYPE_CHECKING:
    from flakefs.app.overview import SessionStatus


@click.command("sessions", epilog="Example: flakefs sessions --fence 17")
@click.option("--fence", type=int, metavar="SESSION", help="Declare this one dead: it can store nothing any more.")
@click.option("--force", is_flag=True, help="With --fence: also one that was heard of a moment ago.")
@json_option
@pass_state
def sessions_command(state: State, fence: int | None, force: bool, as_json: bool) -> None:
    """List the mounts and commands that use the file system; fence one that is dead.

    A session that has not been heard of for its whole lease is declared dead by whoever works on, so --fence is seldom
    needed: for a host that has crashed while nobody else works, before fsck --repair.
    """
    from flakefs.app import overview
    from flakefs.app.stack import metadata_door

    if force and fence is None:
        raise UsageError("--force goes with --fence SESSION")
    config = state.config
    with metadata_door(config, purpose="sessions") as (door, _):
        done = overview.fence(door, config.database, fence, force=force) if fence is not None else ""
        found = overview.sessions(door, config.database)
    if as_json:
        output.echo_json([output.plain(session) for session in found])
        return
    if done:
        click.echo(done)
    if found:
        print_sessions(found)
    elif not done:
        click.echo("Nobody uses it at the moment.")


def print_sessions(found: Sequence[SessionStatus]) -> None:
    """Who uses the file system, and whether they hear of each other."""
    output.table(
        "In use by",
        ("session", "kind", "mode", "work", "stream", "lag", "where", "host", "process", "seen"),
        [
            (
                str(session.epoch),
                session.kind,
                session.mode,
                "shared" if session.shared else "alone" if session.mode == "rw" else "-",
                session.stream or "-",
                f"{session.lag_seconds * 1000:.0f} ms" if session.lag_seconds is not None else "-",
                session.where or "-",
                session.host,
                str(session.pid),
                f"{session.beat_seconds:.0f} s ago" + _state(session),
            )
            for session in found
        ],
        right=(0, 5, 8),
    )


def _state(session: SessionStatus) -> str:
    if not session.lives:
        return ", dead"
    return ", late" if session.late else ""

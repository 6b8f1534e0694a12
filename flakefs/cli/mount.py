"""The commands around a mount: mount, umount, sync.

Not here
    What they do: app.launch and app.daemon (mount), app.unmounting (umount, sync).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flakefs.cli.state import State, pass_state
from flakefs.errors import UsageError

if TYPE_CHECKING:
    from flakefs.config import Config


@click.command(
    "mount",
    epilog="Examples: flakefs mount /mnt/flake; flakefs mount -f -o close=stored,commit_interval=5 /mnt/flake",
)
@click.argument("mountpoint", required=False)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to the terminal.")
@click.option("-o", "words", multiple=True, metavar="OPTS", help="Mount options, separated by commas (see below).")
@click.option("--read-only", is_flag=True, help="Mount read-only: show what is committed, change nothing.")
@click.option("--ready-fd", type=int, hidden=True, help="Report there when the folder is usable.")
@pass_state
def mount_command(
    state: State,
    mountpoint: str | None,
    foreground: bool,
    words: tuple[str, ...],
    read_only: bool,
    ready_fd: int | None,
) -> None:
    """Mount the file system at the folder MOUNTPOINT (made when it is missing; default: from the configuration).

    Returns when the folder is usable; the mount goes on in the background and logs to a file. Ends with
    `flakefs umount`, with `fusermount3 -u`, or when its process gets SIGTERM: in each case everything is stored first.

    Options for -o: ro, allow_other, noexec, sync, noatime, suid and dev (root only; without them it is nosuid and
    nodev), config=FILE, database=NAME, log=FILE, balance=NAME, close=stored|fast, atime=relatime|noatime,
    commit_interval=SECONDS, error_timeout=SECONDS,
    dc=NAME, rack=NAME (where this mount is: the nearest copy is read first), write_dc=NAME (main copies only there),
    fewer_copies=refuse|warn (when the nodes cannot keep the replication),
    wait=SECONDS (for a metadata server that does not answer yet; with _netdev a minute), fsname=NAME.
    """
    if not foreground and ready_fd is None:
        mount_in_background(state, mountpoint, words, read_only=read_only)
        return
    from flakefs.app.daemon import run_mount

    config, folder, read_only = _settled(state, mountpoint, words, read_only)
    click.get_current_context().exit(run_mount(config, folder, read_only, ready_fd, debug=state.debug))


def mount_in_background(state: State, mountpoint: str | None, words: Sequence[str], *, read_only: bool) -> None:
    """Start the process behind a mount; returns when the folder is usable."""
    from flakefs.app.launch import launch
    from flakefs.app.mountpoint import log_file, real_path

    config, folder, read_only = _settled(state, mountpoint, words, read_only)
    log = Path(config.mount.log or log_file(folder)).absolute()
    arguments = ["--debug"] if state.debug else []
    if config.path:
        arguments += ["--config", os.path.abspath(config.path)]
    arguments += ["mount", *(part for word in words for part in ("-o", word)), "-o", f"log={log}"]
    if read_only:
        arguments.append("--read-only")
    launch(
        [*arguments, real_path(folder)],
        log,
        wait_seconds=config.mount.wait_seconds,
        say=lambda sentence: click.echo(sentence, err=True),
    )


def _settled(state: State, mountpoint: str | None, words: Sequence[str], read_only: bool) -> tuple[Config, str, bool]:
    """Configuration with the -o words applied, the folder, read-only?"""
    from flakefs.app import mount_options

    options = mount_options.parse(words)
    if options.config_path is not None:
        state = State(config_path=options.config_path, debug=state.debug)
    config = options.applied(state.config)
    for note in options.notes:
        click.echo(f"flakefs: {note}", err=True)
    folder = mountpoint or config.mount.mountpoint
    if not folder:
        raise UsageError("no folder to mount at: flakefs mount MOUNTPOINT, or set [mount] mountpoint in flakefs.conf")
    return config, folder, read_only or options.read_only


@click.command("umount", epilog="Example: flakefs umount /mnt/flake")
@click.argument("mountpoint")
@click.option("--force", is_flag=True, help="Unmount also when it is busy or not everything can be stored.")
@click.option("--timeout", type=click.FloatRange(min=0), default=300.0, show_default=True, help="Seconds to wait.")
def umount_command(mountpoint: str, force: bool, timeout: float) -> None:
    """Unmount MOUNTPOINT; returns when everything is stored and the process behind it has ended."""
    from flakefs.app.unmounting import unmount

    unmount(mountpoint, force=force, timeout_seconds=timeout)


@click.command("sync", epilog="Example: flakefs sync /mnt/flake")
@click.argument("mountpoint")
def sync_command(mountpoint: str) -> None:
    """Return when everything done below MOUNTPOINT so far is stored.

    The command sync(1) cannot do that: it never reaches a FUSE file system.
    """
    from flakefs.app.unmounting import sync

    sync(mountpoint)

"""The top of the command line: global options, the list of commands, and the one place where errors become messages.

Invariants
    L1  No traceback reaches the user without --debug: a FlakeError is its own sentence, anything else becomes one.
    L2  Status 2: usage or configuration. 1: the operation failed or problems were found. 128 + n: ended by signal n.
    L3  A reader that goes away (head) ends the command silently with status 1.

Not here
    What the commands do (their modules), mount and its helpers (flakefs.cli.mount).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from typing import Any

import click

from flakefs import __version__
from flakefs.cli.lazy import Lazy, LazyGroup
from flakefs.cli.state import State
from flakefs.errors import ConfigError, FlakeError, UsageError

COMMANDS = {
    "format": Lazy("flakefs.cli.format:format_command", "Make a new file system."),
    "mount": Lazy("flakefs.cli.mount:mount_command", "Mount the file system at a folder."),
    "umount": Lazy("flakefs.cli.mount:umount_command", "Unmount, after everything is stored."),
    "sync": Lazy("flakefs.cli.mount:sync_command", "Store everything a mount has done so far."),
    "status": Lazy("flakefs.cli.status:status_command", "Show the file system, its nodes, space and mounts."),
    "sessions": Lazy("flakefs.cli.sessions:sessions_command", "List who uses the file system; fence a dead one."),
    "nodes": Lazy("flakefs.cli.nodes:nodes_group", "Add, list and change storage nodes."),
    "volumes": Lazy("flakefs.cli.volumes:volumes_group", "List volumes, move one, give disk space back."),
    "cluster": Lazy("flakefs.cli.cluster:cluster_group", "Run a cluster on this machine, for trying things out."),
    "replication": Lazy(
        "flakefs.cli.replication:replication_group", "Show and set how many copies are kept, and where."
    ),
    "put": Lazy("flakefs.cli.transfer:put_command", "Copy local files into the file system."),
    "get": Lazy("flakefs.cli.transfer:get_command", "Copy files out of the file system."),
    "cat": Lazy("flakefs.cli.reading:cat_command", "Print the content of files."),
    "ls": Lazy("flakefs.cli.reading:ls_command", "List folders."),
    "stat": Lazy("flakefs.cli.reading:stat_command", "Show all facts about files: attributes, checksum, chunks."),
    "find": Lazy("flakefs.cli.finding:find_command", "Find files by name, size, time and type."),
    "mkdir": Lazy("flakefs.cli.changing:mkdir_command", "Make folders."),
    "rm": Lazy("flakefs.cli.changing:rm_command", "Remove files and folders."),
    "mv": Lazy("flakefs.cli.changing:mv_command", "Move or rename files and folders."),
    "fsck": Lazy("flakefs.cli.care:fsck_command", "Check every invariant; repair what a crash can leave."),
    "scrub": Lazy("flakefs.cli.care:scrub_command", "Read every copy of every chunk; mend what has rotted."),
    "gc": Lazy("flakefs.cli.care:gc_command", "Free chunks that no file refers to."),
}


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: as Ctrl-C, so that what was begun is ended in order (sessions, embedded servers)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def end_on_signals() -> None:
    """For the whole process; a mount takes the signals over for itself while it runs."""

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one ends it at once
        raise Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup: ignored stays ignored
            signal.signal(number, end)


class Root(LazyGroup):
    """The group that turns errors into one sentence and a status (L1 to L3)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BaseException as error:
            failure = _only(error)
            if isinstance(failure, (SystemExit, GeneratorExit)):
                raise
            if isinstance(failure, OSError) and failure.errno == errno.EPIPE:
                _forget_stdout()
                ctx.exit(1)
            if ctx.find_object(State) is not None and ctx.ensure_object(State).debug:
                traceback.print_exception(error)
            status, message = _verdict(failure)
            click.echo(f"flakefs: {message}", err=True)
            ctx.exit(status)


def _only(error: BaseException) -> BaseException:
    """The error itself, or the most telling leaf of a group: an interrupt before a FlakeError before the rest."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_only(inner) for inner in error.exceptions]
    for kind in (FlakeError, OSError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _verdict(error: BaseException) -> tuple[int, str]:
    """(exit status, the sentence)."""
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "status", 130), "interrupted"
    if isinstance(error, (ConfigError, UsageError)):
        return 2, str(error)
    if isinstance(error, FlakeError):
        return 1, str(error)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        where = f"{os.fsdecode(name)}: " if isinstance(name, (str, bytes)) else ""
        return 1, f"{where}{error.strerror}"
    kind = type(error).__name__
    return 1, f"unexpected {kind}: {error}; this is a bug in FlakeFS, and --debug before the command shows where"


def _forget_stdout() -> None:
    """Nobody reads: keep the interpreter from complaining when it flushes at exit."""
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
    except (OSError, ValueError, AttributeError):
        pass


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"flakefs {__version__}")
        ctx.exit()


@click.group(
    cls=Root,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Example: flakefs format && flakefs mount /mnt/flake",
)
@click.option("--config", "config_path", metavar="FILE", help="Use this configuration instead of the one found.")
@click.option("--debug", is_flag=True, help="Log everything, and show the traceback of an error.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show version."
)
@click.pass_context
def root(ctx: click.Context, config_path: str | None, debug: bool) -> None:
    """A POSIX file system that lives in MongoDB.

    Without a configuration file an embedded MongoDB is used. Paths of the file system are absolute, "/a/b";
    a missing leading slash is accepted.
    """
    state = ctx.ensure_object(State)
    state.config_path = config_path
    state.debug = debug
    log = logging.getLogger("flakefs")
    if debug:
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        log.setLevel(logging.DEBUG)
        return
    logging.getLogger("pymongo.client").setLevel(logging.CRITICAL)  # a pool's background: who uses it meets the error
    if not log.handlers:
        log.addHandler(logging.NullHandler())  # errors arrive as exceptions; their log lines would say them twice

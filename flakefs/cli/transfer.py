"""put and get: local files and trees into the file system and out of it, with the rules of cp.

Not here
    Copying (api.upload, api.download, api.transfer), progress bars (cli.progress).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from flakefs.cli import output
from flakefs.cli.common import PATH, Failures, client, remote, unbuffered
from flakefs.cli.progress import watching
from flakefs.cli.state import State, pass_state
from flakefs.errors import UsageError

if TYPE_CHECKING:
    from flakefs.api.copying import CopyOptions

STREAM = b"-"


def copy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that put and get share."""
    for option in reversed(
        (
            click.option("-r", "-R", "--recursive", is_flag=True, help="Folders with what is in them; keeps symlinks."),
            click.option("-p", "--preserve", is_flag=True, help="Keep mode, owner and times."),
            click.option("-a", "--archive", is_flag=True, help="-r and -p, and keep hard links and user.* attributes."),
            click.option("-n", "--no-clobber", is_flag=True, help="Leave a file that is already there alone."),
            click.option("-T", "--no-target-directory", is_flag=True, help="TARGET is the new path, never a folder."),
            click.option("-v", "--verbose", is_flag=True, help="Print each file."),
            click.option("-q", "--quiet", is_flag=True, help="No progress bar."),
        )
    ):
        command = option(command)
    return command


@click.command("put", epilog="Examples: flakefs put -r photos /; tar c src | flakefs put - /backup/src.tar")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="SOURCE... TARGET")
@copy_options
@click.option(
    "--replication",
    metavar="CODE",
    default="",
    help="How many copies, and where: the code of the files written and folders made.  [default: as the folder above]",
)
@pass_state
def put_command(
    state: State,
    paths: tuple[bytes, ...],
    recursive: bool,
    preserve: bool,
    archive: bool,
    no_clobber: bool,
    no_target_directory: bool,
    verbose: bool,
    quiet: bool,
    replication: str,
) -> None:
    """Copy local files into the file system; "-" is standard input.

    TARGET is a path in the file system. When it is a folder there, the copies go into it.
    """
    sources, target = _ends(paths, no_target_directory)
    from flakefs.api.copying import CopyOptions

    if replication:
        from flakefs.format.placement import check_code

        check_code(replication)
    target = remote(target)
    options = CopyOptions(
        recursive=recursive, preserve=preserve, archive=archive, no_clobber=no_clobber, replication=replication
    )
    failures = Failures()
    total = _local_total(sources, options) if not quiet else None
    with (
        client(state, "put", writes=True) as fs,
        watching(failures, verbose=verbose, quiet=quiet, total=total) as watch,
    ):
        from flakefs.api import transfer, upload
        from flakefs.cli.changing import is_folder

        into = not no_target_directory and fs.run(is_folder, target)
        _check_target(sources, target, into, output.name(target))
        if sources == [STREAM]:
            if into:
                raise UsageError(f"{output.name(target)} is a folder; standard input needs the path of a file")
            watch.started(b"standard input", 0)
            fs.run(transfer.write_stream, target, unbuffered(sys.stdin), advance=watch.advance, code=replication)
            watch.done(STREAM, target)
        else:
            fs.run(upload.put_all, sources, target, options, watch, into=into)
    failures.leave()


@click.command("get", epilog="Examples: flakefs get -r /photos .; flakefs get /backup/src.tar - | tar x")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="SOURCE... TARGET")
@copy_options
@pass_state
def get_command(
    state: State,
    paths: tuple[bytes, ...],
    recursive: bool,
    preserve: bool,
    archive: bool,
    no_clobber: bool,
    no_target_directory: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Copy files out of the file system; "-" is standard output.

    TARGET is a local path. When it is a folder, the copies go into it.
    """
    sources, target = _ends(paths, no_target_directory)
    from flakefs.api.copying import CopyOptions

    sources = [remote(source) for source in sources]
    options = CopyOptions(recursive=recursive, preserve=preserve, archive=archive, no_clobber=no_clobber)
    failures = Failures()
    into = target != STREAM and not no_target_directory and os.path.isdir(target)
    if target != STREAM:
        _check_target(sources, target, into, output.name(target))
    with client(state, "get", writes=False) as fs, watching(failures, verbose=verbose, quiet=quiet) as watch:
        from flakefs.api import download, transfer

        if target == STREAM:
            stream = unbuffered(sys.stdout)
            for source in sources:
                fs.run(transfer.read_stream, source, stream, advance=watch.advance)
        else:
            fs.run(download.get_all, sources, target, options, watch, into=into)
    failures.leave()


def _ends(paths: tuple[bytes, ...], no_target_directory: bool) -> tuple[list[bytes], bytes]:
    if len(paths) < 2:
        raise UsageError("a SOURCE and a TARGET are needed")
    *sources, target = paths
    if no_target_directory and len(sources) > 1:
        raise UsageError("-T takes one SOURCE")
    if STREAM in sources and len(sources) > 1:
        raise UsageError('"-" must be the only SOURCE')
    return sources, target


def _check_target(sources: list[bytes], target: bytes, into: bool, shown: str) -> None:
    if into:
        return
    if len(sources) > 1:
        raise UsageError(f"{shown} is not a folder, and several files cannot become one")
    if target.endswith(b"/") and not os.path.isdir(sources[0]):
        raise UsageError(f"{shown} is not a folder; make it first, or leave out the slash at the end")


def _local_total(sources: list[bytes], options: CopyOptions) -> int | None:
    """Bytes that will be copied, for the bar; None for a stream, which nobody can know."""
    if STREAM in sources:
        return None
    total = 0
    for source in sources:
        if options.deep and os.path.isdir(source):
            for folder, _, names in os.walk(source):
                total += sum(_length(os.path.join(folder, name)) for name in names)
        else:
            total += _length(source)
    return total


def _length(path: bytes) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0

"""Commands that change names: mkdir, rm, mv."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import click

from flakefs.cli import output
from flakefs.cli.common import PATH, Failures, Param, client, remote
from flakefs.cli.state import State, pass_state
from flakefs.errors import NotFound, PosixError, ReadOnly, UsageError

if TYPE_CHECKING:
    from flakefs.vfs import FileSystem


class Mode(Param):
    """Permission bits in octal."""

    name = "mode"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            mode = int(str(value), 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o7777:
            self.fail(f"{value!r} is no mode; write it in octal, like 755", param, ctx)
        return mode


@click.command("mkdir", epilog="Example: flakefs mkdir -p /photos/2024")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option("-p", "--parents", is_flag=True, help="Make missing folders above, too; one that is there is fine.")
@click.option("-m", "--mode", type=Mode(), default=None, help="Permission bits in octal, whatever the umask.")
@click.option("-v", "--verbose", is_flag=True, help="Print each folder that is made.")
@pass_state
def mkdir_command(state: State, paths: tuple[bytes, ...], parents: bool, mode: int | None, verbose: bool) -> None:
    """Make folders."""
    from flakefs.api import changes
    from flakefs.api.paths import reach

    failures = Failures()
    told = output.echo_name if verbose else changes.nobody

    async def make(fs: FileSystem, path: bytes) -> None:
        await changes.make_folder(fs, path, 0o777, parents, told)
        if mode is not None:
            await changes.set_mode(fs, await reach(fs, path), mode)

    with client(state, "mkdir", writes=True) as fs:
        for path in map(remote, paths):
            _each(failures, lambda path=path: fs.run(make, path))
    failures.leave()


@click.command("rm", epilog="Example: flakefs rm -r /photos/2019")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Folders with everything in them.")
@click.option("-f", "--force", is_flag=True, help="What is not there is no error.")
@click.option("-v", "--verbose", is_flag=True, help="Print each file that is removed.")
@pass_state
def rm_command(state: State, paths: tuple[bytes, ...], recursive: bool, force: bool, verbose: bool) -> None:
    """Remove files, symlinks and folders. Chunks that no other file refers to are freed."""
    from flakefs.api import changes

    failures = Failures()
    told = output.echo_name if verbose else changes.nobody

    async def remove(fs: FileSystem, path: bytes) -> None:
        from flakefs.api.paths import place, shown
        from flakefs.errors import IsDirectory

        try:
            _, _, found = await place(fs, path)
            if found is not None and stat.S_ISDIR(found.mode) and not recursive:
                raise IsDirectory(f"{shown(path)} is a folder; -r removes it with everything in it")
            await changes.remove(fs, path, recursive, told)
        except NotFound:
            if not force:
                raise

    with client(state, "rm", writes=True) as fs:
        for path in map(remote, paths):
            _each(failures, lambda path=path: fs.run(remove, path))
    failures.leave()


@click.command("mv", epilog="Example: flakefs mv /photos/new /photos/2024")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="SOURCE... TARGET")
@click.option("-n", "--no-clobber", is_flag=True, help="Leave a file that is already there alone.")
@click.option("-T", "--no-target-directory", is_flag=True, help="TARGET is the new path, also when it is a folder.")
@click.option("-v", "--verbose", is_flag=True, help="Print each new path.")
@pass_state
def mv_command(
    state: State, paths: tuple[bytes, ...], no_clobber: bool, no_target_directory: bool, verbose: bool
) -> None:
    """Move or rename files and folders. Nothing is copied."""
    if len(paths) < 2:
        raise UsageError("mv needs a SOURCE and a TARGET")
    if no_target_directory and len(paths) > 2:
        raise UsageError("-T takes one SOURCE")
    from flakefs.api.paths import base, join

    *sources, target = map(remote, paths)
    failures = Failures()
    with client(state, "mv", writes=True) as fs:
        into = not no_target_directory and fs.run(is_folder, target)
        if len(sources) > 1 and not into:
            raise UsageError(f"{output.name(target)} is not a folder, and several files cannot become one")
        for source in sources:
            place = join(target, base(source)) if into else target
            if no_clobber and fs.exists(place):
                continue
            if _each(failures, lambda s=source, p=place: fs.rename(s, p)) and verbose:
                output.echo_name(place)
    failures.leave()


async def is_folder(fs: FileSystem, path: bytes) -> bool:
    """Is *path* (or what a symlink there leads to) a folder?"""
    from flakefs.api.paths import reach

    try:
        return stat.S_ISDIR((await reach(fs, path)).mode)
    except PosixError:
        return False


def _each(failures: Failures, act: object) -> bool:
    """Run *act*; one file that fails does not keep the others from being done."""
    assert callable(act)
    try:
        act()
    except ReadOnly:
        raise  # the others would fail in the same way
    except PosixError as error:
        failures.add(str(error))
        return False
    return True

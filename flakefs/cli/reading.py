"""Commands that read: cat, ls, stat. They see what is committed and never change anything."""

from __future__ import annotations

import stat as stat_module
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from flakefs.cli import output
from flakefs.cli.common import PATH, Failures, client, json_option, remote, unbuffered
from flakefs.cli.state import State, pass_state
from flakefs.errors import PosixError

if TYPE_CHECKING:
    from flakefs.api import Client, Entry, Facts
    from flakefs.vfs import FileSystem

CHUNKS_SHOWN = 20


@click.command("cat", epilog="Example: flakefs cat /notes.txt | wc -l")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@pass_state
def cat_command(state: State, paths: tuple[bytes, ...]) -> None:
    """Print the content of files, one after the other."""
    failures = Failures()
    with client(state, "cat", writes=False) as fs:
        stream = unbuffered(sys.stdout)
        for path in paths:
            try:
                fs.get(remote(path), stream)
            except PosixError as error:
                failures.add(str(error))
    failures.leave()


@click.command("ls", epilog="Example: flakefs ls -l /photos")
@click.argument("paths", nargs=-1, type=PATH, metavar="[PATH...]")
@click.option("-l", "long", is_flag=True, help="Mode, links, owner, size and time of each file, too.")
@click.option("-a", "--all", "everything", is_flag=True, help="Names that start with a dot, too.")
@click.option("-d", "--directory", "itself", is_flag=True, help="The folder itself instead of what is in it.")
@click.option("-R", "--recursive", is_flag=True, help="Folders in folders, too.")
@click.option("-H", "--human-readable", "human", is_flag=True, help="Sizes like 1.5 MiB.")
@json_option
@pass_state
def ls_command(
    state: State,
    paths: tuple[bytes, ...],
    long: bool,
    everything: bool,
    itself: bool,
    recursive: bool,
    human: bool,
    as_json: bool,
) -> None:
    """List folders (the top one when no PATH is given), sorted by name."""
    failures = Failures()
    collected: list[Entry] = []

    def show(entries: list[Entry], base: bool) -> None:
        if as_json:
            collected.extend(entries)
        else:
            _print_entries(entries, long=long, human=human, base=base)

    with client(state, "ls", writes=False) as fs:
        singles, folders = _sorted_out(fs, paths or (b"/",), itself, failures)
        if singles:
            show(singles, False)
        titled = recursive or len(folders) + bool(singles) > 1
        first = not singles
        while folders:
            path = folders.pop(0)
            if titled and not as_json:
                click.echo("" if first else "\n", nl=False)
                output.echo_name(path + b":")
            first = False
            entries = sorted(fs.scandir(path), key=lambda entry: entry.path)
            entries = [entry for entry in entries if everything or not entry.name.startswith(".")]
            show(entries, True)
            if recursive:
                folders = [entry.path for entry in entries if entry.kind == "folder"] + folders
    if as_json:
        output.echo_json(collected)
    failures.leave()


def _sorted_out(
    fs: Client, paths: Iterable[bytes], itself: bool, failures: Failures
) -> tuple[list[Entry], list[bytes]]:
    """(files to list themselves, folders to list the content of)."""
    singles, folders = [], []
    for path in map(remote, paths):
        try:
            found = fs.run(_entry_of, path)
        except PosixError as error:
            failures.add(str(error))
            continue
        if found.kind == "folder" and not itself:
            folders.append(path)
        else:
            singles.append(found)
    return singles, folders


async def _entry_of(fs: FileSystem, path: bytes) -> Entry:
    from flakefs.api.facts import entry
    from flakefs.api.paths import reach

    return entry(await reach(fs, path, follow=False), path)


def _print_entries(entries: list[Entry], *, long: bool, human: bool, base: bool) -> None:
    from flakefs.api.paths import base as base_name

    def label(entry: Entry) -> bytes:
        return (base_name(entry.path) or b"/") if base else entry.path

    if not long:
        for entry in entries:
            output.echo_name(label(entry))
        return
    rows = [
        (
            stat_module.filemode(entry.mode),
            str(entry.links),
            _user(entry.uid),
            _group(entry.gid),
            output.size(entry.size) if human else str(entry.size),
            output.moment(entry.mtime),
        )
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for entry, row in zip(entries, rows, strict=True):
        mode, links, user, group, length, when = row
        front = f"{mode} {links:>{widths[1]}} {user:<{widths[2]}} {group:<{widths[3]}} {length:>{widths[4]}} {when} "
        arrow = b" -> " + entry.target if entry.kind == "symlink" else b""
        click.echo(front, nl=False)
        output.echo_name(label(entry) + arrow)


@click.command("stat", epilog="Example: flakefs stat --json /notes.txt")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option("-L", "--dereference", is_flag=True, help="Of a symlink, show what it points to.")
@click.option("--chunks", type=click.IntRange(min=0), default=CHUNKS_SHOWN, show_default=True, help="Chunks to list.")
@json_option
@pass_state
def stat_command(state: State, paths: tuple[bytes, ...], dereference: bool, chunks: int, as_json: bool) -> None:
    """Show everything about files: id, attributes, checksum, chunks with reference counts, volumes and nodes.

    The checksum of a file in one chunk is the BLAKE3 of its content (as b3sum prints it); of a larger one it is the
    BLAKE3 of its chunk map. The JSON lists all chunks.
    """
    failures = Failures()
    collected = []
    with client(state, "stat", writes=False) as fs:
        for path in map(remote, paths):
            try:
                facts = fs.stat(path, follow=dereference)
            except PosixError as error:
                failures.add(str(error))
                continue
            if as_json:
                collected.append(facts)
            else:
                _print_facts(facts, chunks)
    if as_json:
        output.echo_json(collected)
    failures.leave()


def _print_facts(facts: Facts, limit: int) -> None:
    rows = [
        ("Path", output.name(facts.path) + (f" -> {output.name(facts.target)}" if facts.target else "")),
        ("File id", str(facts.file_id)),
        ("Type", facts.kind),
        ("Size", f"{facts.size} bytes ({output.size(facts.used)} not holes)"),
        ("Mode", f"{stat_module.S_IMODE(facts.mode):04o} ({stat_module.filemode(facts.mode)})"),
        ("Owner", f"{facts.uid} ({_user(facts.uid)}), group {facts.gid} ({_group(facts.gid)})"),
        ("Links", str(facts.links)),
        ("Accessed", output.moment(facts.atime, exact=True)),
        ("Modified", output.moment(facts.mtime, exact=True)),
        ("Changed", output.moment(facts.ctime, exact=True)),
        ("Made", output.moment(facts.btime, exact=True)),
        ("Extension", facts.extension or "-"),
        ("MIME type", facts.mime_type),
    ]
    if facts.checksum:
        what = "BLAKE3 of the content" if facts.checksum_of == "content" else "BLAKE3 of the chunk map"
        rows.append(("Checksum", f"{facts.checksum} ({what})"))
    rows += [
        ("Attribute", f"{output.name(key)} = {output.name(value)}") for key, value in sorted(facts.attributes.items())
    ]
    if facts.literal:
        rows.append(("Chunks", "none: the content lies in the inode document"))
    elif facts.kind == "file":
        rows.append(("Chunks", str(len(facts.chunks))))
    output.pairs(rows)
    if facts.chunks and limit:
        _print_chunks(facts, limit)


def _print_chunks(facts: Facts, limit: int) -> None:
    output.table(
        "",
        ("offset", "length", "chunk", "hash", "replication", "references", "volume", "nodes"),
        [
            (
                str(chunk.offset),
                str(chunk.length),
                chunk.chunk,
                chunk.hash,
                chunk.replication,
                str(chunk.references),
                str(chunk.volume),
                ", ".join(map(str, chunk.nodes)) or "-",
            )
            for chunk in facts.chunks[:limit]
        ],
        right=(0, 1, 5, 6),
    )
    if len(facts.chunks) > limit:
        click.echo(f"... and {len(facts.chunks) - limit} more; --chunks or --json shows them")


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)

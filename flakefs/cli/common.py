"""What several commands share: opening a client or the metadata door, arguments that are paths and sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from flakefs.cli.state import State

if TYPE_CHECKING:
    from flakefs.api import Client


if TYPE_CHECKING:
    Param = click.ParamType[Any]
else:  # older releases of click have no type argument
    Param = click.ParamType


class BytesPath(Param):
    """A path as the bytes the user typed."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if value in ("", b""):
            self.fail("a path cannot be empty", param, ctx)
        if "\0" in os.fsdecode(value):
            self.fail("a path cannot contain a NUL byte", param, ctx)
        return os.fsencode(value)


class Size(Param):
    """4096, 64 MiB, 1.5G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from flakefs.config.values import parse_size

        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Text(Param):
    """Words that are stored as such; an argument of other bytes could not be."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            self.fail(f"{text!r} is not UTF-8", param, ctx)
        return text


PATH = BytesPath()
SIZE = Size()
TEXT = Text()
json_option = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


@contextmanager
def client(state: State, command: str, *, writes: bool) -> Iterator[Client]:
    """The open file system; everything is stored when the body ends well."""
    from flakefs.api import connect

    with connect(state.config, read_only=not writes, purpose=f"flakefs {command}") as fs:
        yield fs
        if writes:
            fs.sync()


def remote(path: bytes) -> bytes:
    """A path of the file system as the user wrote it, absolute."""
    from flakefs.api.paths import absolute

    return absolute(path)


def unbuffered(stream: Any) -> Any:
    """The raw file below a standard stream: a thread that blocks in it holds no lock that the end of all needs."""
    stream.flush()
    return getattr(stream.buffer, "raw", stream.buffer)


class Failures:
    """Collects what went wrong with single files; the command goes on and ends with status 1."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, message: str) -> None:
        self.count += 1
        click.echo(f"flakefs: {message}", err=True)

    def leave(self) -> None:
        """Status 1 when anything failed."""
        if self.count:
            click.get_current_context().exit(1)

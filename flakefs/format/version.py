"""The format version, and what a program does with another one."""

from __future__ import annotations

from flakefs.errors import FormatUnsupported

FORMAT_VERSION = 1


def check_version(found: int, where: str) -> None:
    """Raise FormatUnsupported unless this program can read and write format *found*."""
    if found != FORMAT_VERSION:
        raise FormatUnsupported(
            f"the file system in {where} has format version {found}, this program knows version {FORMAT_VERSION}; "
            "install the FlakeFS release that made it, or a newer one"
        )

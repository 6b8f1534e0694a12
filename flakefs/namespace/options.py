"""What can be chosen and seen of a namespace, and what it needs from the layer above.

Not here
    The configuration file (config).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from flakefs.errors import ConfigError
from flakefs.format.documents import IndexRecord
from flakefs.values import Block

LINK_MAX = 2**31 - 1
"""Names of one file, and sub-folders of one folder plus 2; many programs keep the count in 32 bits."""
LISTING_MAX = 50_000
"""Entries of a folder that is kept whole in memory; a larger one is read page by page."""
LOOKUP_LOADS = 200
"""A look-up in an unknown folder loads all of it when it has at most this many entries: the same round trip."""


class ContentSide(Protocol):
    """What the journal asks of whoever holds content that is not stored yet. Given by `vfs`."""

    def seal(self) -> list[Block]:
        """At the cut, without an await: freeze the open blocks of all files, turn small content into literals, and
        return every block that a map names and that is not durable yet. It may call `changed` and replace extents.
        """
        ...

    async def store(self, blocks: list[Block]) -> None:
        """All of *blocks* are durable and have their `ref` on return. Repeatable. Raises NoSpace or Unavailable."""
        ...

    def settle(self, kept: Iterable[Block], dropped: Iterable[Block], removed: Iterable[IndexRecord]) -> None:
        """*kept*: the commit that names them went through. *dropped*: no map names them any more. *removed*: index
        entries that are gone. Never waits.
        """
        ...

    def share(self, shared: bool) -> None:
        """Other sessions write too, or no longer. Never waits."""
        ...

    def at_rest(self) -> bool:
        """Nothing that was stored waits to be settled."""
        ...

    def lapsed(self) -> bool:
        """Something that was stored waits to be settled and was removed from the index, or waits for long."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOptions:
    commit_interval_seconds: float = 2.0
    """What a crash may take at most."""
    error_timeout_seconds: float = 30.0
    """How long a commit is tried before those who wait for it are told."""
    cached_inodes: int = 100_000
    """Clean inodes kept in memory; entries, extents and literals of them count too. About 600 bytes each."""
    group_documents: int = 2_000
    """So many dirty inodes start a commit at once."""
    dirty_documents_max: int = 10_000
    """Changes wait while more inodes are dirty."""
    lease_seconds: float = 15.0
    """A session that has not been heard of for so long may be declared dead by others; it says "alive" three times in
    that time."""

    def __post_init__(self) -> None:
        if self.commit_interval_seconds <= 0 or self.error_timeout_seconds <= 0:
            raise ConfigError("commit_interval and error_timeout must be longer than 0 s")
        if not 1 <= self.lease_seconds <= 3600:
            raise ConfigError("lease_seconds must be between 1 s and an hour")
        if self.cached_inodes < 1 or self.group_documents < 1:
            raise ConfigError("cached_inodes and group_documents must be at least 1")
        if self.dirty_documents_max < self.group_documents:
            raise ConfigError("dirty_documents_max must be at least group_documents")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceStatistics:
    inodes: int
    """In memory."""
    cached_units: int
    """Of `cached_inodes`."""
    dirty: int
    """Inodes that differ from what is stored or in the commit that runs."""
    commits: int
    """Since the session began."""
    documents: int
    """Written by these commits."""
    retries: int
    """Attempts of commits that failed."""
    commit_seconds: float
    """How long the last commit took, from the cut to the answer."""

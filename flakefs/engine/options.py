"""What can be chosen about the engine, and what it tells about itself.

Invariants
    None beyond the units written at each field; the configuration file is read elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from flakefs.errors import ConfigError

MIB = 1024 * 1024
GIB = 1024 * MIB
FEWER_COPIES = ("refuse", "warn")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    balance: str = "strict"
    """Name of an entry point in the group "flakefs.balancers": how the node for new chunks is chosen."""
    chunk_cache_bytes: int = 64 * MIB
    """Plain content of chunks kept in memory."""
    deadline_seconds: float = 10.0
    """Longest wait for one call to a node."""
    error_timeout_seconds: float = 30.0
    """So long a read waits for a node that does not answer before it is told EIO."""
    threads: int = 4
    """Worker threads for each node: this many for writing, as many again for the rest."""
    volume_max_bytes: int = 32 * GIB
    """A volume that holds more is sealed and a new one made; and so is one that holds more than a twentieth of what its
    fullest node holds, and"""
    volume_min_bytes: int = 64 * MIB
    """more than this."""
    write_dc: str = ""
    """New chunks get their main copy only in this data center; "": in any."""
    fewer_copies: str = "refuse"
    """What happens when the nodes that take chunks cannot keep the replication code: "refuse" is an error, "warn" makes
    as many copies as possible, which repair completes later."""
    node_patience_seconds: float = 2.0
    """Longest wait for one call to a node for which others can stand in; and longer for many bytes."""
    reserve_bytes: int = 256 * MIB
    """A node with less free disk space takes no chunks: mongod ends itself on a full disk."""
    dc: str = ""
    """Data center of this process, in the words of the nodes' documents: the nearest replica is read first."""
    rack: str = ""
    poll_seconds: float = 0.5
    """How often the documents of nodes and volumes, and disk space, are looked at."""

    def __post_init__(self) -> None:
        positive = ("deadline_seconds", "error_timeout_seconds", "node_patience_seconds", "threads", "poll_seconds")
        for name in (*positive, "volume_max_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"engine option {name} must be more than 0, not {getattr(self, name)}")
        for name in ("chunk_cache_bytes", "reserve_bytes", "volume_min_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"engine option {name} must not be negative, it is {getattr(self, name)}")
        if self.fewer_copies not in FEWER_COPIES:
            raise ConfigError(f"engine option fewer_copies is {' or '.join(FEWER_COPIES)}, not {self.fewer_copies!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Since the engine was opened, except where it says "now"."""

    stored_chunks: int
    stored_bytes: int
    """Encoded."""
    duplicate_chunks: int
    """Blocks whose content was known already."""
    rewritten_chunks: int
    """Written again because their node restarted or failed before they were durable."""
    barriers: int
    """Journaled writes that made earlier inserts durable."""
    fetched_chunks: int
    fetched_bytes: int
    """Plain."""
    hedged_reads: int
    """Reads that another replica was asked for as well, since the first took unusually long."""
    bad_copies: int
    """Copies found missing or damaged while another replica had a good one."""
    healed_chunks: int
    """Of these, put right from the good one."""
    cache_hits: int
    cached_bytes: int
    """Now."""
    pinned_blocks: int
    """Now: stored and not yet settled."""
    known_chunks: int
    """Now: indexed chunks remembered for de-duplication."""
    deleted_chunks: int
    deletions_waiting: int
    """Now."""
    leaked_chunks: int
    """Given up by the deleter; gc frees them."""
    suspect_nodes: int
    """Now: nodes that did not answer when last asked."""

"""What a configuration is: where the metadata lies, and the options of each layer under its own name."""

from __future__ import annotations

from dataclasses import dataclass, field

from flakefs.config.topology import TopologyOptions
from flakefs.engine import EngineOptions
from flakefs.errors import ConfigError
from flakefs.fuse import FuseOptions
from flakefs.mongo.embedded import EmbeddedOptions
from flakefs.namespace import NamespaceOptions
from flakefs.vfs import VfsOptions

DATABASE_NAME_MAX = 63 - len("_chunks")
"""MongoDB allows 63 bytes; the first node's database is usually this name with "_chunks"."""
_NOT_IN_DATABASE = set('/\\. "$*<>:|?\0')
_TAKEN = ("admin", "local", "config")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """Defaults of `flakefs mount`."""

    mountpoint: str = ""
    """Where `flakefs mount` without a folder mounts."""
    log: str = ""
    """Log file of a mount; "" for one in the user's or system's state folder."""
    wait_seconds: float = 0.0
    """How long a mount waits for a metadata server that does not answer yet; 0: not at all (`_netdev`: a minute)."""

    def __post_init__(self) -> None:
        if not 0 <= self.wait_seconds < 86400:
            raise ConfigError("wait_seconds must be between 0 and 86400")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything flakefs.conf can say. Each section but [metadata] is the options class of one layer;
    the fields of the class are the keys.
    """

    metadata_uri: str = ""
    """MongoDB URI of the replica set that holds the metadata; "" for the embedded one."""
    database: str = "flakefs"
    """The metadata database: its name is the name of the file system."""
    metadata_deadline_seconds: float = 10.0
    """One call to the metadata server."""
    embedded: EmbeddedOptions = field(default_factory=EmbeddedOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    namespace: NamespaceOptions = field(default_factory=NamespaceOptions)
    vfs: VfsOptions = field(default_factory=VfsOptions)
    fuse: FuseOptions = field(default_factory=FuseOptions)
    mount: MountOptions = field(default_factory=MountOptions)
    topology: TopologyOptions = field(default_factory=TopologyOptions)
    path: str = ""
    """The file it was read from; "" when there was none."""

    def __post_init__(self) -> None:
        name = self.database
        if not 1 <= len(name.encode()) <= DATABASE_NAME_MAX or _NOT_IN_DATABASE & set(name) or name in _TAKEN:
            raise ConfigError(
                f"[metadata] database: {name!r} cannot be a database; "
                f"use 1 to {DATABASE_NAME_MAX} letters, digits, _ and -"
            )
        if self.metadata_deadline_seconds <= 0:
            raise ConfigError("[metadata] deadline_seconds must be above zero: nobody may wait for ever")


METADATA_KEYS = {"uri": "metadata_uri", "database": "database", "deadline_seconds": "metadata_deadline_seconds"}
"""Keys of the section [metadata], which has no options class of its own, and their fields in Config."""
SECTIONS = ("embedded", "engine", "namespace", "vfs", "fuse", "mount", "topology")
"""Fields of Config that are sections of the file."""

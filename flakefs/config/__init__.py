"""flakefs.conf: the options of every layer, read from one TOML file and checked by name."""

from flakefs.config.files import exposed, find, load, places
from flakefs.config.model import Config, MountOptions
from flakefs.config.values import parse_size

__all__ = ["Config", "MountOptions", "exposed", "find", "load", "parse_size", "places"]

"""flakefs.conf: the options of every layer, read from one TOML file and checked by name."""

from flakefs.config.files import find, load, places
from flakefs.config.model import Config, MountOptions
from flakefs.config.values import parse_size

__all__ = ["Config", "MountOptions", "find", "load", "parse_size", "places"]

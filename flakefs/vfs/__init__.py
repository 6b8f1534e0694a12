"""POSIX meaning over namespace and engine: open files, write buffers, read-ahead, attributes."""

from flakefs.vfs.filesystem import FileSystem, VfsStatistics
from flakefs.vfs.open import open_vfs
from flakefs.vfs.options import VfsOptions
from flakefs.vfs.requests import Caller, Changes, StatFs

__all__ = ["Caller", "Changes", "FileSystem", "StatFs", "VfsOptions", "VfsStatistics", "open_vfs"]

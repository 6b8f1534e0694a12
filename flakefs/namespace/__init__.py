"""Names, inodes, chunk maps and their journal: everything about files but their content.

What other packages use is here and in `schema`, `sessions` and `queries`.
"""

from flakefs.namespace import queries, schema, sessions
from flakefs.namespace.coherence import KernelSide
from flakefs.namespace.inode import UNKNOWN, Inode, Unknown
from flakefs.namespace.maps import FileMap
from flakefs.namespace.options import ContentSide, NamespaceOptions, NamespaceStatistics
from flakefs.namespace.renames import Meant
from flakefs.namespace.sessions import Session, open_session
from flakefs.namespace.shared import Watch
from flakefs.namespace.space import Namespace, open_namespace

__all__ = [
    "UNKNOWN",
    "ContentSide",
    "FileMap",
    "Inode",
    "KernelSide",
    "Meant",
    "Namespace",
    "NamespaceOptions",
    "NamespaceStatistics",
    "Session",
    "Unknown",
    "Watch",
    "open_namespace",
    "open_session",
    "queries",
    "schema",
    "sessions",
]

"""FlakeFS: a POSIX file system that lives in MongoDB.

`flakefs.connect()` opens a file system for Python programs; see docs/api.md. Nothing is imported before it is used,
so that `flakefs --help` and `import flakefs` cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flakefs.api import Client as Client
    from flakefs.api import connect as connect

__version__ = "0.1.0"
__all__ = ["Client", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    if name in ("Client", "connect"):
        from flakefs import api

        return getattr(api, name)
    raise AttributeError(f"module 'flakefs' has no attribute {name!r}")

"""The mount: a thin translator between the kernel's FUSE requests and `flakefs.vfs`.

Only `serve` needs pyfuse3 and libfuse; it imports them when it is called, so that everything that works without a
mount also works on a machine without FUSE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flakefs.fuse.options import FuseOptions

if TYPE_CHECKING:
    from flakefs.vfs import FileSystem

__all__ = ["FuseOptions", "serve"]


async def serve(fs: FileSystem, mountpoint: str, options: FuseOptions, *, ready: Callable[[], None]) -> None:
    """Mount *fs* at the folder *mountpoint* and answer until it is unmounted; cancelled, unmount (see fuse.serving)."""
    from flakefs.fuse.serving import serve as run

    await run(fs, mountpoint, options, ready=ready)

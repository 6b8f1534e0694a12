"""Tests on a real mount."""

from __future__ import annotations

import os

import pytest

from flakefs.fuse import FuseOptions
from flakefs.fuse.caches import KernelCaches
from flakefs.testing.mounted import folder, mounted, new_mount, shared_mount
from tests.mount.space import Space

__all__ = ["folder", "mounted", "new_mount", "shared_mount"]


@pytest.fixture
def space() -> Space:
    return Space()


@pytest.fixture
async def kernel(space: Space) -> KernelCaches:
    return KernelCaches(space, FuseOptions(), "/nowhere")  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs /dev/fuse, except what is marked otherwise by its file name."""
    for item in items:
        if "tests/mount/" in str(item.path) and "_pure" not in item.path.name:
            item.add_marker(pytest.mark.mount)
            if not os.access("/dev/fuse", os.R_OK | os.W_OK):
                item.add_marker(pytest.mark.skip(reason="needs /dev/fuse"))

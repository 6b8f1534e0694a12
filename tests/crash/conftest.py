"""Tests that kill a mount or its servers."""

from __future__ import annotations

import os

import pytest

from flakefs.testing.killing import kills
from flakefs.testing.mounted import new_mount

__all__ = ["new_mount"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/crash/" in str(item.path):
            item.add_marker(pytest.mark.mount)
            item.add_marker(pytest.mark.timeout(120 + 30 * kills()))
            if not os.access("/dev/fuse", os.R_OK | os.W_OK):
                item.add_marker(pytest.mark.skip(reason="needs /dev/fuse"))

"""All tests: fixtures and the log check come from the test kit. Files that take long begin first."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["flakefs.testing.plugin"]

# A shell starts what runs in its background with SIGINT ignored, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = (
    "test_acceptance_django.py", "test_tools_repair.py", "test_engine_replicas.py", "test_failures_servers.py",
    "test_cli_cluster.py", "test_mount_life.py", "test_tools_moving_killed.py", "test_namespace_machine.py",
    "test_acceptance_replicas.py", "test_vfs_machine.py", "test_mount_service.py", "test_acceptance_programs.py",
    "test_mongo_embedded.py", "test_failures_refused.py", "test_cli_secrets.py", "test_crash_servers.py",
    "test_acceptance_growth.py", "test_tools_crash.py", "test_shared_history_cluster.py",
)  # fmt: skip
"""Half a minute and more: begun in the end, one of them would run alone while the other workers have nothing left."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))

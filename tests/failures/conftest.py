"""Servers and mounts for tests in which something outside of FlakeFS fails."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from flakefs.testing.mounted import Mount, new_mount
from flakefs.testing.servers import Servers

__all__ = ["new_mount"]

OUTER_SECONDS = 90.0
"""Nothing may take longer; what is promised is far shorter, but the machine may be busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/failures/" in str(item.path):
            item.add_marker(pytest.mark.mount)
            item.add_marker(pytest.mark.timeout(400))
            if not os.access("/dev/fuse", os.R_OK | os.W_OK):
                item.add_marker(pytest.mark.skip(reason="needs /dev/fuse"))


@pytest.fixture(scope="package")
def package_servers() -> Iterator[Servers]:
    """In place of the shared ones: other tests are not to feel this."""
    with Servers() as running:
        yield running


@pytest.fixture
def servers(package_servers: Servers) -> Servers:
    """Both run when a test begins, whatever the one before did."""
    for server in (package_servers.metadata, package_servers.node(1)):
        server.resume()
        server.start()
    return package_servers


def settings(*, patience: float, deadline: float) -> dict[str, Any]:
    """*patience*: error_timeout, after which programs are told; *deadline*: of one call to a server."""
    return {
        "metadata": {"deadline_seconds": deadline},
        "namespace": {"error_timeout_seconds": patience, "commit_interval_seconds": 0.3},
        "vfs": {"error_timeout_seconds": patience},
        "engine": {"deadline_seconds": deadline, "error_timeout_seconds": patience, "poll_seconds": 0.2},
    }


@pytest.fixture
def patient(new_mount: Callable[..., Mount]) -> Mount:
    """Waits long enough for any server to be started again."""
    return new_mount(settings=settings(patience=OUTER_SECONDS, deadline=OUTER_SECONDS / 3))


@pytest.fixture
def impatient(new_mount: Callable[..., Mount]) -> Mount:
    """Gives up after 3 s."""
    return new_mount(settings=settings(patience=3.0, deadline=1.0))


@pytest.fixture
def within() -> Callable[..., Any]:
    """Call something that may block, in a thread; fails when it hangs."""

    def run(call: Callable[..., Any], *arguments: Any, seconds: float = OUTER_SECONDS) -> Any:
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def work() -> None:
            try:
                answer.set_result(call(*arguments))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=work, daemon=True, name="within").start()
        try:
            return answer.result(seconds)
        except concurrent.futures.TimeoutError:
            if answer.done():
                raise
            pytest.fail(f"{call} hangs for more than {seconds:g} s")

    return run


@pytest.fixture
def until() -> Callable[..., None]:
    """Try something until it raises no OSError or AssertionError any more."""

    def run(call: Callable[[], Any], seconds: float = OUTER_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(OSError, AssertionError):
                call()
                return
            time.sleep(0.1)
        call()

    return run

"""pytest fixtures over real servers, and the check that nothing was logged unannounced.

Purpose
    `servers` (one set for the whole run), `private_servers` (for a test that ends them), `database` and `new_database`
    (fresh names, dropped afterwards), and the log check.

Invariants
    T3  A test that logs a WARNING or worse under "flakefs", an exception anywhere, or prints a traceback fails,
        unless it is marked with @pytest.mark.logs.
    T4  No two tests share a database name.

Concurrency
    Fixtures run in the main thread; the handler of the log check may be called from any.

Not here
    The servers themselves (testing.servers).
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Generator, Iterator

import pytest

from flakefs.testing.servers import Servers

_numbers = itertools.count(1)
_BAD_OUTPUT = ("Traceback (most recent call last)", "Task exception")


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """A metadata server and a node, shared by all tests of the run; more nodes on demand.

    A test may stop, kill or pause one of them when it brings it back before it ends.
    """
    with Servers() as running:
        assert running.metadata.pid
        assert running.node(1).pid
        yield running


@pytest.fixture
def private_servers() -> Iterator[Servers]:
    """Servers of this test alone; each is started when it is asked for."""
    with Servers() as running:
        yield running


@pytest.fixture
def new_database(servers: Servers) -> Iterator[Callable[[], str]]:
    """Call it for a database name that nobody else uses; dropped from all running servers afterwards."""
    names: list[str] = []

    def make() -> str:
        names.append(f"t{os.getpid()}_{next(_numbers)}")
        return names[-1]

    yield make
    for server in servers.running() if names else ():
        with server.client() as client:
            for name in names:
                client.drop_database(name)


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    """One fresh database name."""
    return new_database()


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        ours = record.name == "flakefs" or record.name.startswith("flakefs.")
        theirs = record.name == "pymongo.client"  # a pool in the background; whoever uses it meets the error himself
        if ours or (record.exc_info and not theirs) or "Task exception" in message:
            self.records.append(f"{record.levelname} {record.name}: {message}")


@pytest.fixture(autouse=True)
def log_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """T3, for what goes through logging in this process."""
    collector = _Collector()
    loggers = logging.getLogger(), logging.getLogger("flakefs")
    for logger in loggers:
        logger.addHandler(collector)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(collector)
    if collector.records and request.node.get_closest_marker("logs") is None:
        pytest.fail("logged without announcing it (@pytest.mark.logs):\n" + "\n".join(dict.fromkeys(collector.records)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """T3, for what this process and the ones it started print."""
    report = yield
    if report.passed and item.get_closest_marker("logs") is None:
        for name, text in report.sections:
            if "stderr" in name and any(bad in text for bad in _BAD_OUTPUT):
                report.outcome = "failed"
                report.longrepr = f"a traceback was printed without announcing it (@pytest.mark.logs):\n{text}"
    return report

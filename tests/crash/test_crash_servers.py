"""SIGKILL of mongods at random moments of a workload: the mount lives on (P5, P6), and what it promised holds (P1)."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from flakefs.testing.killing import CHUNK_SIZE, SETTINGS, TROUBLE, Killer, kills
from flakefs.testing.mounted import NewMount
from flakefs.testing.servers import Servers, TestServer


@pytest.fixture
def servers() -> Iterator[Servers]:
    """In place of the shared ones, for new_mount too: other tests are not to feel this."""
    with Servers() as running:
        assert running.metadata.pid
        assert running.node(1).pid
        yield running


def kill(victims: Sequence[TestServer]) -> None:
    for victim in victims:
        assert victim.pid is not None
        victim.kill()


def start(victims: Sequence[TestServer]) -> None:
    """All at once: the first mount or command would find them gone together."""
    threads = [threading.Thread(target=victim.start) for victim in victims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(victim.pid for victim in victims)


def test_p5_servers_are_killed(new_mount: NewMount, servers: Servers) -> None:
    killer = Killer(new_mount(settings=SETTINGS, chunk_size=CHUNK_SIZE))
    killer.mount.expect_log(TROUBLE)
    metadata, node = servers.metadata, servers.node(1)
    victims = itertools.cycle([[metadata], [node], [metadata, node], [node], [metadata]])
    killer.load.start()
    for number, victim in zip(range(kills()), victims, strict=False):
        killer.random_moment()
        before = killer.load.fsyncs
        kill(victim)
        if number % 5 == 2:  # all at once, as when the machine loses power
            killer.kill_mount()
            start(victim)
            killer.recover()
            killer.load.start()
            continue
        time.sleep(killer.chance.choice((0.0, killer.chance.uniform(0, 0.5))))
        start(victim)
        killer.load.wait(lambda before=before: killer.load.fsyncs >= before + 3)  # type: ignore[misc]
        assert killer.load.error is None, f"{killer.load.ops[-1]} met {killer.load.error!r}"
        killer.compare()
        killer.load.start()
        if number % 5 == 4:  # what was promised over all this is in the servers
            killer.random_moment()
            killer.kill_mount()
            killer.recover()
            killer.load.start()
    killer.finish()
    killer.tried()

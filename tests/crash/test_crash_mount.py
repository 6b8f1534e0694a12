"""SIGKILL of a mount at random moments of a workload (P1, P4; T9 to T13 of the test kit)."""

from __future__ import annotations

from flakefs.testing.killing import CHUNK_SIZE, SETTINGS, Killer, kills
from flakefs.testing.mounted import NewMount


def test_p4_the_mount_is_killed(new_mount: NewMount) -> None:
    killer = Killer(new_mount(settings=SETTINGS, chunk_size=CHUNK_SIZE))
    for _ in range(kills()):
        killer.load.start()
        killer.random_moment()
        killer.kill_mount()
        killer.recover()
    killer.load.start()
    killer.random_moment()
    killer.finish()
    killer.tried()
    assert killer.kills == kills()

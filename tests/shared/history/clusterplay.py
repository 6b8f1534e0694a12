"""Histories whose servers get into trouble, not their mounts: a metadata replica set, and nodes with two copies.

Purpose
    `ClusterPlay` is a Play on a local cluster. While programs run, the primary is killed, stopped, or steps down, a
    node is killed, stopped or restarted, or a tool moves, seals, drains or rewrites volumes.

Invariants
    H3  No call fails for it: one member of each kind is away at a time, for less than the time-out (P5, P6).

Concurrency
    As Play; the trouble, tools included, is made by the thread that called run(). Several plays may run beside each
    other, each in a folder of its own, and meet the same trouble: run_together().

Not here
    Which troubles are played (the tests).
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import quote

from pymongo import MongoClient

from flakefs.app.stack import metadata_door
from flakefs.config import load
from flakefs.engine.admin import set_node
from flakefs.errors import FlakeError, Unavailable
from flakefs.format.records import VolumeRecord
from flakefs.mongo.cluster import LocalCluster
from flakefs.mongo.server import Mongod
from flakefs.testing.mounted import Mount
from flakefs.tools.drain import drain
from flakefs.tools.fleet import Fleet, open_fleet
from flakefs.tools.gc import collect
from flakefs.tools.lease import volume_lease
from flakefs.tools.moving import Mover
from flakefs.tools.sealing import seal
from flakefs.tools.vacuum import vacuum
from tests.shared.history.play import CALLS, Play, wait_for
from tests.shared.history.record import SERVERS, Trouble

METADATA_TROUBLES = ("primary", "stepdown", "primary-pause")
NODE_TROUBLES = ("node-kill", "node-pause", "node-restart")
TOOL_TROUBLES = ("move", "seal", "drain", "vacuum")
BOTH_TROUBLES = ("primary+node-kill", "move+primary", "move+node-kill", "drain+stepdown")
MOUNT_TROUBLES = ("kill+primary", "kill+node-kill", "pause+stepdown")
PROGRAM_CALLS = 12


class ClusterPlay(Play):
    calls = (*CALLS, "read", "write")
    seconds = 2.5
    """So long programs take without trouble: an election lasts two seconds and more."""

    def __init__(
        self,
        cluster: LocalCluster,
        mounts: Sequence[Mount],
        chance: random.Random,
        name: str,
        beside: ClusterPlay | None = None,
    ) -> None:
        """*beside*: the one whose trouble this one shares."""
        super().__init__(mounts, chance, name, programs=2, calls=PROGRAM_CALLS)
        self.cluster = cluster
        self.told: list[str] = []
        """What tools came to."""
        self._over = threading.Event()
        self._leader = beside
        if beside is not None:
            self.troubles, self._up = beside.troubles, beside._up
        self._hurry = chance.random() < 0.5
        if chance.random() < 0.7:  # else content that histories before have stored, and perhaps freed
            self._values = itertools.count(chance.randrange(10**6, 2**48))

    def _rest(self, chance: random.Random) -> None:
        """Spread over the trouble and what follows; or, hurried, most calls soon after it has begun."""
        if self._hurry and self.troubles:
            super()._rest(chance)
        elif chance.random() < 0.7:
            time.sleep(chance.uniform(0, 2 * self.seconds / PROGRAM_CALLS / 0.7))

    def _make(self, trouble: str, running: Sequence[Future[None]]) -> None:
        if self._leader is not None:
            self._leader._over.wait()
            return
        try:
            self._make_trouble(trouble, running)
        finally:
            self._over.set()

    def _make_trouble(self, trouble: str, running: Sequence[Future[None]]) -> None:
        time.sleep(self.chance.uniform(0.0, self.seconds / 3))
        entry, began = len(self.troubles), time.monotonic()
        self.troubles.append(Trouble(SERVERS, began, math.inf))
        first, _, second = trouble.partition("+")
        if first in TOOL_TROUBLES:
            self._tool(first, second)
        elif first in ("kill", "pause"):
            with ThreadPoolExecutor(1) as pool:
                work = pool.submit(super()._make, first, running)
                self._server_trouble([second])
                work.result()
        else:
            self._server_trouble(trouble.split("+"))
        self.troubles[entry] = Trouble(SERVERS, began, time.monotonic())

    # -- servers --

    def _server_trouble(self, kinds: Sequence[str]) -> None:
        hurt = [(kind, self._victim(kind)) for kind in kinds]
        for kind, server in hurt:
            if kind == "stepdown":
                step_down(server)
            elif kind == "node-restart":
                server.stop()
            elif kind.endswith("-pause"):
                server.pause()
            else:
                server.kill()
        time.sleep(self.chance.choice((0.0, 0.3, 1.0, 3.0, 5.0)) * self.chance.uniform(0.5, 1.0))
        for kind, server in hurt:
            if kind.endswith("-pause"):
                server.resume()
        self.cluster.start(self.cluster.servers, "")

    def _victim(self, kind: str) -> Mongod:
        if kind.startswith("node-"):
            return self.cluster.nodes[self.chance.choice(sorted(self.cluster.nodes))]
        return primary(self.cluster)

    # -- tools --

    def _tool(self, tool: str, besides: str) -> None:
        """*besides*: what happens to a server when the tool has begun; then the tool may say that it failed."""
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(self._work, tool, random.Random(self.chance.randrange(2**32)))
            if besides:
                wait([work], self.chance.uniform(0.0, 1.0))
                self._server_trouble([besides])
            error = work.exception()
        if error is not None and not (besides and isinstance(error, FlakeError)):
            raise error
        self.told.append(f"{tool}: {error or 'done'}")

    def _work(self, tool: str, chance: random.Random) -> None:
        database = self.cluster.database
        with (
            metadata_door(load(self.mounts[0].config), purpose=tool) as (door, resolve),
            open_fleet(door, database, resolve) as fleet,
        ):
            if tool == "vacuum":
                collect(door, database, resolve)
                vacuum(door, database, resolve, min_garbage=0.001)
            elif tool == "drain":
                number = chance.choice(sorted(fleet.records))
                try:
                    drain(fleet, number)
                finally:
                    patiently(lambda: set_node(door, database, number, state="active"))
            elif volumes := [volume for volume in fleet.volumes.values() if volume.state == "writable"]:
                volume = chance.choice(sorted(volumes, key=lambda volume: volume.id))
                if tool == "seal":
                    with volume_lease(door, database, volume.id, "sealing it for a test") as lease:
                        seal(door, database, lease)
                else:
                    move(fleet, volume, chance)


def run_together(plays: Sequence[ClusterPlay], trouble: str) -> None:
    """The first is the one that the others are beside."""
    with ThreadPoolExecutor(len(plays)) as pool:
        running = [pool.submit(play.run, trouble) for play in plays]
    for play in running:
        play.result()


def move(fleet: Fleet, volume: VolumeRecord, chance: random.Random) -> None:
    """One copy of it to a node that has none."""
    mover = Mover(fleet)
    others = sorted(set(fleet.records) - set(volume.nodes))
    mover.move(volume.id, chance.choice(volume.nodes), chance.choice(others))
    mover.finish()


def primary(cluster: LocalCluster) -> Mongod:
    found: list[str] = []

    def there() -> bool:
        found[:] = [member.name for member in cluster.status() if member.state == "primary"]
        return bool(found)

    wait_for(there)
    return cluster.server(found[-1])


def step_down(server: Mongod) -> None:
    """And stay a secondary for some seconds."""
    with MongoClient[dict[str, Any]](
        f"mongodb://{quote(str(server.plan.socket), safe='')}/", directConnection=True, serverSelectionTimeoutMS=10_000
    ) as client:
        client.admin.command("replSetStepDown", 5, secondaryCatchUpPeriodSecs=1, force=True)


def patiently(call: Callable[[], object]) -> None:
    """Again until there is a primary."""

    def done() -> bool:
        try:
            call()
        except Unavailable:
            return False
        return True

    wait_for(done)

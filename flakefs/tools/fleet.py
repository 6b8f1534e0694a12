"""Nodes and volumes as tools see them that decide where volumes should lie.

Purpose
    `Fleet` knows which nodes answer, how full each is, and which of them may take a volume.

Invariants
    FL1  A node is a target only when it is active, answers, has room, has no copy of the volume yet, and the volume's
         replication code is kept with it, if it was kept before.
    FL2  Figures are those of the last refresh(), which reads the documents anew; moved() keeps them right between two.

Concurrency
    One thread, blocking.

Not here
    Moving (tools.moving), what is done with it (tools.drain, tools.balance, tools.remove).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from flakefs.engine.admin import list_nodes, list_volumes, read_filesystem
from flakefs.engine.topology import place_of
from flakefs.errors import FlakeError, UsageError
from flakefs.format.placement import satisfies, why_not
from flakefs.format.records import FormatRecord, NodeRecord, VolumeRecord
from flakefs.mongo.door import Door
from flakefs.tools.chunks import REACH_SECONDS, Node, Resolve, open_nodes
from flakefs.tools.replicas import wanted_code


class Disk(NamedTuple):
    total: int
    free: int


class Fleet:
    """The nodes and volumes of one file system. Made by open_fleet()."""

    def __init__(
        self, door: Door, database: str, format: FormatRecord, nodes: dict[int, Node], reserve_bytes: int
    ) -> None:
        # Constant after construction
        self.door = door
        self.database = database
        self.format = format
        self.nodes = nodes
        """All nodes there were at the beginning; those that cannot be used have a `failure`."""
        self._reserve_bytes = reserve_bytes
        # As of the last refresh (FL2)
        self.records: dict[int, NodeRecord] = {}
        self.volumes: dict[int, VolumeRecord] = {}
        self.stored: dict[int, int] = {}
        """Node -> bytes of indexed chunks on it."""
        self._disks: dict[int, Disk] = {}
        self._planned: dict[int, int] = {}
        """Bytes that came since the look at the disk."""
        self.refresh()

    def refresh(self) -> None:
        """Read nodes and volumes again, and look at the disks."""
        self.records = {node.id: node for node in list_nodes(self.door, self.database)}
        self.volumes = {volume.id: volume for volume in list_volumes(self.door, self.database)}
        self.stored = dict.fromkeys(self.records, 0)
        for volume in self.volumes.values():
            for number in volume.nodes:
                if number in self.stored:
                    self.stored[number] += volume.bytes
        self._planned = dict.fromkeys(self.records, 0)
        for number, node in self.nodes.items():
            if node.failure is None:
                try:
                    self._disks[number] = _disk(node)
                except FlakeError as error:
                    node.failure = error

    def record(self, number: int) -> NodeRecord:
        """Raises UsageError."""
        if number not in self.records:
            known = ", ".join(map(str, self.records))
            raise UsageError(f"there is no node {number}; the nodes are {known}")
        return self.records[number]

    def on(self, number: int) -> list[VolumeRecord]:
        """Volumes that lie on a node."""
        return [volume for volume in self.volumes.values() if number in volume.nodes]

    def answers(self, number: int) -> bool:
        node = self.nodes.get(number)
        return node is not None and node.failure is None

    def moved(self, volume: int, nodes: Sequence[int]) -> None:
        """FL2."""
        old = self.volumes[volume]
        for number in set(old.nodes) - set(nodes):
            if number in self.stored:
                self.stored[number] -= old.bytes
        for number in set(nodes) - set(old.nodes):
            self.stored[number] += old.bytes
            self._planned[number] += old.bytes
        self.volumes[volume] = dataclasses.replace(old, nodes=tuple(nodes), state="sealed")

    def blame(self, error: FlakeError, numbers: Iterable[int]) -> bool:
        """Use those of these nodes no more that do not answer, the reason for *error*; False: they all do."""
        found = False
        for number in numbers:
            node = self.nodes[number]
            if node.failure is None and not _pings(node):
                node.failure, found = error, True
        return found

    def capacity(self, number: int) -> int:
        """Bytes a node may hold."""
        limit = self.records[number].capacity
        if limit is not None:
            return limit
        disk = self._disks.get(number)
        return disk.total if disk else 0

    def fill(self, number: int) -> float:
        """How full a node is, by what we count."""
        return self.stored[number] / max(1, self.capacity(number))

    def room(self, number: int) -> int:
        """Bytes it can still take."""
        limit, disk = self.records[number].capacity, self._disks.get(number)
        free = disk.free - self._reserve_bytes - self._planned[number] if disk else 0
        return free if limit is None else min(free, limit - self.stored[number])

    def active(self) -> list[int]:
        """Nodes that may take volumes."""
        return [number for number, node in self.records.items() if node.state == "active" and self.answers(number)]

    def code(self, volume: VolumeRecord) -> str:
        return wanted_code(volume, self.format.replication)

    def keeps_code(self, volume: VolumeRecord, nodes: Sequence[int]) -> bool:
        """Is the code kept on *nodes*, or was it not kept before (FL1)?"""
        code = self.code(volume)
        return self._satisfied(code, nodes) or not self._satisfied(code, volume.nodes)

    def targets(self, volume: VolumeRecord, source: int) -> list[int]:
        """Nodes that may take the copy of *source*, the least full first (FL1)."""
        found = [
            number
            for number in self._candidates(volume, source)
            if self.keeps_code(volume, replaced(volume.nodes, source, number))
        ]
        return sorted(found, key=lambda number: (self.fill(number), number))

    def why_no_target(self, volume: VolumeRecord, source: int) -> str:
        """In words, when targets() is empty."""
        code, rest = self.code(volume), set(self.active()) - {source}
        if not rest - set(volume.nodes):
            beside = f", but for those that hold copies of volume {volume.id} already" if len(volume.nodes) > 1 else ""
            return f"no other active node answers{beside}"
        if not self._candidates(volume, source):
            return f"no other node has room for volume {volume.id}, which holds {volume.bytes:,} bytes"
        keep = rest | (set(volume.nodes) - {source})
        lack = why_not(code, [place_of(self.records[number]) for number in keep if number in self.records])
        return lack or f"no node with room keeps replication {code} of volume {volume.id}"

    def _candidates(self, volume: VolumeRecord, source: int) -> list[int]:
        """Active, and with room."""
        return [
            number
            for number in self.active()
            if number != source and number not in volume.nodes and self.room(number) >= volume.bytes
        ]

    def _satisfied(self, code: str, nodes: Sequence[int]) -> bool:
        places = [place_of(self.records[number]) for number in dict.fromkeys(nodes) if number in self.records]
        return bool(places) and satisfies(code, places)


def replaced(nodes: Sequence[int], source: int, target: int) -> list[int]:
    """*target* in the place of *source*; the main node stays first."""
    return [target if number == source else number for number in nodes]


@contextmanager
def open_fleet(door: Door, database: str, resolve: Resolve, *, reserve_bytes: int = 0) -> Iterator[Fleet]:
    """*reserve_bytes*: what is to stay free on each node's disk."""
    record = read_filesystem(door, database)
    with open_nodes(list_nodes(door, database), resolve) as nodes:
        yield Fleet(door, database, record, nodes, reserve_bytes)


def _disk(node: Node) -> Disk:
    stats = node.door.run_sync(lambda: node.door.client[node.record.database].command("dbStats"))
    total = int(stats.get("fsTotalSize", 0)) or 1 << 50
    return Disk(total, max(0, total - int(stats.get("fsUsedSize", 0))))


def _pings(node: Node) -> bool:
    try:
        node.door.run_sync(lambda: node.door.client.admin.command("ping"), deadline_seconds=REACH_SECONDS)
    except FlakeError:
        return False
    return True

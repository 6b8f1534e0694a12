"""The order in which replicas are asked.

Purpose
    Nodes that answer first; of these the nearest; of equally near ones the fastest; of equally fast ones any, so that
    they share the work.

Invariants
    NE1  Every node is in the order exactly once: who is behind is still asked before a read fails.
    NE2  Near is worth less than alive: a near node that is very much slower than a far one comes after it.
    NE3  What was observed of a node before it was suspect says nothing about it afterwards.

Concurrency
    Trio thread; nothing waits.

Not here
    What is observed of a node (engine.hedging), asking (engine.asking).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import random
from weakref import WeakKeyDictionary

from flakefs.engine.hedging import Pace
from flakefs.engine.nodes import Node
from flakefs.format.records import NodeRecord

TIE_FACTOR = 1.5
TIE_SECONDS = 0.002
"""Means that differ by less than the larger of the two are the same."""
SLOW_FACTOR = 5.0
SLOW_SECONDS = 0.05
"""What is slower than the fastest by more than both is very much slower (NE2)."""


class Nearness:
    def __init__(self, dc: str, rack: str) -> None:
        # Constant after construction
        self._dc = dc
        self._rack = rack
        # Mutable; changed only between awaits
        self._paces: WeakKeyDictionary[Node, Pace] = WeakKeyDictionary()

    def pace(self, node: Node) -> Pace:
        pace = self._paces.get(node)
        if pace is None:
            pace = self._paces[node] = Pace()
        return pace

    def distance(self, record: NodeRecord) -> int:
        """0 on the rack of this process, 1 in its data center, 2 elsewhere; what is not known makes no difference."""
        if not self._dc and not self._rack:
            return 0
        if record.dc != self._dc:
            return 2
        return 0 if not self._rack or record.rack == self._rack else 1

    def order(self, nodes: Sequence[Node], now: float) -> list[Node]:
        for node in nodes:
            if node.problem is not None:
                self.pace(node).forget()
        known = {node: self.pace(node).seconds(now) for node in nodes}
        usable = [seconds for node, seconds in known.items() if seconds is not None and node.problem is None]
        fastest = min(usable, default=0.0)
        tie = max(fastest * TIE_FACTOR, fastest + TIE_SECONDS)
        slow = max(fastest * SLOW_FACTOR, fastest + SLOW_SECONDS)

        def key(node: Node) -> tuple[bool, bool, int, float, float]:
            seconds = known[node]
            if seconds is None:
                seconds = fastest  # to be found out
            rank = 0.0 if seconds <= tie else seconds
            return node.problem is not None, seconds > slow, self.distance(node.record), rank, random()

        return sorted(nodes, key=key)

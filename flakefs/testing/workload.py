"""A seeded workload on a folder that writes down, in memory, what it does: for tests of crashes.

Purpose
    `Workload` works on a mount in a thread: files, folders, links, renames, writes at random places, fsyncs. Every
    operation is noted before it begins and again when it is answered. After a crash `explain` says which state of the
    workload a tree shows.

Invariants
    T9   Every operation succeeds on a sound file system and changes something by one request to it; so the states
         between operations are the only ones there are. But a write, which the kernel may cut in two at a page.
    T10  explain() compares paths, types, modes, attributes, targets, hard links and all bytes. It accepts a state only
         when every operation up to the last answered fsync is in it.

Concurrency
    The workload is one thread; others read `ops`, `durable`, `fsyncs`, `error` and wait on `changed`.

Not here
    Who is killed, and when (tests/crash). Which operation comes next (testing.operations).
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from flakefs.testing.operations import Chooser, Node, Op, Tree

Seen = dict[bytes, tuple[Any, ...]]
"""Path -> mode, content, target, attributes, all names of the file."""


def seen_in(tree: Tree) -> Seen:
    """What seen_at() would see if *tree* were a folder."""
    names: dict[int, list[bytes]] = {}
    for path, node in tree.items():
        names.setdefault(node.id, []).append(path)
    return {
        path: (node.mode, bytes(node.data), node.target, dict(node.attributes), sorted(names[node.id]))
        for path, node in tree.items()
    }


def seen_at(folder: str | os.PathLike[str]) -> Seen:
    """The folder in the words of the model."""
    top = os.fsencode(folder)
    found: dict[bytes, tuple[Any, ...]] = {}
    names: dict[int, list[bytes]] = {}
    inos: dict[bytes, int] = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        at = os.path.join(top, path) if path else top
        facts = os.lstat(at)
        data, target = b"", b""
        attributes: dict[bytes, bytes] = {}
        if stat.S_ISDIR(facts.st_mode):
            todo += [os.path.join(path, name) for name in os.listdir(at)]
        elif stat.S_ISLNK(facts.st_mode):
            target = os.readlink(at)
        else:
            with open(at, "rb") as file:
                data = file.read()
            attributes = {os.fsencode(name): os.getxattr(at, name) for name in os.listxattr(at)}
        inos[path] = facts.st_ino
        names.setdefault(facts.st_ino, []).append(path)
        found[path] = facts.st_mode, data, target, attributes
    return {path: (*seen, sorted(names[inos[path]])) for path, seen in found.items()}


class Workload:
    """Works on a folder that is in the state *base* (by default: empty)."""

    def __init__(self, folder: str | os.PathLike[str], chance: random.Random, base: Tree | None = None) -> None:
        top = os.fsencode(folder)
        self.base: Tree = base or {b"": Node(0, os.lstat(top).st_mode)}
        self.tree = deepcopy(self.base)
        """After all operations that were answered."""
        self.ops: list[Op] = []
        """All that were begun, in order."""
        self.durable = 0
        """So many of them were answered when the last answered fsync began (itself included)."""
        self.fsyncs = 0
        self.error: OSError | None = None
        """What ended it."""
        self.changed = threading.Condition()
        self._chooser = Chooser(top, chance, self.tree)
        self._ended = True
        self._stopping = False
        self._thread = threading.Thread()

    def start(self) -> None:
        """Work in a thread until stop(), or until an operation fails."""
        self._ended = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="workload")
        self._thread.start()

    def wait(self, condition: Callable[[], bool], seconds: float = 100.0) -> None:
        """Until *condition* holds, or it has ended."""
        with self.changed:
            fine = self.changed.wait_for(lambda: condition() or self._ended, seconds)
        assert fine, f"the workload hangs in operation {len(self.ops)}: {self.ops[-1:]}"

    def stop(self) -> None:
        """Let it finish the operation it is at."""
        self._stopping = True
        self.wait(lambda: False)
        self._thread.join()

    def close(self) -> None:
        """Give up the open files."""
        self._chooser.close()

    @property
    def ended(self) -> bool:
        return self._ended

    def explain(self, found: Seen) -> tuple[int, Tree]:
        """The latest state of the workload that *found* is, as (how many operations, the model)."""
        tree = deepcopy(self.base)
        result: tuple[int, Tree] | None = None
        for number in range(len(self.ops) + 1):
            if number:
                self.ops[number - 1].apply(tree)
            if number >= self.durable and seen_in(tree) == found:
                result = number, deepcopy(tree)
        result = result or self._half(found)
        assert result is not None, self._complaint(found)
        return result

    def _half(self, found: Seen) -> tuple[int, Tree] | None:
        """The same, when a write has arrived in part (T9)."""
        tree = deepcopy(self.base)
        for number, op in enumerate(self.ops):
            if number >= self.durable:
                for half in op.halves:
                    part = deepcopy(tree)
                    half(part)
                    if seen_in(part) == found:
                        return number, part
            op.apply(tree)
        return None

    def _complaint(self, found: Seen) -> str:
        """What is different from the two ends of what would be right."""
        tree = deepcopy(self.base)
        lines = [f"no state that the workload passed through ({len(self.ops)} operations, {self.durable} durable)"]
        for number, op in enumerate(self.ops, 1):
            op.apply(tree)
            if number in (self.durable, len(self.ops)):
                wanted = seen_in(tree)
                wrong = sorted(p for p in found.keys() | wanted.keys() if found.get(p) != wanted.get(p))
                lines += [f"after {number}: {p!r} is {short(found.get(p))}, not {short(wanted.get(p))}" for p in wrong]
        lines += [f"{number}: {op}" for number, op in enumerate(self.ops, 1) if number > self.durable - 40]
        return "\n".join(lines)

    def _run(self) -> None:
        try:
            while not self._stopping:
                op = self._chooser.choose()
                with self.changed:
                    self.ops.append(op)
                    self.changed.notify_all()
                op.run()
                op.apply(self.tree)
                if op.promises:
                    with self.changed:
                        self.durable = len(self.ops)
                        self.fsyncs += 1
                        self.changed.notify_all()
        except OSError as error:
            self.error = error
        finally:
            with self.changed:
                self._ended = True
                self.changed.notify_all()


def short(seen: tuple[Any, ...] | None) -> str:
    """What was seen at a path, in a few words."""
    if seen is None:
        return "not there"
    mode, data, target, attributes, names = seen
    digest = hashlib.sha256(data).hexdigest()[:8]
    return f"{mode:o} {len(data)} bytes {digest} {target!r} {attributes} {names}"

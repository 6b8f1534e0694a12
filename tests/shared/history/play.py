"""Makes histories: programs on several mounts change a few names and files, while mounts are killed and stopped.

Purpose
    `Play` runs one history in a folder of its own, and checks what it has recorded.

Invariants
    H1  A call that was answered is recorded with its answer; one that was not (its mount was killed, or could store
        nothing any more) as one that may have happened. Errors of other kinds fail the history.
    H2  At the end all mounts show the same, and the same is an end that the checker allows.

Concurrency
    A thread for each program, one for the trouble. Recording appends to lists, which is atomic.

Not here
    What was recorded, and whether it is explained (tests.shared.history.record). The seed and the number of histories
    (the tests).
"""

from __future__ import annotations

import errno
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from flakefs.testing.mounted import Mount
from tests.shared.history.check import FOLDER, Change, Read, Seen, Torn, Whole, Write
from tests.shared.history.record import REGISTERS, Record, Trouble, Unexplained

NAMES = ("a", "b", "c")
CALLS = ("create", "mkdir", "unlink", "rmdir", "rename", "rename", "link", "stat", "stat") + ("read", "write") * 2
SETTLE_SECONDS = 30.0
LEASE_SECONDS = 3.0
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
TROUBLE = (*DEAD, errno.EIO, errno.EROFS)


class Play(Record):
    calls: Sequence[str] = CALLS
    """What programs choose from."""

    def __init__(self, mounts: Sequence[Mount], chance: random.Random, name: str, *, programs: int, calls: int) -> None:
        super().__init__(name)
        self.mounts = mounts
        self.chance = chance
        self._programs = programs
        self._calls = calls
        self._up = [threading.Event() for _ in mounts]
        self._values: Iterator[int] = iter(range(1, 10**6))
        self._errors: list[str] = []
        for event in self._up:
            event.set()

    def folder(self, mount: int) -> Path:
        return self.mounts[mount].path / self.name

    # -- one history --

    def run(self, trouble: str) -> None:
        """*trouble*: none, kill, pause, fence, or what a subclass makes. Raises Unexplained."""
        self._prepare()
        count = self._programs * len(self.mounts)
        seeds = [self.chance.randrange(2**32) for _ in range(count)]
        with ThreadPoolExecutor(count) as pool:
            running = [
                pool.submit(self._program, index % len(self.mounts), random.Random(seed))
                for index, seed in enumerate(seeds)
            ]
            if trouble != "none":
                self._make(trouble, running)
            for program in running:
                program.result()
        if self._errors:
            raise Unexplained(
                f"{self.name}: calls failed in a way that nothing explains: {self._errors}\n{self.text()}"
            )
        self._end()
        self.check()

    def _prepare(self) -> None:
        self.folder(0).mkdir()
        for name, size in REGISTERS.items():
            (self.folder(0) / name).write_bytes(encoded(0, size))
        for index in range(len(self.mounts)):
            wait_for(partial(self._is_prepared, index))

    def _is_prepared(self, index: int) -> bool:
        return all((self.folder(index) / name).exists() for name in REGISTERS)

    def _end(self) -> None:
        """H2."""
        began = time.monotonic()
        found: list[frozenset[tuple[str, int]]] = []

        def same() -> bool:
            found[:] = [self._state(index) for index in range(len(self.mounts))]
            return len(set(found)) == 1

        try:
            wait_for(same)
        except TimeoutError:
            raise Unexplained(
                f"{self.name}: the mounts go on showing different names: {found}\n{self.text()}"
            ) from None
        self.names.append(Whole(began, time.monotonic(), found[0]))
        for name, size in REGISTERS.items():
            for index in range(len(self.mounts)):
                began = time.monotonic()
                value = decoded((self.folder(index) / name).read_bytes(), size)
                self.registers[name].append(Read(began, time.monotonic(), index, value))

    def _state(self, mount: int) -> frozenset[tuple[str, int]]:
        result = set()
        with os.scandir(self.folder(mount)) as entries:
            for entry in entries:
                if entry.name not in REGISTERS:
                    result.add((entry.name, FOLDER if entry.is_dir() else entry.stat().st_ino))
        return frozenset(result)

    # -- trouble --

    def _make(self, trouble: str, running: Sequence[Future[None]]) -> None:
        victim = self.chance.randrange(len(self.mounts))
        mount = self.mounts[victim]
        time.sleep(self.chance.uniform(0.0, 0.3))
        began = time.monotonic()
        entry = len(self.troubles)
        self.troubles.append(Trouble(victim, began, math.inf))
        if trouble == "kill":
            self._up[victim].clear()
            mount.kill()
            mount.mount()
        else:
            mount.signal(signal.SIGSTOP)
            time.sleep(self.chance.uniform(0.05, 0.8) if trouble == "pause" else 2.5 * LEASE_SECONDS)
            mount.signal(signal.SIGCONT)
            if trouble == "fence":
                time.sleep(self.chance.uniform(0.0, 0.5))  # let programs meet the fenced mount
                self._up[victim].clear()
                mount.kill()
                mount.mount()
        self.troubles[entry] = Trouble(victim, began, time.monotonic(), trouble == "fence")
        self._up[victim].set()

    # -- programs --

    def _program(self, mount: int, chance: random.Random) -> None:
        for _ in range(self._calls):
            self._up[mount].wait()
            kind = chance.choice(self.calls)
            self._rest(chance)
            try:
                if kind in ("read", "write"):
                    getattr(self, f"_{kind}")(mount, chance.choice(tuple(REGISTERS)))
                elif kind == "stat":
                    self._look(mount, chance.choice(NAMES))
                else:
                    self._change(mount, kind, *chance.sample(NAMES, 2))
            except OSError as error:
                if error.errno in DEAD:
                    time.sleep(0.01)
                if not self._excused(mount, error):
                    self._errors.append(f"{kind} on mount {mount}: {error!r}")

    def _rest(self, chance: random.Random) -> None:
        """Before a call."""
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 0.02))

    def _excused(self, mount: int, error: OSError) -> bool:
        return error.errno in TROUBLE and any(trouble.mount == mount for trouble in self.troubles)

    def _change(self, mount: int, call: str, name: str, other: str) -> None:
        folder = self.folder(mount)
        ino = 0
        began = time.monotonic()
        try:
            if call == "create":
                descriptor = os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                ended = time.monotonic()
                ino = os.fstat(descriptor).st_ino
                os.close(descriptor)
            elif call == "link":
                ino, ended = self._link(mount, folder, name, other)
                if not ino:
                    return
                name = other
            else:
                {"mkdir": os.mkdir, "unlink": os.unlink, "rmdir": os.rmdir}.get(call, self._no)(folder / name)
                if call == "rename":
                    os.rename(folder / name, folder / other)
                ended = time.monotonic()
        except OSError as error:
            seen = refusal(call, name, other, error.errno or 0)
            if error.errno in TROUBLE:  # a create without an answer has no number: any that is seen later may be its
                self.names.append(Change(began, math.inf, mount, call, name, other, ino, sure=False))
                raise
            if seen is None:
                raise
            ended = time.monotonic()
            self.names += [Seen(began, ended, mount, *each) for each in seen]
        else:
            self.names.append(Change(began, ended, mount, call, name, other if call == "rename" else "", ino))

    @staticmethod
    def _no(path: Path) -> None:
        """rename has two names."""

    def _link(self, mount: int, folder: Path, name: str, other: str) -> tuple[int, float]:
        """(number, when it was answered); (0, 0) when there was no file to link."""
        began = time.monotonic()
        try:
            descriptor = os.open(folder / name, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.names.append(Seen(began, time.monotonic(), mount, name, None))
            return 0, 0.0
        try:
            try:
                facts = os.fstat(descriptor)
            except OSError as error:
                if error.errno == errno.ESTALE:  # removed elsewhere; such a descriptor does not hold a file
                    return 0, 0.0
                raise
            number = FOLDER if os.path.isdir(f"/proc/self/fd/{descriptor}") else facts.st_ino
            self.names.append(Seen(began, time.monotonic(), mount, name, number))
            if number == FOLDER:
                return 0, 0.0
            began = time.monotonic()
            try:
                os.link(f"/proc/self/fd/{descriptor}", folder / other, src_dir_fd=descriptor)  # or it links the symlink
            except FileExistsError:
                self.names.append(Seen(began, time.monotonic(), mount, other, "any"))
                return 0, 0.0
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESTALE):  # it has lost all its names
                    return 0, 0.0
                if error.errno in TROUBLE:
                    self.names.append(Change(began, math.inf, mount, "link", other, "", number, sure=False))
                raise
            return number, time.monotonic()
        finally:
            os.close(descriptor)

    def _look(self, mount: int, name: str) -> None:
        began = time.monotonic()
        found: int | None
        try:
            facts = os.lstat(self.folder(mount) / name)
            found = FOLDER if (facts.st_mode & 0o170000) == 0o040000 else facts.st_ino
        except FileNotFoundError:
            found = None
        self.names.append(Seen(began, time.monotonic(), mount, name, found))

    def _write(self, mount: int, name: str) -> None:
        value = next(self._values)
        data = encoded(value, REGISTERS[name])
        began = time.monotonic()
        try:
            with opened(self.folder(mount) / name, os.O_WRONLY) as descriptor:
                assert os.pwrite(descriptor, data, 0) == len(data)
        except OSError:
            self.registers[name].append(Write(began, math.inf, mount, value, sure=False))
            raise
        self.registers[name].append(Write(began, time.monotonic(), mount, value))

    def _read(self, mount: int, name: str) -> None:
        size = REGISTERS[name]
        began = time.monotonic()
        with opened(self.folder(mount) / name, os.O_RDONLY) as descriptor:
            data = os.pread(descriptor, size + 1, 0)
        value, ended = decoded(data, size), time.monotonic()
        if value < 0 and len(data) == size:
            parts = frozenset(int.from_bytes(data[i : i + 8], "big") for i in range(0, size, 8))
            self.torn[name].append(Torn(began, ended, mount, parts))
        else:
            self.registers[name].append(Read(began, ended, mount, value))


def refusal(call: str, name: str, other: str, number: int) -> list[tuple[str, int | str | None]] | None:
    """What whoever refused *call* in this way has seen; None: it is no refusal."""
    if number == errno.ENOENT and call in ("unlink", "rmdir", "rename"):
        return [(name, None)]
    if number == errno.EEXIST and call in ("create", "mkdir"):
        return [(name, "any")]
    if number == errno.EISDIR and call == "unlink":
        return [(name, FOLDER)]
    if number == errno.ENOTDIR and call == "rmdir":
        return [(name, "file")]
    if number == errno.EISDIR and call == "rename":
        return [(name, "file"), (other, FOLDER)]
    if number == errno.ENOTDIR and call == "rename":
        return [(name, FOLDER), (other, "file")]
    return None


def encoded(value: int, size: int) -> bytes:
    return value.to_bytes(8, "big") * (size // 8)


def decoded(data: bytes, size: int) -> int:
    """-1: it is not one whole value."""
    value = int.from_bytes(data[:8], "big")
    return value if data == encoded(value, size) else -1


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """close(2) says whether it was stored: its error counts."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            if condition():
                return
        except OSError:
            if time.monotonic() >= end:
                raise
        if time.monotonic() >= end:
            raise TimeoutError("it does not come")
        time.sleep(0.005)

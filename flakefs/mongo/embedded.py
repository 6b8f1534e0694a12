"""The MongoDB that FlakeFS brings along: two mongods for one user on one machine.

Purpose
    `hold()` starts them when they do not run, keeps them running as long as it is held, and ends them with the last
    holder on the machine. Metadata lies on a one-member replica set (transactions need one), chunks on a standalone
    server of its own, whose content is not written a second time into an oplog.

Invariants
    M1  Every holder has a shared lock on <data>/use.lock. Who leaves and can make it exclusive is the last, and stops
        the servers. A holder that is killed loses its lock by itself: then the next one to leave stops them.
    M2  Starting and stopping happen only under <data>/start.lock, so nobody starts what another one is stopping, and a
        server that has died is restarted by one of its holders and not by all.
    M3  While it is held, a server that ends is started again (a thread waits for its end; it costs nothing meanwhile).
    M5  Under start.lock one waits only for servers that one has started or is ending. A server that runs already and
        does not answer holds up those who ask it, for ANSWER_SECONDS, and nobody at the lock.
    M6  Who waits in acquire() can be called off: *check* is called again and again and may raise.
    M4  Only the owner reaches the servers: unix sockets (0700) in folders of mode 0700, no TCP.

Concurrency
    hold() may be used by any thread and nested, but not carried across a fork: become a daemon first. Its beginning may
    run in another thread than its end.

Not here
    How one server is run (mongo.server), which mongod (mongo.binaries), which folders (mongo.folders).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from flakefs.errors import EmbeddedError
from flakefs.mongo.binaries import find_mongod
from flakefs.mongo.filelock import FileLock
from flakefs.mongo.folders import MARK, check_space, prepare_data, socket_folder
from flakefs.mongo.server import START_SECONDS, STOP_SECONDS, Check, Mongod, ServerPlan, nothing, wait_readable

log = logging.getLogger(__name__)

REPLICA_SET = "flakefs"
OPLOG_MB = 512
"""Change streams look back minutes, not days."""
CACHE_SHARE = 0.05
CACHE_MB_MIN, CACHE_MB_MAX = 256, 1024
"""Each server's WiredTiger cache: 5 % of the memory, within these; 256 MB is the least that MongoDB accepts."""
ANSWER_SECONDS = 15.0
"""A server that runs and accepts connections, and says nothing for so long, is stopped or overloaded."""
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses between attempts to bring back a server that does not come up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOptions:
    """What the configuration may say about the embedded servers."""

    mongod: str = ""
    """Path of the program; empty: the one on PATH, else the one of the extra flakefs[embedded]."""
    data: str = ""
    """Data folder; empty: /var/lib/flakefs for root, $XDG_DATA_HOME/flakefs for others."""
    metadata_cache_mb: int = 0
    """Cache of the metadata server in MB; 0: 5 % of the memory, 256 to 1,024."""
    node_cache_mb: int = 0
    """Cache of the node in MB; 0: the same."""


class Urls(NamedTuple):
    """Where the two servers are."""

    metadata: str
    node: str


@contextmanager
def hold(options: EmbeddedOptions, *, start: bool = True, check: Check = nothing) -> Iterator[Urls]:
    """The embedded servers, usable while this is held. With *start* False: only if they run already. *check*: M6."""
    embedded = Embedded(options)
    embedded.acquire(start=start, check=check)
    try:
        yield embedded.urls
    finally:
        embedded.release()


class Embedded:
    """One holder of the embedded servers."""

    def __init__(self, options: EmbeddedOptions) -> None:
        # Constant after construction
        self.data, self.servers = embedded_servers(options)
        self.urls = Urls(*(server.plan.uri for server in self.servers))
        self._program = options.mongod
        self._start_lock = FileLock(self.data / "start.lock")
        self._use_lock = FileLock(self.data / MARK)
        self._wake_read, self._wake_write = os.pipe()
        self._owner = os.getpid()
        # Mutable; set once, by release()
        self._leaving = threading.Event()
        self._watcher: threading.Thread | None = None

    def acquire(self, *, start: bool = True, check: Check = nothing) -> None:
        """Start what is missing and hold it (M1, M6)."""
        try:
            started = self._enter(start, check)
            try:
                while not self._others_answer(started, check):
                    started = self._enter(start, check)
            except BaseException:
                self._leave()
                raise
        except BaseException:
            self._close()
            raise
        self._watcher = threading.Thread(target=self._watch, name="flakefs-embedded", daemon=True)
        self._watcher.start()

    def release(self) -> None:
        """Let go; the last holder stops the servers (M1)."""
        if os.getpid() != self._owner:
            return  # a fork of the holder: the lock is the parent's
        self._leaving.set()
        os.write(self._wake_write, b"x")
        if self._watcher is not None:
            self._watcher.join()
        try:
            self._leave()
        finally:
            self._close()

    def revive(self) -> bool:
        """Start again what has ended, unless another holder has done it meanwhile (M2). Was anything done?"""
        self._lock_start(self._check_leaving)
        try:
            return bool(self._start_missing(nothing))
        finally:
            self._start_lock.release()

    def _enter(self, start: bool, check: Check) -> list[Mongod]:
        """Be a holder, and start what is missing; what was started."""
        self._lock_start(check)
        try:
            self._use_lock.try_shared()  # cannot fail: exclusive ones are held only under the start lock
            if not start and any(server.pid() is None for server in self.servers):
                raise EmbeddedError(f"the embedded MongoDB of {self.data} is not running: mount the file system first")
            return self._start_missing(check)
        except BaseException:
            self._stop_if_last()
            raise
        finally:
            self._start_lock.release()

    def _leave(self) -> None:
        """The last one to leave stops the servers."""
        try:
            self._lock_start(nothing)
            try:
                self._stop_if_last()
            finally:
                self._start_lock.release()
        except EmbeddedError as error:
            log.error("%s", error)  # nothing is lost: the next one to leave stops them

    def _check_leaving(self) -> None:
        if self._leaving.is_set():
            raise EmbeddedError("not needed any more")

    def _others_answer(self, started: list[Mongod], check: Check) -> bool:
        """Wait until the servers that others have started are usable, too (M5). False: one has ended meanwhile."""
        for server in self.servers:
            if server in started:
                continue
            try:
                server.wait_ready(answer_seconds=ANSWER_SECONDS, check=check)
            except EmbeddedError:
                if server.pid() is None:
                    return False
                raise
        return True

    def _start_missing(self, check: Check) -> list[Mongod]:
        """Both at once; returns those that were started when they are usable. Under the start lock."""
        started: list[Mongod] = []
        while True:
            missing = [server for server in self.servers if server not in started and not self._runs(server)]
            if missing:
                binary = find_mongod(self._program)
                socket_folder(self.data)  # the last holder may have removed it since we looked
                check_space(self.data, fresh=not (missing[0].plan.data / "WiredTiger").exists())
            for server in missing:
                server.start(binary)
                started.append(server)
            try:
                for server in started:
                    server.wait_ready(check=check)
            except EmbeddedError:
                if all(server in started or self._runs(server) for server in self.servers):
                    raise
            else:
                return started

    def _runs(self, server: Mongod) -> bool:
        server.wait_if_dying()
        pid = server.pid()
        if pid is not None and not _is_ours(pid, server):
            raise EmbeddedError(f"another mongod (pid {pid}) runs on {server.plan.data}: stop it first")
        return pid is not None

    def _stop_if_last(self) -> None:
        """Under the start lock."""
        if not self._use_lock.try_exclusive():
            return
        threads = [threading.Thread(target=self._stop_one, args=(server,)) for server in self.servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sockets = self.servers[0].plan.socket.parent
        if self.data not in sockets.parents:
            with suppress(OSError):
                sockets.rmdir()

    def _stop_one(self, server: Mongod) -> None:
        pid = server.pid()
        if pid is not None and not _is_ours(pid, server):
            return
        try:
            server.stop()
        except EmbeddedError as error:
            log.error("%s", error)

    def _watch(self) -> None:
        """Thread: bring back what ends, until we leave (M3)."""
        failures = 0
        while not self._leaving.is_set():
            processes = [server.process() for server in self.servers]
            try:
                alive = [process for process in processes if process is not None]
                if len(alive) == len(processes):
                    wait_readable([self._wake_read, *alive], None)
            finally:
                for process in processes:
                    if process is not None:
                        os.close(process)
            if self._leaving.is_set():
                return
            try:
                if self.revive():
                    log.warning("an embedded mongod of %s had ended and was started again", self.data)
                failures = 0
            except (EmbeddedError, OSError) as error:
                if self._leaving.is_set():
                    return
                if not failures:
                    log.error("an embedded mongod has ended and does not start again: %s", error)
                wait_readable([self._wake_read], _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1

    def _lock_start(self, check: Check) -> None:
        seconds = 2 * (START_SECONDS + STOP_SECONDS)
        if not self._start_lock.wait_exclusive(seconds, check):
            raise EmbeddedError(
                f"another process has been starting or stopping the MongoDB of {self.data} for {seconds:.0f} s: "
                "look for a process that hangs"
            )

    def _close(self) -> None:
        for lock in (self._use_lock, self._start_lock):
            lock.close()
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)


def embedded_servers(options: EmbeddedOptions) -> tuple[Path, tuple[Mongod, Mongod]]:
    """The data folder, made and checked, and its two servers (metadata, node), running or not."""
    data = prepare_data(options.data)
    sockets = socket_folder(data)
    fitting = int(psutil.virtual_memory().total * CACHE_SHARE / 2**20)
    fitting = min(max(fitting, CACHE_MB_MIN), CACHE_MB_MAX)

    def plan(name: str, replica_set: str, cache_mb: int) -> ServerPlan:
        return ServerPlan(
            data=data / name,
            socket=sockets / f"{name}.sock",
            log=data / f"{name}.log",
            replica_set=replica_set,
            cache_mb=cache_mb or fitting,
            oplog_mb=OPLOG_MB,
        )

    metadata = Mongod(plan("metadata", REPLICA_SET, options.metadata_cache_mb))
    return data, (metadata, Mongod(plan("node1", "", options.node_cache_mb)))


def _is_ours(pid: int, server: Mongod) -> bool:
    """Does that process serve our socket?"""
    with suppress(psutil.Error):
        return any(str(server.plan.socket) in argument for argument in psutil.Process(pid).cmdline())
    return server.pid() is None  # it has just ended

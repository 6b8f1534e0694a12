"""One mongod process: its arguments, its start, its clean end.

Purpose
    What the embedded servers and the test kit share. A server is described by a `ServerPlan`; a `Mongod` starts it,
    finds it again when another process started it, and ends it.

Invariants
    S1  A server listens on its unix socket (mode 0700) and, only when the plan has a port, on 127.0.0.1.
    S2  A pid found in the data folder counts only while that process has the folder's mongod.lock open: what was true
        before a crash is never a reason to signal anybody.
    S3  A server runs in its own session: Ctrl-C and the end of the process that started it do not end it.
    S4  Every wait is bounded, and can be called off by its *check*, which is called again and again and may raise. A
        server that ends while it is waited for is reported at once, with the reason from its log.

Concurrency
    Synchronous; one thread at a time for each Mongod. Who starts and stops one set of data from several processes
    serialises that itself (mongo.embedded does, by flock).

Not here
    Which servers there are and when they run (mongo.embedded, testing.servers), where the program is (mongo.binaries).
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from flakefs.errors import EmbeddedError
from flakefs.mongo.diagnosis import why_it_ended
from flakefs.mongo.replica_set import become_primary

SOCKET_PATH_MAX = 107
"""Bytes of sockaddr_un.sun_path without the final NUL."""

START_SECONDS = 60.0
"""Longest start that is waited for; recovery after a crash reads at most the last minute's journal."""

STOP_SECONDS = 60.0
"""Longest clean shutdown that is waited for (it writes a checkpoint of the cache)."""

LOG_KEEP_BYTES = 8 * 1024 * 1024
"""A log longer than this is set aside (as .1) when its server starts."""

_POLL_SECONDS = 0.01
_DYING_SECONDS = 5.0
"""The kernel may need a moment to take a large process apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """How one mongod is to run."""

    data: Path
    socket: Path
    log: Path
    replica_set: str = ""
    """Name of a replica set whose member is the socket; empty: standalone."""
    members: tuple[Path, ...] = ()
    """Sockets of all members of the set, this one included; empty: it is the only one."""
    cache_mb: int = 256
    oplog_mb: int = 512
    journal_mb: int = 32
    """Size of one journal file; WiredTiger keeps about three."""
    port: int = 0
    """TCP port on 127.0.0.1; 0: no TCP."""
    key_file: Path | None = None
    """Turns access control on."""
    more: tuple[str, ...] = ()
    """Further arguments."""

    @property
    def uri(self) -> str:
        hosts = ",".join(quote(str(socket), safe="") for socket in self.members or (self.socket,))
        uri = f"mongodb://{hosts}/"
        return f"{uri}?replicaSet={self.replica_set}" if self.replica_set else uri

    @property
    def own_uri(self) -> str:
        """Of this server alone, whatever it is to its set."""
        return f"mongodb://{quote(str(self.socket), safe='')}/?directConnection=true"

    def arguments(self) -> list[str]:
        bind = f"{self.socket},127.0.0.1" if self.port else str(self.socket)
        arguments = ["--dbpath", str(self.data), "--bind_ip", bind, "--nounixsocket"]
        arguments += ["--filePermissions", "0700", "--logpath", str(self.log), "--logappend", "--quiet"]
        arguments += ["--wiredTigerCacheSizeGB", f"{max(self.cache_mb, 256) / 1024:.3f}"]
        arguments += ["--wiredTigerEngineConfigString", f"log=(file_max={self.journal_mb}MB)"]
        arguments += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        if self.port:
            arguments += ["--port", str(self.port)]
        if self.replica_set:
            arguments += ["--replSet", self.replica_set, "--oplogSize", str(self.oplog_mb)]
        if self.key_file:
            arguments += ["--auth", "--keyFile", str(self.key_file)]
        return [*arguments, *self.more]


Check = Callable[[], None]
"""Called while something is waited for; raises to call it off."""


def nothing() -> None:
    """Nobody calls it off."""


class Mongod:
    """The server of one plan; it may run, or not, and another process may have started it."""

    def __init__(self, plan: ServerPlan) -> None:
        if len(os.fsencode(plan.socket)) > SOCKET_PATH_MAX:
            raise EmbeddedError(
                f"the socket path {plan.socket} is longer than the {SOCKET_PATH_MAX} bytes that Linux allows: "
                "choose a data folder with a shorter path"
            )
        self.plan = plan
        self._binary = Path("mongod")
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = False  # our child has been started and was not ready yet

    def pid(self) -> int | None:
        """The process that holds the data at this moment (S2)."""
        lock = self.plan.data / "mongod.lock"
        try:
            pid = int(lock.read_text() or 0)
            if not pid:
                return None
            at = lock.stat()
            process = f"/proc/{pid}/fd"
            for name in os.listdir(process):
                with suppress(FileNotFoundError):
                    found = os.stat(f"{process}/{name}")
                    if (found.st_dev, found.st_ino) == (at.st_dev, at.st_ino):
                        return pid
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        except PermissionError:
            return pid  # somebody else's process: it may well be the one
        return None

    def wait_if_dying(self) -> None:
        """A killed process gives up its memory, its lock and its sockets one after the other: let it finish."""
        pid = self.pid()
        if pid is None:
            return
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes():
                return  # it lives
            process = os.pidfd_open(pid)
            try:
                wait_readable([process], _DYING_SECONDS)
            finally:
                os.close(process)

    def listens(self) -> bool:
        """Does anybody accept connections on the socket?"""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.plan.socket))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except (TimeoutError, BlockingIOError):
                return True  # too busy to accept, but there
        return True

    def start(self, binary: Path) -> None:
        """Start the process from the program *binary*; returns at once. wait_ready() says whether it came up."""
        plan = self.plan
        self._binary = binary
        if plan.socket.exists() and not plan.socket.is_socket():
            raise EmbeddedError(f"{plan.socket} is in the way of mongod's socket and is not a socket: move it away")
        deadline = time.monotonic() + _DYING_SECONDS / 2
        while self.listens():
            if time.monotonic() < deadline:
                time.sleep(5 * _POLL_SECONDS)
                continue
            raise EmbeddedError(f"the socket {plan.socket} is in use by another program: stop it first")
        plan.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if plan.log.stat().st_size > LOG_KEEP_BYTES:
                plan.log.rename(plan.log.with_suffix(plan.log.suffix + ".1"))
        output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._child = subprocess.Popen(
                [str(binary), *plan.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            raise EmbeddedError(f"mongod ({binary}) cannot be started: {error.strerror}") from error
        finally:
            os.close(output)
        with suppress(OSError, ValueError):  # as many files as the system lets us: two for each volume
            _, most = resource.prlimit(self._child.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(self._child.pid, resource.RLIMIT_NOFILE, (most, most))
        self._starting = True
        # A thread that waits is what keeps an ended server from staying behind as a zombie.
        threading.Thread(target=self._child.wait, name="flakefs-reaper", daemon=True).start()

    def wait_ready(
        self, seconds: float = START_SECONDS, *, answer_seconds: float = START_SECONDS, check: Check = nothing
    ) -> None:
        """Return when the server takes writes: within *seconds*, and *answer_seconds* after it accepts connections.

        A member among others is ready when it accepts connections: which of them takes writes is for all of them to say
        (mongo.replica_set).
        """
        deadline = time.monotonic() + seconds
        pause = _POLL_SECONDS / 4
        while not self.listens():
            self._check_alive(deadline)
            check()
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_SECONDS)
        until = min(deadline, time.monotonic() + answer_seconds)

        def still() -> None:
            check()
            if time.monotonic() >= until and until < deadline:
                raise EmbeddedError(
                    f"mongod (pid {self.pid()}) on {self.plan.data} runs but has not answered for "
                    f"{answer_seconds:.0f} s: it is stopped (kill -CONT {self.pid()} lets it go on), hangs or is "
                    f"overloaded; look into {self.plan.log}"
                )
            self._check_alive(deadline)

        if self.plan.replica_set and not self.plan.members:
            become_primary([self.plan.socket], self.plan.replica_set, until, still)
        self._starting = False

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Clean shutdown: returns when the process is gone. Harmless when none runs."""
        if not self._signal(signal.SIGTERM, seconds):
            raise EmbeddedError(
                f"mongod (pid {self.pid()}) on {self.plan.data} has not stopped within {seconds:.0f} s: "
                f"look into {self.plan.log}"
            )

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._signal(signal.SIGKILL, STOP_SECONDS)

    def pause(self) -> None:
        """SIGSTOP: the server keeps its connections and answers nothing from the return of this."""
        self._signal(signal.SIGSTOP, 0.0)
        deadline = time.monotonic() + _DYING_SECONDS
        with suppress(psutil.Error):
            while psutil.Process(self.pid()).status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)

    def resume(self) -> None:
        self._signal(signal.SIGCONT, 0.0)

    def process(self) -> int | None:
        """A pidfd of the running server, readable when it ends; the caller closes it."""
        pid = self.pid()
        if pid is None:
            child = self._child  # between the start and the moment it takes its lock
            if child is None or child.returncode is not None:
                return None
            pid = child.pid
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            return None

    def _signal(self, number: signal.Signals, seconds: float) -> bool:
        """Send; wait up to *seconds* for the end of the process. Is it gone?"""
        process = self.process()
        if process is None:
            return True
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if not seconds:
                return False
            if number is not signal.SIGKILL:
                signal.pidfd_send_signal(process, signal.SIGCONT)  # a paused one could not end
            return bool(wait_readable([process], seconds))
        except ProcessLookupError:
            return True
        finally:
            os.close(process)

    def _check_alive(self, deadline: float) -> None:
        child = self._child
        if child is not None and child.returncode is not None and self._starting:
            self._starting = False
            raise EmbeddedError(
                why_it_ended(self._binary, self.plan.data, self.plan.log, self._output, child.returncode)
            )
        if not self._starting and self.pid() is None:
            raise EmbeddedError(f"mongod on {self.plan.data} ended while it was waited for: look into {self.plan.log}")
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"mongod (pid {self.pid()}) on {self.plan.data} is not ready in time: look into {self.plan.log}"
            )

    @property
    def _output(self) -> Path:
        return self.plan.log.with_suffix(".out")


def wait_readable(descriptors: list[int], seconds: float | None) -> list[int]:
    """Those of *descriptors* that are readable, waiting for the first one."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    while True:
        try:
            return [ready for ready, _ in poll.poll(None if seconds is None else int(seconds * 1000))]
        except OSError as error:
            if error.errno != errno.EINTR:
                raise

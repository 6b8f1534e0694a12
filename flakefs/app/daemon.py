"""The process behind a mount: opens the file system, serves it, stores everything at the end, and says how it went.

Purpose
    `run_mount` is the whole life of that process, in the foreground or started by app.launch in the background.

Invariants
    D1  Whoever waits at `ready_fd` gets lines of JSON: what is being waited for, if anything is, and then exactly one
        that says that the folder is usable, or why it never will be.
    D2  SIGTERM, SIGINT and SIGHUP store everything, unmount, and end with status 0; so does an unmount from outside.
        The status is 1, and the registry says why, when something could not be stored.
    D3  A signal before the folder is usable ends the process without mounting.
    D4  SIGUSR1 logs what all tasks and threads are doing.
    D5  The service manager is told the same, when there is one: READY once the folder is usable, STOPPING as soon as
        the end has begun (app.notify).

Concurrency
    trio.run; the signals arrive in a task of their own.

Not here
    Command line (cli.mount), the loop that answers the kernel (fuse.serving).
"""

from __future__ import annotations

import gc
import json
import logging
import logging.handlers
import os
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import trio

from flakefs.app import mounts, stacks
from flakefs.app.mountpoint import prepare
from flakefs.app.notify import Notifier
from flakefs.app.stack import open_filesystem
from flakefs.app.waiting import metadata_answers
from flakefs.config import Config
from flakefs.errors import ConfigError, FlakeError, MountError, UsageError
from flakefs.fuse import serve
from flakefs.mongo.clients import redacted

log = logging.getLogger(__name__)

LOG_BYTES = 8 * 1024 * 1024
LOG_FILES = 4
"""A log grows to LOG_BYTES; that many older ones are kept."""
COLLECT_AFTER = (50_000, 20, 100)
"""Python's collector looks for rings of dead objects after so many new ones (and for older rings ever more rarely). Its
default of 700 costs a third of the time of reading many documents, which make no rings."""
OPENING_SECONDS = 60.0
"""What a start may take, as far as the service manager is concerned, after the metadata server has answered."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_mount(
    config: Config, mountpoint: str, read_only: bool, ready_fd: int | None = None, *, debug: bool = False
) -> int:
    """Mount, serve until unmounted or told to stop, store everything. Returns the exit status.

    Without *ready_fd* (foreground) an error before the folder is usable is raised; with it, it is reported there.
    """
    life = _Life(config, read_only, ready_fd)
    try:
        _start_logging(config.mount.log if ready_fd is not None else "", debug=debug)
        stacks.dump_on_signal()
        return life.run(mountpoint)
    except Exception as error:
        if ready_fd is None:
            raise
        log.error("not mounted: %s", error, exc_info=None if isinstance(error, FlakeError) else error)
        status = 2 if isinstance(error, (ConfigError, UsageError)) else 1
        life.report({"error": str(error) or repr(error), "status": status})
        return status


class _Life:
    """One mount from the first look at the folder to the last commit."""

    def __init__(self, config: Config, read_only: bool, ready_fd: int | None) -> None:
        # Constant after construction
        self._read_only = read_only
        self._notifier = Notifier()
        data = config.embedded.data
        if data:  # the working folder of a daemon is /
            config = replace(config, embedded=replace(config.embedded, data=os.path.abspath(data)))
        self._config = config
        # Mutable
        self._ready_fd = ready_fd
        self.ready = False
        self._stopped = False  # a signal has arrived
        self._all = trio.CancelScope()  # cancelled by a signal before the folder is usable
        self._serving = trio.CancelScope()  # cancelled by a signal later on: then everything is stored first
        self._record: mounts.MountRecord | None = None

    def run(self, mountpoint: str) -> int:
        path = prepare(mountpoint)
        if self._ready_fd is not None:
            os.chdir("/")  # keep no other file system busy
        config = self._config
        self._record = mounts.own_record(
            path,
            log=config.mount.log if self._ready_fd is not None else "",
            metadata=redacted(config.metadata_uri) if config.metadata_uri else "embedded",
            database=config.database,
            read_only=self._read_only,
        )
        failure = trio.run(self._live, path)
        if failure is not None and not self.ready:
            raise failure
        if failure is not None:
            trace = None if isinstance(failure, FlakeError) else failure
            log.error("%s has ended, and not everything could be stored: %s", path, failure, exc_info=trace)
            mounts.finish(self._record, str(failure) or repr(failure))
            self._notifier.status(f"not everything could be stored: {failure}")
            return 1
        if not self.ready:
            raise MountError(f"stopped by a signal before {path} was mounted")
        log.info("%s has ended; everything is stored", path)
        mounts.finish(self._record)
        return 0

    def report(self, facts: dict[str, object]) -> None:
        """The last line for whoever waits (D1)."""
        if self._ready_fd is not None:
            with os.fdopen(self._ready_fd, "w") as pipe:
                self._ready_fd = None
                pipe.write(json.dumps(facts) + "\n")

    def _say_waiting(self, sentence: str) -> None:
        """Nothing is wrong yet: tell everybody what takes so long."""
        log.warning("%s", sentence)
        self._notifier.status(sentence, extend_seconds=self._config.mount.wait_seconds + OPENING_SECONDS)
        if self._ready_fd is not None:
            os.write(self._ready_fd, json.dumps({"waiting": sentence}).encode() + b"\n")

    async def _live(self, path: str) -> Exception | None:
        """Open, serve, store. Returns what went wrong instead of raising it, so that no nursery wraps it."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            try:
                with self._all:
                    if took := await metadata_answers(self._config, self._say_waiting):
                        log.debug("the metadata server has answered after %.1f s", took)
                    async with open_filesystem(
                        self._config, kind="mount", writable=not self._read_only, where=path
                    ) as fs:
                        with self._serving:
                            await serve(fs, path, self._config.fuse, ready=self._announce)
                        log.info("%s is unmounted; storing what is left", path)
                        self._notifier.stopping("storing what is left")
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
        return failure

    def _announce(self) -> None:
        """The folder answers: tell everybody."""
        assert self._record is not None
        gc.collect()
        gc.freeze()  # modules and the like stay for good: the collector need not look at them again
        gc.set_threshold(*COLLECT_AFTER)
        mounts.register(self._record)
        self.ready = True
        log.info("%s is mounted by process %d", self._record.mountpoint, self._record.pid)
        self._notifier.ready(f"{self._record.mountpoint} is mounted")
        self.report({"ready": True, "pid": self._record.pid})

    async def _watch_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if self._stopped:
                    log.info("%s again: still storing and unmounting", name)
                    continue
                self._stopped = True
                log.info("%s: storing everything and unmounting", name)
                self._notifier.stopping(f"{name}: storing everything and unmounting")
                (self._serving if self.ready else self._all).cancel()


def _start_logging(path: str, *, debug: bool) -> None:
    """To the file, rotated; without one to stderr."""
    handler: logging.Handler
    if path:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES)
        except OSError as error:
            raise ConfigError(f"the log {path} cannot be written: {error.strerror}") from error
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("flakefs").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("pymongo").setLevel(logging.WARNING)
    # A background task of the driver that meets a silent server logs a traceback; our own calls say it in a sentence.
    logging.getLogger("pymongo.client").setLevel(logging.CRITICAL)
    logging.captureWarnings(True)
    warnings.simplefilter("default")

"""Starting the process behind a mount in the background, and waiting until the folder is usable.

Invariants
    N1  The child is a fresh interpreter in a session of its own: it survives the terminal, and has no threads, sockets
        or locks of its parent.
    N2  The parent returns when the folder is usable, or raises what the child reports; it never leaves a child behind
        that nobody was told about.

Concurrency
    Synchronous; for the command line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from flakefs.errors import ConfigError, MountError

START_SECONDS = 300.0
"""How long a start may take: an embedded server that was killed may have to recover first."""
STOP_SECONDS = 30.0
LAST_LINES = 5


def launch(
    arguments: Sequence[str], log: Path, *, wait_seconds: float = 0.0, say: Callable[[str], None] = lambda _: None
) -> int:
    """Run `flakefs` with *arguments* and `--ready-fd N` in the background; its process id when the folder is usable.

    *wait_seconds*: how long the child may wait for the metadata server before it begins; *say* is called with the
    sentence when it does. Raises ConfigError or MountError with the sentence of the child.
    """
    seconds = START_SECONDS + wait_seconds
    reading, writing = os.pipe()
    try:
        with _opened(log) as output:
            start = output.tell()
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "flakefs", *arguments, "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[writing], start_new_session=True,
            )  # fmt: skip
        os.close(writing)
        writing = -1
        try:
            line = _last_line(reading, seconds, say)
        except BaseException:
            _end(child)
            raise
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if line is None:
        _end(child)
        raise MountError(f"the mount was not ready after {seconds:.0f} s and was stopped; see {log}")
    if not line:
        raise MountError(_sudden_end(child, log, start))
    facts = json.loads(line)
    if "error" in facts:
        child.wait(STOP_SECONDS)
        raise (ConfigError if facts.get("status") == 2 else MountError)(facts["error"])
    child.returncode = 0  # it goes on without us: no warning that it still runs
    return child.pid


def _opened(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
    except OSError as error:
        raise ConfigError(
            f"the log {log} cannot be written: {error.strerror}; name another with -o log=FILE"
        ) from error


def _last_line(descriptor: int, seconds: float, say: Callable[[str], None]) -> bytes | None:
    """The line that decides it; b"" when the child ended without a word; None when the time is over."""
    deadline = time.monotonic() + seconds
    text = b""
    while True:
        while b"\n" in text:
            line, _, text = text.partition(b"\n")
            waiting = json.loads(line).get("waiting")
            if waiting is None:
                return line
            say(waiting)
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(descriptor, 65536)
        if not part:
            return b""
        text += part


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _sudden_end(child: subprocess.Popen[bytes], log: Path, start: int) -> str:
    """The sentence for a child that died without a word, with what it printed last."""
    status = child.wait(STOP_SECONDS)
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    with log.open("rb") as file:
        file.seek(start)
        said = file.read()[-4096:].decode(errors="replace").strip().splitlines()[-LAST_LINES:]
    last = f": {' | '.join(said)}" if said else ""
    return f"the mount process ended {how} before the folder was usable; see {log}{last}"

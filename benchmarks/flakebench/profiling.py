"""Where the time of a mount's process goes: py-spy beside it while a workload runs, and the hottest functions.

py-spy is a tool of the developer's machine (`pip install py-spy`), not something that FlakeFS needs.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flakebench.targets import BenchmarkError

RATE = 200
SHOWN = 25
_NOISE = re.compile(r"process |async_wrapper|unrolled_run|Thread\.|Thread\._|WorkerThread\._|capture \(")
"""Frames that are below everything and mean nothing."""


def find_py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if not found:
        raise BenchmarkError(f"profiling needs py-spy: {sys.executable} -m pip install py-spy")
    return found


@contextmanager
def recording(py_spy: str, pid: int, output: Path) -> Iterator[None]:
    """Record the threads of *pid* that run, in the collapsed format.

    Without frames of C libraries: with them, py-spy stops the process for so long that the picture is another one,
    and takes every waiting thread for a running one.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    command = [py_spy, "record", "--pid", str(pid), "--output", str(output), "--rate", str(RATE)]
    command += ["--format", "raw", "--function", "--threads", "--nonblocking"]
    recorder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(0.5)  # it reads the process's symbols first
    try:
        yield
    finally:
        recorder.send_signal(signal.SIGINT)
        said, _ = recorder.communicate(timeout=120)
    if not output.exists():
        raise BenchmarkError(f"py-spy recorded nothing: {said.decode(errors='replace').strip()}")


def summary(record: Path) -> str:
    """Share of the samples by function: in the function itself, and with all that it calls."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in record.read_text(errors="replace").splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if frame and not _NOISE.match(frame)]
        if not frames or not count.isdigit():
            continue
        total += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    if not total:
        return "no samples"
    lines = [f"{total} samples at {RATE} a second, all threads that run", f"{'own':>7} {'with callees':>13}"]
    lines += [
        f"{100 * count / total:6.1f}% {100 * whole[frame] / total:12.1f}%  {frame}"
        for frame, count in own.most_common(SHOWN)
    ]
    lines += ["", "with callees, the largest:"]
    lines += [f"{100 * count / total:6.1f}%  {frame}" for frame, count in whole.most_common(SHOWN)]
    return "\n".join(lines)

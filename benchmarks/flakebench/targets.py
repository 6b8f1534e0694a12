"""What is measured: FlakeFS on a mount, and the file systems beside it.

Invariants
    G1  A target's folder is empty when it starts; whatever a workload leaves there it removes itself.
    G2  `remount` leaves nothing of the target in memory: mounts are gone and made again, the page cache is dropped.
    G3  Only processes started here are ever signalled, by their process object.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0
STOP_SECONDS = 300.0
"""Unmounting stores everything first, on a machine that may be busy."""


class BenchmarkError(Exception):
    """Something that has to be right before anything can be measured; the message says what."""


def drop_page_cache() -> bool:
    """Forget what the kernel has cached; False when we may not."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except PermissionError:
        return False
    return True


class Target:
    """The local disk, and the base of the others."""

    name = "local"
    keeps_content = True

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch / self.name
        self.folder = self.scratch / "files"
        self.folder.mkdir(parents=True)

    def start(self) -> None:
        pass

    def stop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def remount(self) -> None:
        drop_page_cache()

    def peak_memory(self) -> int:
        """Most resident bytes that the mount's process has had so far; 0 when there is no process."""
        return 0


class Mount(Target):
    """A mount served by a process of ours that stays in the foreground."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self.scratch / "log"
        self._peak = 0

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment()
            )
        until = time.monotonic() + START_SECONDS
        while not os.path.ismount(self.folder):
            if self._process.poll() is not None:
                raise BenchmarkError(f"{self.name} did not mount: {self._last_words()}")
            if time.monotonic() > until:
                self._process.kill()
                raise BenchmarkError(f"{self.name} was not mounted after {START_SECONDS:.0f} s: {self._last_words()}")
            time.sleep(0.02)

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        self.peak_memory()
        self._process = None
        if process.poll() is None:
            if subprocess.run(["fusermount3", "-u", str(self.folder)], check=False).returncode:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise BenchmarkError(
                    f"{self.name} did not end within {STOP_SECONDS:.0f} s of being unmounted"
                ) from None
        if process.returncode:
            subprocess.run(["fusermount3", "-uz", str(self.folder)], check=False, stderr=subprocess.DEVNULL)
            raise BenchmarkError(f"{self.name} ended with status {process.returncode}: {self._last_words()}")

    def remount(self) -> None:
        self.stop()
        drop_page_cache()
        self.start()

    def peak_memory(self) -> int:
        if self._process is not None:
            try:
                status = Path(f"/proc/{self._process.pid}/status").read_text()
            except FileNotFoundError:
                status = ""
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    self._peak = max(self._peak, int(line.split()[1]) * 1024)
        return self._peak

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "no output"


class NullMount(Mount):
    """Keeps names, no content: the upper bound of a file system in pyfuse3."""

    name = "null"
    keeps_content = False

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "nullfs.py"), str(self.folder)]


class PassMount(Mount):
    """pyfuse3 over the local disk."""

    name = "pass"

    def command(self) -> list[str]:
        below = self.scratch / "below"
        below.mkdir(exist_ok=True)
        return [sys.executable, str(HERE / "passthrough.py"), str(below), str(self.folder)]


class FlakeMount(Mount):
    """FlakeFS with its defaults; only the place of the data is ours."""

    name = "flakefs"

    def __init__(self, scratch: Path, data: Path) -> None:
        super().__init__(scratch)
        self._config = self.scratch / "flakefs.conf"
        self._config.write_text(f'[embedded]\ndata = "{data}"\n')
        self._flakefs = str(Path(sys.executable).with_name("flakefs"))

    def environment(self) -> dict[str, str]:
        return {**os.environ, "FLAKEFS_CONFIG": str(self._config)}

    def command(self) -> list[str]:
        return [self._flakefs, "mount", "-f", str(self.folder)]

    def format(self) -> None:
        done = subprocess.run(
            [self._flakefs, "format"], env=self.environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchmarkError(f"flakefs format failed: {done.stderr.strip() or done.stdout.strip()}")

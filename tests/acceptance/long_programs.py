"""PostgreSQL, fio and make on a mount: `tests/run-long programs`. Installs nothing; a program that is missing is named.

pytest does not collect this file by itself. FLAKEFS_PROGRAM_SECONDS says how long pgbench runs (60 by default).
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, NewMount

SECONDS = int(os.environ.get("FLAKEFS_PROGRAM_SECONDS", "60"))
PORT = "5499"
CLIENTS = ("-c", "4", "-j", "2")
SUMS = """
select sum(abalance) = (select sum(bbalance) from pgbench_branches)
   and sum(abalance) = (select sum(tbalance) from pgbench_tellers)
   and sum(abalance) = (select sum(delta) from pgbench_history) from pgbench_accounts
"""
FIO = {
    "sequential, 1 MiB": "--rw=write --bs=1m --size=256m --end_fsync=1",
    "random 4 KiB, fsync": "--rw=randwrite --bs=4k --size=64m --fsync=256",
    "random 4 KiB to 64 KiB, two at once": "--rw=randrw --bsrange=4k-64k --size=64m --numjobs=2",
    "random 16 KiB, shared map": "--ioengine=mmap --rw=randwrite --bs=16k --size=64m",
    "random 8 KiB, direct, asynchronous": "--ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bs=8k --size=64m",
}
SOURCE = "zlib"
pytestmark = pytest.mark.timeout(1800 + 3 * SECONDS)


def run(*words: object, seconds: float = 900, **options: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=seconds, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return str(done.stdout)


class Postgres:
    """A cluster whose data lies on the mount. As root everything runs as the user postgres, as it must."""

    def __init__(self, programs: Path, mount: Mount, sockets: Path) -> None:
        self.data = mount.path / "cluster"
        self._programs = programs
        self._sockets = sockets
        self._as: list[str] = []
        self.data.mkdir()
        sockets.mkdir()
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            for folder in (self.data, sockets):
                os.chown(folder, user.pw_uid, user.pw_gid)
            for folder in (mount.path.parent, *mount.path.parent.parents):
                if folder.stat().st_mode & 0o077 == 0:
                    folder.chmod(0o711)  # on the way to the mount
        self.data.chmod(0o700)

    def command(self, program: str, *words: object) -> list[str]:
        where = ["-h", str(self._sockets), "-p", PORT] if program not in ("initdb", "pg_ctl", "pg_checksums") else []
        return [*self._as, str(self._programs / program), *where, *map(str, words)]

    def run(self, program: str, *words: object) -> str:
        return run(*self.command(program, *words), cwd="/")

    def start(self) -> float:
        """Seconds until it answers, recovery included."""
        before = time.monotonic()
        options = f"-k {self._sockets} -h '' -p {PORT}"
        command = self.command("pg_ctl", "-D", self.data, "-w", "-t", 300, "-o", options, "-l", self.log, "start")
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=400)
        return time.monotonic() - before

    @property
    def log(self) -> Path:
        return self._sockets / "log"

    def kill(self) -> None:
        """SIGKILL of the postmaster; its children end by themselves."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        while _lives(pid):  # until its new parent has buried it, its number counts as a running server
            time.sleep(0.05)

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def query(self, text: str) -> str:
        return self.run("psql", "-Atc", text, "bench").strip()

    def check(self) -> None:
        self.run("pg_amcheck", "--install-missing", "--heapallindexed", "--parent-check", "--rootdescend", "-a")
        assert self.query(SUMS) == "t"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def postgres(new_mount: NewMount, tmp_path: Path) -> tuple[Mount, Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    mount = new_mount(words="allow_other")
    return mount, Postgres(found[-1].parent, mount, Path(os.environ.get("TMPDIR", "/tmp")) / f"pg{os.getpid()}")


def test_postgresql(postgres: tuple[Mount, Postgres]) -> None:
    """initdb, load, SIGKILL under load, recovery, every check there is; again after a remount."""
    mount, server = postgres
    server.run("initdb", "-D", server.data, "-k", "-A", "trust", "--no-locale", "-E", "UTF8")
    server.start()
    server.run("psql", "-c", "create database bench", "postgres")
    server.run("pgbench", "-q", "-i", "-s", 10, "bench")
    said = server.run("pgbench", *CLIENTS, "-n", "-T", SECONDS, "bench")
    print("\n".join(line for line in said.splitlines() if "tps" in line or "latency" in line or "failed" in line))
    assert "number of failed transactions: 0 " in said
    server.check()
    done = int(server.query("select count(*) from pgbench_history"))

    load = subprocess.Popen(
        server.command("pgbench", *CLIENTS, "-n", "-P", "1", "-T", "600", "bench"),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd="/",
    )  # fmt: skip
    assert load.stderr is not None
    seen = 0
    for line in load.stderr:
        seen += line.startswith("progress:")
        if seen == 10:
            break
    server.kill()
    load.communicate(timeout=100)
    print(f"recovered in {server.start():.1f} s")
    assert "automatic recovery in progress" in server.log.read_text()
    server.check()
    again = int(server.query("select count(*) from pgbench_history"))
    assert again > done
    server.stop()
    assert "Bad checksums:  0" in server.run("pg_checksums", "-c", "-D", server.data)

    mount.remount()
    server.start()
    server.check()
    assert int(server.query("select count(*) from pgbench_history")) == again
    server.stop()


@pytest.mark.parametrize("job", FIO.values(), ids=FIO)
def test_fio_verifies(mounted: Mount, job: str) -> None:
    """What it wrote is read back from the store, not from the memory of the kernel."""
    if not shutil.which("fio"):
        pytest.skip("fio is not installed: apt-get install fio")
    words = ["--name=job", f"--directory={mounted.path}", "--verify=crc32c", "--verify_fatal=1", *job.split()]
    said = run("fio", *words, "--do_verify=0", "--group_reporting")
    print("\n".join(line.strip() for line in said.splitlines() if line.strip().startswith(("write:", "read:"))))
    mounted.remount()
    run("fio", *words, "--verify_only")


def test_make(mounted: Mount, tmp_path: Path) -> None:
    """A C project from Debian's sources: unpacked, configured, built with two jobs, and its own tests."""
    if missing := [program for program in ("gcc", "make", "dpkg-source", "apt-get") if not shutil.which(program)]:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install gcc make dpkg-dev)")
    source = _debian_source(tmp_path)
    tree = mounted.path / "tree"
    run("dpkg-source", "--no-check", "-x", source, tree)
    run("sh", "./configure", cwd=tree)
    run("make", "-j2", cwd=tree)
    assert "test OK" in run("make", "test", cwd=tree)
    assert not run("make", "-j2", cwd=tree).count("gcc"), "a file's time says that it is old, and it is not"
    mounted.remount()
    assert "test OK" in run("make", "test", cwd=tree)


def _debian_source(folder: Path) -> Path:
    """The .dsc of SOURCE, by apt with lists of our own; skips when it cannot be had."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release.get("VERSION_CODENAME", "stable").strip('"')
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "sources").write_text(f"deb-src http://deb.debian.org/debian {suite} main\n")
    apt = [
        "apt-get", "-q", "-o", f"Dir::Etc::sourcelist={folder}/sources", "-o", "Dir::Etc::sourceparts=-",
        "-o", f"Dir::State::lists={folder}/lists", "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    for words in (["update"], ["source", "--download-only", SOURCE]):
        done = subprocess.run([*apt, *words], cwd=folder, capture_output=True, text=True)
    found = list(folder.glob("*.dsc"))
    if done.returncode or not found:
        pytest.skip(f"apt-get source {SOURCE} gives nothing: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return found[0]

"""Programs that were never told about FlakeFS: databases, version control, archives, packages, editors.

None of it needs a network. The large ones are in long_programs.py; docs/programs.md has what was seen.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flakefs.testing.mounted import Mount, NewMount

TRANSFERS = """
import random, sqlite3, sys
path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
with sqlite3.connect(path, timeout=60, isolation_level=None) as database:
    database.execute("PRAGMA synchronous=EXTRA")  # the default does not store that the journal is gone
    for number in range(count):
        database.execute("BEGIN IMMEDIATE")
        one, two = chance.sample(range(100), 2)
        database.execute("UPDATE accounts SET amount = amount - 7 WHERE id = ?", (one,))
        database.execute("UPDATE accounts SET amount = amount + 7 WHERE id = ?", (two,))
        database.execute("INSERT INTO history VALUES (?, ?, ?)", (seed, number, chance.randbytes(300)))
        database.execute("COMMIT")
        if number == 5:
            print("under way", flush=True)
"""
TRANSACTIONS = 25


def run(*words: object, **options: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return str(done.stdout)


def transfers(path: Path, seed: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRANSFERS, str(path), str(seed), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def make_accounts(path: Path, journal_mode: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(f"PRAGMA journal_mode={journal_mode}").fetchone() == (journal_mode,)
        database.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, amount INTEGER)")
        database.execute("CREATE TABLE history (seed INTEGER, number INTEGER, noise BLOB, PRIMARY KEY (seed, number))")
        database.executemany("INSERT INTO accounts VALUES (?, 1000)", ((number,) for number in range(100)))


def check_accounts(path: Path) -> dict[int, int]:
    """How many transactions of each seed there are, after the whole check of the database."""
    with closing(sqlite3.connect(path, timeout=60)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT sum(amount) FROM accounts").fetchone() == (100_000,)
        for last, count in database.execute("SELECT max(number), count(*) FROM history GROUP BY seed"):
            assert last == count - 1, "a transaction in the middle is missing"
        return dict(database.execute("SELECT seed, count(*) FROM history GROUP BY seed").fetchall())


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_sqlite_with_two_processes(new_mount: NewMount, journal_mode: str) -> None:
    """Two writers and a reader at once; then one more that is killed in the middle, and a remount."""
    mount = new_mount()
    path = mount.path / "bank.sqlite"
    make_accounts(path, journal_mode)
    writers = [transfers(path, seed, TRANSACTIONS) for seed in (1, 2)]
    looks = 0
    with closing(sqlite3.connect(path, timeout=60)) as reader:
        while any(writer.poll() is None for writer in writers):
            assert reader.execute("SELECT sum(amount) FROM accounts").fetchone() == (100_000,)
            looks += 1
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0]
    assert looks
    assert check_accounts(path) == {1: TRANSACTIONS, 2: TRANSACTIONS}

    with transfers(path, 3, 100_000) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "under way\n"
        killed.send_signal(signal.SIGKILL)
    done = check_accounts(path)  # its journal is rolled back, or its log recovered, here
    assert done[3] >= 5
    mount.remount()
    assert check_accounts(path) == done
    with closing(sqlite3.connect(path)) as last:  # a journal in which nothing stood yet stays until somebody writes
        last.execute("PRAGMA user_version = 1")
    assert not list(mount.path.glob("*-journal"))


def test_sqlite_survives_the_loss_of_the_mount(new_mount: NewMount) -> None:
    """What COMMIT has answered is there after SIGKILL of the mount (P1: it has synced)."""
    mount = new_mount(settings={"namespace": {"commit_interval_seconds": 600}})
    path = mount.path / "bank.sqlite"
    make_accounts(path, "delete")
    writer = transfers(path, 1, 20)
    writer.communicate()
    assert writer.returncode == 0
    mount.kill()
    mount.mount()
    assert check_accounts(path) == {1: 20}


def test_git_gc_and_fsck(mounted: Mount, git: Callable[..., str]) -> None:
    top = mounted.path / "repository"
    top.mkdir()
    git(top, "init", "-q", "-b", "main")
    for number in range(10):
        for name in ("a", "b/c", "b/d/e", f"new{number}"):
            file = top / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{number} of {name}\n" * 200)
        git(top, "add", "-A")
        git(top, "commit", "-q", "-m", f"number {number}")
    git(top, "branch", "side", "HEAD~3")
    git(top, "worktree", "add", "-q", str(mounted.path / "tree"), "side")
    history = git(top, "log", "--all", "--format=%H %T")
    assert len(history.splitlines()) == 10
    git(top, "gc", "-q", "--prune=now")
    assert len(list((top / ".git/objects/pack").glob("*.pack"))) == 1
    mounted.remount()
    assert git(top, "fsck", "--full", "--strict") == ""
    assert git(top, "status", "--porcelain") == ""
    assert git(mounted.path / "tree", "status", "--porcelain") == ""
    assert git(top, "log", "--all", "--format=%H %T") == history
    git(mounted.path, "clone", "-q", str(top), "clone")  # hard links to the objects
    assert git(mounted.path / "clone", "log", "--format=%H %T", "main") == git(top, "log", "--format=%H %T", "main")


def test_tar_with_attributes_holes_and_links(mounted: Mount, tmp_path: Path) -> None:
    source, target = tmp_path / "source", mounted.path / "target"
    (source / "d").mkdir(parents=True)
    (source / "file").write_text("content")
    os.link(source / "file", source / "d" / "again")
    (source / "symbolic").symlink_to("d/again")
    os.mkfifo(source / "fifo")
    with (source / "holes").open("wb") as file:
        file.truncate(10_000_000)
        file.seek(5_000_000)
        file.write(b"middle")
    mounted_source = mounted.path / "source"
    run("cp", "-a", "--sparse=always", source, mounted_source)
    os.setxattr(mounted_source / "file", "user.kind", b"text\0binary")
    os.setxattr(mounted_source / "d", "user.empty", b"")
    run("tar", "--xattrs", "--sparse", "-cf", mounted.path / "a.tar", "-C", mounted_source, ".")
    target.mkdir()
    run("tar", "--xattrs", "--xattrs-include=*", "-xpf", mounted.path / "a.tar", "-C", target)
    assert os.getxattr(target / "file", "user.kind") == b"text\0binary"
    assert os.getxattr(target / "d" / "again", "user.kind") == b"text\0binary"
    assert os.getxattr(target / "d", "user.empty") == b""
    assert (target / "file").stat().st_nlink == 2
    assert (target / "symbolic").readlink() == Path("d/again")
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)
    for folder in (mounted_source, target):
        assert (folder / "holes").stat().st_blocks * 512 < 2_000_000
        assert (folder / "holes").read_bytes() == (source / "holes").read_bytes()


def test_dpkg_deb_builds_and_unpacks(mounted: Mount) -> None:
    tree = mounted.path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN").chmod(0o755)
    (tree / "DEBIAN/control").write_text(
        "Package: flakefs-test\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a test\n"
    )
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/hello").write_text("#!/bin/sh\necho hello from a package\n")
    (tree / "usr/bin/hello").chmod(0o755)
    (tree / "usr/bin/again").symlink_to("hello")
    (tree / "usr/data").write_bytes(bytes(range(256)) * 4000)
    run("dpkg-deb", "--root-owner-group", "-b", tree, mounted.path / "test.deb")
    run("dpkg-deb", "-x", mounted.path / "test.deb", mounted.path / "unpacked")
    assert run(mounted.path / "unpacked/usr/bin/again") == "hello from a package\n"
    assert (mounted.path / "unpacked/usr/data").read_bytes() == (tree / "usr/data").read_bytes()


def test_pip_installs_a_wheel_into_an_environment(mounted: Mount, tmp_path: Path) -> None:
    wheel = tmp_path / "flaketest-1.0-py3-none-any.whl"
    info = "flaketest-1.0.dist-info"
    files = {f"flaketest/part{number}.py": f"NUMBER = {number}\n" for number in range(50)} | {
        "flaketest/__init__.py": "def main():\n    from flaketest.part49 import NUMBER\n    print('part', NUMBER)\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: flaketest\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nflaketest = flaketest:main\n",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    environment = mounted.path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--no-cache-dir", "--disable-pip-version-check")
    run(*pip, "install", "--no-index", "-q", wheel)
    mounted.remount()
    assert run(environment / "bin/flaketest") == "part 49\n"
    run(*pip, "uninstall", "-q", "-y", "flaketest")
    assert not list(environment.rglob("flaketest*"))


def test_editors_that_save_by_rename(mounted: Mount) -> None:
    """As vim (backupcopy=no), emacs and others do it: who has the old file open keeps it; mode and owner are kept."""
    file = mounted.path / "text"
    file.write_text("one\n")
    file.chmod(0o640)
    with file.open() as reader:
        for number in range(20):
            backup, fresh = mounted.path / "text~", mounted.path / "4913"
            before = file.stat()
            with fresh.open("x") as new:
                new.write(f"number {number}\n")
                os.fchmod(new.fileno(), stat.S_IMODE(before.st_mode))
                os.fchown(new.fileno(), before.st_uid, before.st_gid)
                os.fsync(new.fileno())
            backup.unlink(missing_ok=True)
            os.link(file, backup)
            os.rename(fresh, file)
            assert file.read_text() == f"number {number}\n"
            assert backup.stat().st_ino == before.st_ino
        assert reader.read() == "one\n"
    mounted.remount()
    assert sorted(path.name for path in mounted.path.iterdir()) == ["text", "text~"]
    assert (file.read_text(), backup.read_text()) == ("number 19\n", "number 18\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_rsync_keeps_what_it_is_told_to_and_repeats_nothing(mounted: Mount, tmp_path: Path) -> None:
    source, target = tmp_path / "source", mounted.path / "target"
    (source / "d").mkdir(parents=True)
    (source / "file").write_bytes(os.urandom(300_000))
    os.link(source / "file", source / "d" / "again")
    (source / "d" / "link").symlink_to("../file")
    run("rsync", "-aHAX", f"{source}/", target)
    os.setxattr(target / "file", "user.kind", b"binary")
    assert run("rsync", "-aHAXi", f"{target}/", mounted.path / "copy")
    assert os.getxattr(mounted.path / "copy/d/again", "user.kind") == b"binary"
    assert (mounted.path / "copy/file").stat().st_nlink == 2
    assert run("rsync", "-aHAXci", "--delete", f"{target}/", mounted.path / "copy") == ""
    with (source / "file").open("r+b") as file:
        file.seek(150_000)
        file.write(b"changed in place")
    os.utime(source / "file", (1_000_000_000, 1_000_000_000))  # rsync compares whole seconds
    run("rsync", "-aH", "--inplace", "--no-whole-file", f"{source}/", target)
    assert (target / "d/again").read_bytes() == (source / "file").read_bytes()

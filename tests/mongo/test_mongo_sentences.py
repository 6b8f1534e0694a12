"""What can be wrong with a mongod or its folder: one clear sentence each (N1, F1, S2, S4)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flakefs.errors import EmbeddedError
from flakefs.mongo import binaries
from flakefs.mongo.binaries import find_mongod
from flakefs.mongo.embedded import EmbeddedOptions, embedded_servers, hold
from flakefs.mongo.folders import default_data
from flakefs.mongo.server import Mongod

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def why(data: Path, **more: Any) -> str:
    """The sentence that holding the servers of *data* ends with."""
    with pytest.raises(EmbeddedError) as caught, hold(EmbeddedOptions(data=str(data), **more)):
        pass
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return str(path)


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = find_mongod()
    on_path = script(tmp_path / "mongod", f'exec "{packaged}" "$@"')
    other = script(tmp_path / "other", f'exec "{packaged}" "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert str(find_mongod()) == on_path
    assert str(find_mongod(other)) == other


def test_no_mongod_anywhere(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(binaries, "PACKAGE", "no_such_package.db")
    assert "no mongod was found" in why(data)
    assert "flakefs[embedded]" in why(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("echo 'db version v4.4.29'", "is version 4.4"),
        ("echo hello", "does not say that it is a mongod"),
        (
            "echo 'x: error while loading shared libraries: libssl.so.3: no such file' >&2; exit 127",
            "libssl.so.3 is missing",
        ),
        ("kill -ILL $$", "AVX"),
        ("echo broken >&2; exit 3", "cannot run on this machine (broken)"),
        ('[ "$1" = --version ] && { echo "db version v7.0.1"; exit; }; echo no such luck; exit 9', "no such luck"),
        (
            '[ "$1" = --version ] && { echo "db version v7.0.1"; exit; }; echo "No space left on device"; exit 14',
            "is full: free some space",
        ),
        ('[ "$1" = --version ] && { echo "db version v7.0.1"; exit; }; exit 62', "another version of MongoDB"),
        ('[ "$1" = --version ] && { echo "db version v7.0.1"; exit; }; kill -KILL $$', "SIGKILL"),
    ],
)
def test_a_mongod_that_cannot_run(data: Path, tmp_path: Path, text: str, expected: str) -> None:
    assert expected in why(data, mongod=script(tmp_path / "mongod", text))


def test_a_mongod_that_is_not_a_program(data: Path, tmp_path: Path) -> None:
    assert "is not executable" in why(data, mongod=script(tmp_path / "a", "exit", mode=0o644))
    assert "there is no mongod at" in why(data, mongod=str(tmp_path / "nothing"))
    (tmp_path / "b").write_bytes(b"\x7fELF garbage")
    (tmp_path / "b").chmod(0o755)
    assert "cannot run on this machine" in why(data, mongod=str(tmp_path / "b"))


def test_socket_in_use(data: Path) -> None:
    server = embedded_servers(EmbeddedOptions(data=str(data)))[1][1]
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(server.plan.socket))
        stranger.listen()
        assert "in use by another program" in why(data)
    server.plan.socket.unlink()
    server.plan.socket.write_text("")
    assert "is not a socket" in why(data)
    server.plan.socket.unlink()
    with hold(EmbeddedOptions(data=str(data))):
        assert server.pid()


def test_socket_left_by_a_crash_is_no_trouble(data: Path) -> None:
    server = embedded_servers(EmbeddedOptions(data=str(data)))[1][1]
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(server.plan.socket))
    with hold(EmbeddedOptions(data=str(data))):
        assert server.pid()


def test_a_second_mongod_on_the_same_data(data: Path) -> None:
    with hold(EmbeddedOptions(data=str(data))):
        pass
    ours = embedded_servers(EmbeddedOptions(data=str(data)))[1][1]
    stranger = Mongod(replace(ours.plan, socket=data.parent / "other.sock", log=data.parent / "other.log"))
    stranger.start(find_mongod())
    stranger.wait_ready()
    try:
        assert f"another mongod (pid {stranger.pid()}) runs on" in why(data)
        third = Mongod(replace(ours.plan, socket=data.parent / "third.sock", log=data.parent / "third.log"))
        third.start(find_mongod())
        with pytest.raises(EmbeddedError, match="another mongod is running on"):
            third.wait_ready()
        assert stranger.pid(), "a server that is not ours was stopped"
    finally:
        stranger.kill()


def test_socket_path_too_long(data: Path) -> None:
    plan = embedded_servers(EmbeddedOptions(data=str(data)))[1][0].plan
    with pytest.raises(EmbeddedError, match="longer than the 107 bytes"):
        Mongod(replace(plan, socket=data / ("x" * 100)))


def test_a_pid_from_before_a_crash_is_not_believed(data: Path) -> None:
    server = embedded_servers(EmbeddedOptions(data=str(data)))[1][0]
    server.plan.data.mkdir()
    (server.plan.data / "mongod.lock").write_text(f"{os.getpid()}\n")
    assert server.pid() is None, "S2"
    (server.plan.data / "mongod.lock").write_text("nonsense")
    assert server.pid() is None


def test_folder_with_other_things(data: Path) -> None:
    data.mkdir()
    (data / "letters").write_text("dear mongo")
    assert "holds other things" in why(data)
    (data / "letters").unlink()
    data.rmdir()
    data.write_text("")
    assert "is not a folder" in why(data)
    data.unlink()
    data.symlink_to("/proc/1")
    assert "/data" in why(data)


@root_only
def test_folder_of_somebody_else(data: Path) -> None:
    data.mkdir()
    os.chown(data, 65534, 65534)
    assert "belongs to user 65534" in why(data)


@root_only
def test_disk_too_small_or_read_only(data: Path) -> None:
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", str(data)], check=True)
    try:
        assert "MiB are free on the disk" in why(data)
        for entry in data.iterdir():
            entry.unlink() if entry.is_file() else entry.rmdir()
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        assert "not writable" in why(data)
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


@root_only
def test_disk_that_fills_up_later(data: Path) -> None:
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320m,mode=700", "tmpfs", str(data)], check=True)
    try:
        with hold(EmbeddedOptions(data=str(data))):
            pass
        with (data / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 20))
        assert "free some space there" in why(data)
        (data / "filler").unlink()
        with hold(EmbeddedOptions(data=str(data))):
            pass
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data() == tmp_path / "flakefs"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert str(default_data()) == "/home/x/.local/share/flakefs"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(default_data()) == "/var/lib/flakefs"


def test_nothing_is_started_at_import() -> None:
    program = "import threading, flakefs.mongo.embedded, flakefs.mongo.door; print(threading.active_count())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "1\n", "C3"

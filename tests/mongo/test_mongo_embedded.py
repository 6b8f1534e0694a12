"""The life of the embedded servers: who starts, revives and stops them (M1 to M6, F1, F2, S1 to S4, R1)."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pymongo
import pytest
from pymongo import MongoClient

from flakefs.errors import EmbeddedError
from flakefs.format.documents import Document
from flakefs.mongo import embedded as embedded_module
from flakefs.mongo.clients import check_metadata_server, check_node_server
from flakefs.mongo.embedded import Embedded, EmbeddedOptions, embedded_servers, hold
from flakefs.mongo.filelock import FileLock
from tests.mongo.conftest import Holder

PATIENCE = 60.0
T = TypeVar("T")


def options(data: Path) -> EmbeddedOptions:
    return EmbeddedOptions(data=str(data))


def pids(data: Path) -> list[int | None]:
    """Processes of the two servers, None for one that does not run."""
    return [server.pid() for server in embedded_servers(options(data))[1]]


def both(data: Path) -> list[int]:
    """The same, of which neither may be None."""
    found = [pid for pid in pids(data) if pid is not None]
    assert len(found) == 2
    return found


def eventually(what: Callable[[], T | None], why: str) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (result := what()):
        assert time.monotonic() < deadline, why
        time.sleep(0.01)
    return result


def client(uri: str) -> MongoClient[Document]:
    return MongoClient(uri, serverSelectionTimeoutMS=20_000)


def test_both_servers_are_usable_and_end_with_the_last_holder(data: Path) -> None:
    with hold(options(data)) as urls:
        with client(urls.metadata) as metadata:
            check_metadata_server(metadata, urls.metadata)
            with metadata.start_session() as session, session.start_transaction():
                metadata.x.things.insert_one({"_id": 1}, session=session)
        with client(urls.node) as node:
            check_node_server(node, urls.node, "x")
        assert all(pids(data))
    assert pids(data) == [None, None]
    assert list((data / "run").iterdir()) == []
    with hold(options(data)) as urls, client(urls.metadata) as metadata:
        assert metadata.x.things.count_documents({}) == 1


def test_the_last_of_several_stops_them(data: Path, new_holder: Callable[[], Holder]) -> None:
    holder = new_holder()
    holder.wait_held()
    before = pids(data)
    with hold(options(data)), hold(options(data)):
        pass
    assert pids(data) == before
    holder.leave()
    assert pids(data) == [None, None]


def test_a_killed_holder_leaves_no_lock_and_its_servers_are_taken_over(
    data: Path, new_holder: Callable[[], Holder]
) -> None:
    holder = new_holder()
    holder.wait_held()
    before = pids(data)
    holder.kill()
    assert pids(data) == before, "S3: servers died with the process that started them"
    with hold(options(data)):
        assert pids(data) == before
    assert pids(data) == [None, None]


def test_starters_at_once_make_one_pair(data: Path, new_holder: Callable[[], Holder]) -> None:
    holders = [new_holder() for _ in range(4)]
    for holder in holders:
        holder.wait_held()
    pair = both(data)
    running = [
        process.pid
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "mongod" and any(str(data) in argument for argument in process.info["cmdline"] or ())
    ]
    assert sorted(running) == sorted(pair)
    for holder in holders[:-1]:
        holder.leave()
    assert pids(data) == pair
    holders[-1].leave()
    assert pids(data) == [None, None]


@pytest.mark.logs
def test_a_killed_server_comes_back_with_its_data(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with hold(options(data)) as urls, client(urls.metadata) as metadata, client(urls.node) as node:
        metadata.x.things.with_options(write_concern=pymongo.WriteConcern("majority", j=True)).insert_one({"_id": 1})
        node.x.things.with_options(write_concern=pymongo.WriteConcern(1, j=True)).insert_one({"_id": 1})
        for number in (0, 1):
            before = both(data)
            os.kill(before[number], 9)
            after = eventually(partial(started_again, data, before, number), "M3: the server was not started again")
            assert after[1 - number] == before[1 - number]
            eventually(partial(told_times, caplog, number + 1), "nobody was told")
        for connection in (metadata, node):
            eventually(partial(answers, connection), "the server came back and does not answer")
            assert connection.x.things.count_documents({}) == 1
    assert "does not start" not in caplog.text
    assert pids(data) == [None, None]


def started_again(data: Path, before: list[int], number: int) -> list[int | None] | None:
    """The processes, when this server has another than before."""
    now = pids(data)
    return now if now[number] not in (None, before[number]) else None


def told_times(caplog: pytest.LogCaptureFixture, count: int) -> bool:
    return caplog.text.count("started again") == count


def answers(connection: MongoClient[Document]) -> Any:
    try:
        return connection.admin.command("ping")
    except pymongo.errors.ConnectionFailure:
        return None


def both_started_again(data: Path, before: list[int]) -> list[int | None] | None:
    now = pids(data)
    return now if all(now) and not set(now) & set(before) else None


@pytest.mark.logs
def test_holders_do_not_fight_over_a_dead_server(data: Path, new_holder: Callable[[], Holder]) -> None:
    holders = [new_holder() for _ in range(3)]
    for holder in holders:
        holder.wait_held()
    for _ in range(2):
        before = both(data)
        for pid in before:
            os.kill(pid, 9)
        after = eventually(partial(both_started_again, data, before), "not started again")
        with hold(options(data)) as urls, client(urls.metadata) as metadata:  # everybody has had a turn at the lock
            assert metadata.admin.command("ping")
        assert pids(data) == after, "M2: started more than once"
    for holder in holders:
        holder.leave()
    assert pids(data) == [None, None]


@pytest.mark.logs
def test_both_killed_and_nobody_left(data: Path, new_holder: Callable[[], Holder]) -> None:
    holder = new_holder()
    holder.wait_held()
    before = both(data)
    holder.kill()
    for pid in before:
        os.kill(pid, 9)
    with hold(options(data)):
        assert all(pids(data))
        assert not set(pids(data)) & set(before)


def test_holding_only_what_runs(data: Path, new_holder: Callable[[], Holder]) -> None:
    with pytest.raises(EmbeddedError, match="is not running"), hold(options(data), start=False):
        pass
    holder = new_holder()
    holder.wait_held()
    with hold(options(data), start=False) as urls, client(urls.node) as node:
        assert node.admin.command("ping")


def test_threads_hold_independently(data: Path) -> None:
    failures = []

    def work() -> None:
        try:
            with hold(options(data)) as urls, client(urls.node) as node:
                node.admin.command("ping")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    assert pids(data) == [None, None]


def test_data_folder_that_moves(data: Path) -> None:
    with hold(options(data)) as urls, client(urls.metadata) as metadata:
        metadata.x.things.insert_one({"_id": 1})
    moved = data.with_name("elsewhere")
    data.rename(moved)
    with hold(options(moved)) as urls, client(urls.metadata) as metadata:
        assert metadata.x.things.count_documents({}) == 1, "R1"
    shutil.move(moved, data)


@pytest.mark.parametrize("name", ["long" * 25, "Big, with a comma: and spaces"])
def test_paths_that_no_socket_can_have(data: Path, name: str) -> None:
    inside = data.with_name(name)
    with hold(options(inside)) as urls, client(urls.metadata) as metadata:
        metadata.x.things.insert_one({"_id": 1})
        sockets = embedded_servers(options(inside))[1][0].plan.socket.parent
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert inside not in sockets.parents
    assert not sockets.exists(), "F2: the short folder stays behind"


def test_no_tcp_and_nothing_in_tmp(data: Path) -> None:
    with hold(options(data)):
        for pid in pids(data):
            assert [c for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN] == [], (
                "S1"
            )
            listening = {c.laddr for c in psutil.Process(pid).net_connections("unix") if c.laddr}
            assert all(str(path).startswith(str(data)) for path in listening)


STRANGER = """
import os, socket, sys
data, opened = sys.argv[1:]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for name in ("metadata", "node1"):
    try:
        socket.socket(socket.AF_UNIX).connect(f"{data}/run/{name}.sock")
        print("connected to", name)
    except PermissionError:
        pass
    for path in (f"{data}/{name}", f"{data}/{name}.log", f"{data}/{name}/WiredTiger.wt", f"{data}/use.lock"):
        try:
            os.open(path, os.O_RDONLY)
            print("opened", path)
        except PermissionError:
            pass
print("tried")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_another_user_gets_nowhere(data: Path) -> None:
    with hold(options(data)):
        data.parent.chmod(0o755)
        for opened in (False, True):  # even when somebody opens the folders themselves
            if opened:
                for folder in (data, data / "run", data / "metadata", data / "node1"):
                    folder.chmod(0o711)
            result = subprocess.run(
                [sys.executable, "-c", STRANGER, str(data), str(opened)], capture_output=True, text=True, check=False
            )
            assert (result.stdout, result.stderr) == ("tried\n", ""), "M4"
        with hold(options(data)):
            assert stat.S_IMODE(data.stat().st_mode) == 0o700, "F1: left open"
            assert stat.S_IMODE((data / "run").stat().st_mode) == 0o700, "F1: left open"


def test_a_fork_of_the_holder_does_not_let_go(data: Path) -> None:
    embedded = Embedded(options(data))
    embedded.acquire()
    try:
        child = os.fork()
        if not child:
            embedded.release()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert all(pids(data))
    finally:
        embedded.release()
    assert pids(data) == [None, None]


def test_a_server_that_hangs_holds_up_nobody_at_the_lock(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """M5: who asks it waits and is told what is wrong; who can do without it is not kept from starting or leaving."""
    monkeypatch.setattr(embedded_module, "ANSWER_SECONDS", 2.0)
    with hold(options(data)):
        metadata = embedded_servers(options(data))[1][0]
        metadata.pause()
        try:
            waiting = threading.Event()
            told: list[str] = []

            def ask() -> None:
                try:
                    with hold(options(data), check=waiting.set):
                        told.append("it was held")
                except EmbeddedError as error:
                    told.append(str(error))

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            assert waiting.wait(PATIENCE)
            lock = FileLock(data / "start.lock")
            assert lock.wait_exclusive(1.9), "the lock is held while somebody waits for the server"
            lock.close()
            for thread in threads:
                thread.join(PATIENCE)
            assert len(told) == 3
            assert all(re.search(r"runs but has not answered for 2 s: it is stopped \(kill -CONT", t) for t in told)
        finally:
            metadata.resume()
        with hold(options(data)) as urls, client(urls.metadata) as found:
            assert found.admin.command("ping")["ok"]
    assert pids(data) == [None, None]


def test_a_wait_can_be_called_off(data: Path) -> None:
    """M6: and the one who waited holds nothing any more."""

    class CalledOff(Exception):
        pass

    def check() -> None:
        raise CalledOff

    with hold(options(data)):
        metadata = embedded_servers(options(data))[1][0]
        metadata.pause()
        try:
            with pytest.raises(CalledOff), hold(options(data), check=check):
                pass
        finally:
            metadata.resume()
        lock = FileLock(data / "start.lock")
        try:
            assert lock.wait_exclusive(PATIENCE)
            with pytest.raises(CalledOff), hold(options(data), check=check):
                pass
        finally:
            lock.close()
    assert pids(data) == [None, None], "it was the last one"

"""The write-back tasks against an engine that fails, waits and fills up when told (B3, W1 to W4)."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from flakefs.errors import NoSpace, Unavailable
from flakefs.namespace import FileMap, Inode
from flakefs.values import Block, ChunkRef
from flakefs.vfs import VfsOptions
from flakefs.vfs.content import FileContent
from flakefs.vfs.writeback import Writeback

KIB = 1024
CHUNK = 64 * KIB
LIMIT = 4 * KIB * KIB


class ScriptedEngine:
    """Stores into a dict; each call first does what `trouble` says."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.gate: trio.Event | None = None
        self.calls: list[int] = []
        self.hardened = 0
        self.soft: list[Block] = []
        self.settled: tuple[list[object], list[object], list[object]] | None = None

    async def store(self, blocks: Sequence[Block], *, at_once: bool = False) -> None:
        self.calls.append(len(blocks))
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if self.trouble is not None:
            raise self.trouble
        for block in blocks:
            assert block.sealed
            assert block.ref is None, "stored twice"
            assert block.data is not None
            digest = hashlib.sha256(block.data).digest()
            block.ref = ChunkRef(digest, 1, digest[:12], len(block.data))
            self.soft.append(block)

    async def harden(self) -> None:
        soft, self.soft = self.soft, []
        await trio.lowlevel.checkpoint()
        self.hardened += 1
        for block in soft:
            block.data = None

    def settle(self, kept: Iterable[object], dropped: Iterable[object], removed: Iterable[object]) -> None:
        self.settled = (list(kept), list(dropped), list(removed))

    def peek(self, ref: ChunkRef) -> bytes | None:
        return None


class OneFolder:
    """A namespace of files that only live in memory; commit() does what the journal does with content."""

    def __init__(self) -> None:
        self.files: dict[int, Inode] = {}
        self.adopted: list[Block] = []
        self.failure = None
        self.read_only = False
        self.side: Writeback | None = None

    def new(self) -> Inode:
        ino = 2 + len(self.files)
        made = Inode(ino, 1, b"%d" % ino, stat.S_IFREG | 0o644, 0, 0, 0, 0, 1, 0, 0, 0, 0, {}, b"", 0)
        made.map = FileMap()
        self.files[ino] = made
        return made

    def peek(self, ino: int) -> Inode | None:
        return self.files.get(ino)

    def knows(self, inode: Inode) -> bool:
        return self.peek(inode.ino) is inode

    def dirty_files(self) -> list[Inode]:
        return list(self.files.values())

    def changed(self, inode: Inode) -> None:
        pass

    def adopt(self, blocks: Sequence[Block]) -> None:
        assert all(block.ref is not None for block in blocks)
        self.adopted += blocks

    async def commit(self) -> None:
        assert self.side is not None
        blocks = self.side.seal()
        await self.side.store(blocks)
        self.side.settle(blocks, [], [])


class Bench:
    def __init__(self, **options: Any) -> None:
        self.engine = ScriptedEngine()
        self.ns = OneFolder()
        self.side = Writeback(self.engine, CHUNK, VfsOptions(dirty_bytes=LIMIT, **options))  # type: ignore[arg-type]  # a fake
        self.side.attach(self.ns)  # type: ignore[arg-type]  # a fake
        self.ns.side = self.side

    def file(self) -> FileContent:
        content = self.side.content(self.ns.new())
        content.handles += 1
        return content

    async def put(self, content: FileContent, offset: int, data: bytes) -> None:
        """As FileSystem.write."""
        budget = self.side.budget
        budget.raise_when_full()
        if budget.over:
            self.side.press()
            await budget.wait_for_room()
        content.write(offset, data)


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.side.run)
        yield bench
        await wait_all_tasks_blocked()
        bench.side.check_invariants()
        nursery.cancel_scope.cancel()


def chunk(number: int) -> bytes:
    return number.to_bytes(4, "big") * (CHUNK // 4)


async def test_full_windows_are_stored_in_the_background() -> None:
    async with running(Bench()) as bench:
        content = bench.file()
        for number in range(1, 4):
            await bench.put(content, number * CHUNK, chunk(number))
        await wait_all_tasks_blocked()
        assert len(bench.ns.adopted) == 3, "W2"
        assert bench.engine.hardened == 0
        await bench.ns.commit()
        assert bench.engine.hardened == 1, "W3"
        assert bench.side.budget.sealed_bytes == 0
        assert sum(bench.engine.calls) == 3


async def test_a_block_nobody_names_any_more_is_not_stored() -> None:
    bench = Bench()
    content = bench.file()
    content.write(0, chunk(1))
    content.write(0, chunk(2))
    async with running(bench):
        await wait_all_tasks_blocked()
    assert sum(bench.engine.calls) == 1


async def test_a_removed_file_is_not_stored() -> None:
    bench = Bench()
    content = bench.file()
    content.write(0, chunk(1))
    content.write(CHUNK, b"open")
    bench.side.forget(content)
    async with running(bench):
        await wait_all_tasks_blocked()
    assert bench.engine.calls == []
    assert bench.side.budget.open_bytes == bench.side.budget.sealed_bytes == 0


async def test_many_small_blocks_go_in_few_calls() -> None:
    bench = Bench()
    for _ in range(300):
        bench.file().write(0, b"x" * 5000)
    async with running(bench):
        await bench.ns.commit()
    assert sum(bench.engine.calls) == 300
    assert len(bench.engine.calls) <= 2


async def test_a_stream_longer_than_the_limit_flows() -> None:
    async with running(Bench()) as bench:
        content = bench.file()
        with trio.fail_after(30):
            for number in range(1, 400):
                await bench.put(content, number * CHUNK, chunk(number))
                assert bench.side.budget.open_bytes + bench.side.budget.sealed_bytes < LIMIT + 2 * CHUNK, "W4"
        assert bench.engine.hardened >= 5


async def test_many_small_open_files_flow_too() -> None:
    async with running(Bench()) as bench:
        with trio.fail_after(30):
            for _ in range(1500):
                await bench.put(bench.file(), 0, b"y" * 10_000)
        assert bench.engine.calls, "W4: sealed early"


async def test_tiny_files_flow_by_commits() -> None:
    async with running(Bench()) as bench:
        with trio.fail_after(30):
            for _ in range(1500):
                await bench.put(bench.file(), 0, b"z" * 4000)
        assert bench.engine.calls == [], "they become literals"
        assert bench.side.budget.open_bytes < LIMIT


async def fill(bench: Bench, content: FileContent) -> None:
    number = 1
    while not bench.side.budget.over:
        content.write(number * CHUNK, chunk(number))
        number += 1


@pytest.mark.logs
async def test_a_full_store_is_told_at_once(mock_clock: MockClock) -> None:
    async with running(Bench()) as bench:
        content = bench.file()
        bench.engine.trouble = NoSpace("no node has room; add one")
        await fill(bench, content)
        with pytest.raises(NoSpace, match="no node has room"):  # B3, P8
            await bench.put(content, 0, chunk(1))
        assert mock_clock.current_time() == 0
        bench.engine.trouble = None
        mock_clock.autojump_threshold = 0
        await trio.sleep(30)
        assert bench.side.budget.failure is None
        await bench.put(content, 0, chunk(1))
        await bench.ns.commit()
        assert {block.data for block in bench.ns.adopted} == {None}, "W1: everything that waited was stored"


@pytest.mark.logs
async def test_a_silent_store_is_waited_for_so_long(autojump_clock: MockClock) -> None:
    async with running(Bench(error_timeout_seconds=30.0)) as bench:
        content = bench.file()
        bench.engine.trouble = Unavailable("node 1 does not answer")
        await fill(bench, content)
        started = trio.current_time()
        with pytest.raises(Unavailable, match="node 1"):  # P3
            await bench.put(content, 0, chunk(1))
        assert 25 <= trio.current_time() - started <= 35
        assert bench.side.budget.overdue() is not None
        bench.engine.trouble = None
        await trio.sleep(30)
        await bench.side.budget.wait_for_room()
        assert bench.side.budget.failure is None


@pytest.mark.logs
async def test_a_writer_that_waits_goes_on_when_the_store_is_back(autojump_clock: MockClock) -> None:
    async with running(Bench()) as bench:
        content = bench.file()
        bench.engine.trouble = Unavailable("node 1 does not answer")
        await fill(bench, content)

        async def recover() -> None:
            await trio.sleep(10)
            bench.engine.trouble = None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(recover)
            await bench.put(content, 0, chunk(9999))  # B3


@pytest.mark.logs
async def test_a_bug_below_is_survived(autojump_clock: MockClock) -> None:
    async with running(Bench()) as bench:
        content = bench.file()
        bench.engine.trouble = ZeroDivisionError("a bug")
        content.write(0, chunk(1))
        await trio.sleep(1)
        assert "bug" in str(bench.side.budget.failure)
        bench.engine.trouble = None
        await trio.sleep(10)
        assert bench.side.budget.failure is None
        assert len(bench.ns.adopted) == 1, "W1"


async def test_a_commit_does_not_store_what_a_task_is_storing() -> None:
    async with running(Bench()) as bench:
        content = bench.file()
        bench.engine.gate = trio.Event()
        content.write(0, chunk(1))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.ns.commit)
            await wait_all_tasks_blocked()
            bench.engine.gate.set()
        assert bench.engine.calls == [1]
        assert content.undurable() == []


async def test_a_failing_commit_tells_its_caller() -> None:
    bench = Bench()
    bench.file().write(0, b"w" * 5000)
    bench.engine.trouble = NoSpace("no node has room")
    with pytest.raises(NoSpace):
        await bench.ns.commit()
    bench.engine.trouble = None
    await bench.ns.commit()
    assert bench.side.budget.sealed_bytes == 0, "W1: sealed blocks of the failed commit are found again"


async def test_settling_is_passed_on_and_closed_files_leave() -> None:
    bench = Bench()
    content = bench.file()
    content.write(0, chunk(1))
    content.handles = 0
    bench.side.idle(content)
    assert bench.side.contents
    await bench.ns.commit()
    assert bench.engine.settled is not None
    assert len(bench.engine.settled[0]) == 1
    assert bench.side.contents == {}


@pytest.mark.parametrize("close", [True, False])
async def test_what_closed_files_left_open_is_stored_when_it_is_much(close: bool) -> None:
    bench = Bench()
    for _ in range(200):
        content = bench.file()
        content.write(0, b"v" * 10_000)
        content.handles = 0
        if close:
            bench.side.idle(content)
    async with running(bench):
        await wait_all_tasks_blocked()
    assert bool(bench.engine.calls) is close

"""The table of pins: TA1 to TA5 under every order of look-ups, writes, commits, crashes of nodes and settlements."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flakefs.engine.table import BUSY, FRESH, GONE, INDEXED, SOLID, Entry, Table, content_of
from flakefs.values import Block, ChunkRef

HASHES = [bytes([65 + number]) * 32 for number in range(3)]


class Ledger:
    """Bytes on nodes, and the count of those that volume documents do not have."""

    def __init__(self) -> None:
        self.uncounted = 0
        self.counted_chunks = 0
        self.doomed_refs: list[ChunkRef] = []

    def added(self, volume: int, stored_bytes: int) -> None:
        self.uncounted += 1

    def counted(self, volume: int, stored_bytes: int) -> None:
        self.uncounted -= 1
        self.counted_chunks += 1

    def doomed(self, ref: ChunkRef, stored_bytes: int, *, added: bool) -> None:
        self.uncounted -= added
        self.doomed_refs.append(ref)


def ref_of(content_hash: bytes, number: int) -> ChunkRef:
    return ChunkRef(content_hash, 1, number.to_bytes(12, "big"), 1)


def block_of(content_hash: bytes) -> Block:
    block = Block(content_hash[:1])
    block.sealed = True
    return block


class TableMachine(RuleBasedStateMachine):
    """A server with an index, a node with bytes, one committer, and the table between them.

    Look-ups take their answer from the index at one moment and bring it to the table at a later one; removals leave
    the index at one moment and reach the table at a later one, in order.
    """

    @initialize(known_max=st.sampled_from([1, 100]))
    def start(self, known_max: int) -> None:
        self.ledger = Ledger()
        self.table = Table(self.ledger, known_max)
        self.numbers = itertools.count(1)
        self.index: dict[bytes, ChunkRef] = {}
        self.stored: set[ChunkRef] = set()
        self.deleted: set[ChunkRef] = set()
        self.removed: set[ChunkRef] = set()
        """From the index, at some time."""
        self.blocks: list[Block] = []
        """Pinned, neither committed nor dropped."""
        self.flights: list[tuple[Entry, ChunkRef | str | None]] = []
        """Claimed entries: "new" before the look-up, then its answer."""
        self.commits: list[tuple[list[Block], list[ChunkRef]]] = []
        """Gone through, not settled yet."""

    @rule(content_hash=st.sampled_from(HASHES))
    def store(self, content_hash: bytes) -> None:
        block = block_of(content_hash)
        entry, claimed = self.table.pin(block, content_hash)
        self.blocks.append(block)
        if claimed:
            self.flights.append((entry, "new"))
        assert (block.ref is None) == (entry.state is BUSY)

    @precondition(lambda self: any(answer == "new" for _, answer in self.flights))
    @rule(data=st.data())
    def look_up(self, data: st.DataObject) -> None:
        waiting = [n for n, (_, answer) in enumerate(self.flights) if answer == "new"]
        number = data.draw(st.sampled_from(waiting))
        entry, _ = self.flights[number]
        self.flights[number] = (entry, self.index.get(entry.hash))

    @precondition(lambda self: any(answer != "new" for _, answer in self.flights))
    @rule(data=st.data(), fails=st.sampled_from([False, False, True]))
    def arrive(self, data: st.DataObject, fails: bool) -> None:
        ready = [n for n, (_, answer) in enumerate(self.flights) if answer != "new"]
        entry, answer = self.flights.pop(data.draw(st.sampled_from(ready)))
        if isinstance(answer, ChunkRef):
            self.table.found(entry, answer, 1)
        elif fails:
            lost = list(entry.blocks) if entry.ref is None else []
            self.table.failed(entry)
            self.blocks = [block for block in self.blocks if block not in lost]
        else:
            ref = ref_of(entry.hash, next(self.numbers))
            self.stored.add(ref)
            self.table.written(entry, ref, 1, ((1, b"process"),))

    @precondition(lambda self: self.table.fresh())
    @rule(data=st.data(), proven=st.booleans())
    def barrier(self, data: st.DataObject, proven: bool) -> None:
        for entry in self.table.fresh():
            if proven or data.draw(st.booleans()):
                self.table.hardened(entry)
                assert entry.state is SOLID
            else:
                assert self.table.lost(entry)
                self.flights.append((entry, None))

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), removes=st.sets(st.sampled_from(HASHES)))
    def commit(self, data: st.DataObject, removes: set[bytes]) -> None:
        """Names some durable blocks and takes the last reference from some chunks; the index changes at once."""
        states = {block: entry.state for block in self.blocks if (entry := self.table.entry(block))}
        durable = [block for block in self.blocks if states.get(block) in (SOLID, INDEXED)]
        kept = data.draw(st.lists(st.sampled_from(durable), unique=True)) if durable else []
        named = {block.ref.hash for block in kept if block.ref}
        removed = [self.index.pop(content_hash) for content_hash in removes - named if content_hash in self.index]
        self.removed.update(removed)
        for block in kept:
            assert block.ref is not None
            assert block.ref not in self.deleted, "TA2: a commit names bytes that were doomed"
            before = self.index.setdefault(block.ref.hash, block.ref)
            assert before == block.ref, "two places for one content"
        self.blocks = [block for block in self.blocks if block not in kept]
        self.commits.append((kept, removed))

    @precondition(lambda self: self.commits)
    @rule()
    def settle(self) -> None:
        kept, removed = self.commits.pop(0)
        for block in kept:
            self.table.keep(block)
        for ref in removed:
            self.table.unindexed(ref, 1)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.blocks))
        self.blocks.remove(block)
        self.table.drop(block)
        self.table.drop(block)  # twice is harmless

    @invariant()
    def bytes_that_are_needed_are_there(self) -> None:
        doomed = self.ledger.doomed_refs
        assert len(doomed) == len(set(doomed)), "TA3: doomed twice"
        self.deleted.update(doomed)
        for ref in self.index.values():
            assert ref not in self.deleted, "TA2: indexed bytes were doomed"
        for block in self.blocks:
            assert block.ref is None or block.ref not in self.deleted, "TA2: pinned bytes were doomed"
            if not self.commits and block.ref in self.removed and block.ref not in self.index.values():
                assert self.table.lapsed(), "TA5: gc may take it for a leak"
        self.table.check_invariants()

    def teardown(self) -> None:
        """TA3: when everything is settled, what lies on the node is exactly what the index names."""
        while self.flights:
            entry, answer = self.flights.pop()
            if answer == "new":
                answer = self.index.get(entry.hash)
            if isinstance(answer, ChunkRef):
                self.table.found(entry, answer, 1)
            else:
                ref = ref_of(entry.hash, next(self.numbers))
                self.stored.add(ref)
                self.table.written(entry, ref, 1, ())
        while self.commits:
            self.settle()
        for block in self.blocks:
            self.table.drop(block)
        self.blocks = []
        self.bytes_that_are_needed_are_there()
        assert self.stored - self.deleted == set(self.index.values()), "TA3: a leak"
        assert self.ledger.uncounted == 0, "VO3: the figures drifted"
        assert self.table.pinned() == 0


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_known_content_costs_no_look_up(ledger: Ledger) -> None:
    table = Table(ledger)
    first = block_of(HASHES[0])
    entry, claimed = table.pin(first, HASHES[0])
    assert claimed
    table.written(entry, ref_of(HASHES[0], 1), 7, ())
    table.hardened(entry)
    table.keep(first)
    second = block_of(HASHES[0])
    assert table.pin(second, HASHES[0]) == (table.entry(second), False)
    assert (second.ref, second.stored_bytes) == (first.ref, 7)


def test_an_index_entry_that_goes_takes_the_memory_along(ledger: Ledger) -> None:
    """TA4."""
    table = Table(ledger)
    block = block_of(HASHES[0])
    entry, _ = table.pin(block, HASHES[0])
    table.found(entry, ref_of(HASHES[0], 1), 1)
    table.keep(block)
    assert table.known() == 1
    table.unindexed(ref_of(HASHES[0], 1), 1)
    assert table.known() == 0
    assert ledger.doomed_refs == [ref_of(HASHES[0], 1)]
    assert table.pin(block_of(HASHES[0]), HASHES[0])[1], "it has to be looked up again"


def test_a_removal_during_the_look_up_that_saw_the_entry(ledger: Ledger) -> None:
    """TA2: the bytes stay, under the same ref, and the next commit may name them."""
    table = Table(ledger)
    block = block_of(HASHES[0])
    entry, _ = table.pin(block, HASHES[0])
    table.unindexed(ref_of(HASHES[0], 1), 1)
    assert ledger.doomed_refs == []
    table.found(entry, ref_of(HASHES[0], 1), 1)
    assert entry.state is SOLID
    table.keep(block)
    assert entry.state is GONE
    assert ledger.doomed_refs == []
    assert table.known() == 1


def test_a_removal_before_the_look_up_that_missed_the_entry(ledger: Ledger) -> None:
    table = Table(ledger)
    block = block_of(HASHES[0])
    entry, _ = table.pin(block, HASHES[0])
    table.unindexed(ref_of(HASHES[0], 1), 1)
    table.written(entry, ref_of(HASHES[0], 2), 1, ())
    assert ledger.doomed_refs == [ref_of(HASHES[0], 1)]
    assert block.ref == ref_of(HASHES[0], 2)


def test_a_rewritten_chunk_moves_all_its_blocks(ledger: Ledger) -> None:
    table = Table(ledger)
    one, two, late = (block_of(HASHES[0]) for _ in range(3))
    entry, _ = table.pin(one, HASHES[0])
    table.pin(two, HASHES[0])
    table.written(entry, ref_of(HASHES[0], 1), 1, ((1, b"a"),))
    assert table.lost(entry)
    table.pin(late, HASHES[0])
    assert late.ref is None
    assert content_of(entry) == b"A"
    table.written(entry, ref_of(HASHES[0], 2), 1, ((1, b"b"),))
    assert one.ref == two.ref == late.ref == ref_of(HASHES[0], 2)
    assert ledger.doomed_refs == [ref_of(HASHES[0], 1)]
    assert sorted(map(id, table.holding())) == sorted(map(id, (one, two, late))), "each holds its data once"


def test_a_rewrite_that_fails_leaves_the_doubtful_ref(ledger: Ledger) -> None:
    table = Table(ledger)
    block = block_of(HASHES[0])
    entry, _ = table.pin(block, HASHES[0])
    table.written(entry, ref_of(HASHES[0], 1), 1, ((1, b"a"),))
    table.lost(entry)
    table.failed(entry)
    assert (entry.state, entry.places, block.ref) == (FRESH, ((1, b"a"),), ref_of(HASHES[0], 1))


def test_a_block_dropped_while_it_is_written_leaves_nothing(ledger: Ledger) -> None:
    table = Table(ledger)
    block = block_of(HASHES[0])
    entry, _ = table.pin(block, HASHES[0])
    table.drop(block)
    table.written(entry, ref_of(HASHES[0], 1), 1, ())
    assert (entry.state, ledger.doomed_refs) == (GONE, [ref_of(HASHES[0], 1)])
    assert table.fresh() == []
    table.check_invariants()


def test_what_is_pinned_for_long_counts_as_lapsed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """TA5: a commit that was tried for hours names chunks that are old."""
    table = Table(ledger)
    block = block_of(HASHES[0])
    entry, _ = table.pin(block, HASHES[0])
    table.written(entry, ref_of(HASHES[0], 1), 1, ())
    assert not table.lapsed()
    later = entry.made + 1000
    monkeypatch.setattr("flakefs.engine.table.monotonic", lambda: later)
    assert table.lapsed()
    table.hardened(entry)
    table.keep(block)
    assert not table.lapsed()


def test_a_young_chunk_without_its_entry_is_nothing_for_gc(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """TA5"""
    table = Table(ledger)
    entry, _ = table.pin(block_of(HASHES[0]), HASHES[0])
    table.found(entry, ref_of(HASHES[0], 1), 1)
    table.unindexed(ref_of(HASHES[0], 1), 1)
    assert table.lapsed()
    monkeypatch.setattr("flakefs.engine.table.time", lambda: 200.0)
    assert not table.lapsed()


def test_an_old_chunk_that_another_session_may_forget_counts_as_lapsed(ledger: Ledger) -> None:
    """TA5: while sessions share, its index entry can go unheard."""
    table = Table(ledger)
    block = block_of(HASHES[0])
    entry, _ = table.pin(block, HASHES[0])
    table.found(entry, ref_of(HASHES[0], 1), 1)
    assert not table.lapsed()
    table.share(True)
    assert table.lapsed()
    table.keep(block)
    assert not table.lapsed()

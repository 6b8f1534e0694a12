"""What this process knows about chunks by their content hash: the pins that keep bytes alive.

Purpose
    One entry for every hash that a block of this process has or is about to get, and a bounded memory of indexed
    chunks, so that content known already costs no look-up. Pure bookkeeping: who writes and deletes is told by the
    caller and through the `Ledger`.

    An entry is
        BUSY     somebody looks its hash up or writes its bytes
        FRESH    written, perhaps not yet safe from a crash of its node
        SOLID    durable; no index entry names it (yet, or any more)
        INDEXED  durable and named by an index entry
        GONE     not in the table any more

Invariants
    TA1  A block has at most one pin; an entry is in the table as long as a block pins it or it is BUSY.
    TA2  The bytes of a ref that a pinned, resolved block has are never doomed before that block is settled.
    TA3  Every ref that is written, or whose index entry goes, is in the end either named by the index or doomed,
         exactly once.
    TA4  What the memory of indexed chunks names was indexed when this process last heard of it, and an index entry's
         removal takes it out.
    TA5  As long as a block pins an old ref that the index does not name (any more, or yet), lapsed() says so: gc must
         not take it for a leak.

Concurrency
    Trio thread only; nothing here waits, so each call is atomic. Removals (`unindexed`) arrive in the order of the
    commits, and after the index entry is gone. That may be while a look-up that still saw it is under way: such
    removals wait in the entry until the look-up says which ref it found.

Not here
    Hashing, look-ups and writes (engine.writer), deleting (engine.deleter).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from time import monotonic, time
from typing import Protocol

from cachetools import LRUCache

from flakefs.values import Block, ChunkRef

KNOWN_MAX = 100_000
"""Indexed chunks remembered without a pin; about 250 bytes each."""
LONG_SECONDS = 300.0
"""An older chunk may look like a leak to gc, which leaves alone what is younger than 15 minutes."""

Places = tuple[tuple[int, bytes], ...]
"""(node id, server process that took the insert) of every replica."""


class State(enum.IntEnum):
    BUSY = 0
    FRESH = 1
    SOLID = 2
    INDEXED = 3
    GONE = 4


BUSY, FRESH, SOLID, INDEXED, GONE = State


class Ledger(Protocol):
    """Who is told what happens to bytes on the nodes."""

    def added(self, volume: int, stored_bytes: int) -> None:
        """A chunk lies in the volume that the volume's document does not count."""

    def counted(self, volume: int, stored_bytes: int) -> None:
        """The commit counted it."""

    def doomed(self, ref: ChunkRef, stored_bytes: int, *, added: bool) -> None:
        """Nobody needs the bytes any more. *added*: they were reported by added() and never counted."""


class Entry:
    """A hash that blocks pin; see the module for its states. Changed by the table only, except `owner`."""

    __slots__ = ("blocks", "hash", "made", "owner", "places", "ref", "removed", "state", "stored_bytes")

    def __init__(self, content_hash: bytes, state: State, ref: ChunkRef | None, stored_bytes: int) -> None:
        self.hash = content_hash
        self.made = monotonic()
        self.state = state
        self.ref = ref
        self.stored_bytes = stored_bytes
        self.places: Places = ()
        self.blocks: set[Block] = set()
        self.removed: list[tuple[ChunkRef, int]] | None = None
        """Refs whose index entries went while this one was BUSY, with their stored bytes."""
        self.owner: object = None
        """Whose work a BUSY entry is; the writer's business."""


class Table:
    def __init__(self, ledger: Ledger, known_max: int = KNOWN_MAX, now: Callable[[], float] = lambda: time()) -> None:
        """*now*: by which the age of a key is told."""
        self._ledger = ledger
        self._now = now
        # Mutable; each method leaves the invariants whole
        self._entries: dict[bytes, Entry] = {}
        self._pins: dict[Block, Entry] = {}
        self._fresh: dict[Entry, None] = {}
        self._unnamed: dict[Entry, None] = {}
        """Whose index entries went while they were pinned, and perhaps some that are named again or gone."""
        self._holding: list[Block] = []
        """Blocks that got a ref since holding() was last called."""
        self._known: LRUCache[bytes, tuple[ChunkRef, int]] = LRUCache(known_max)
        self._shared = False

    def share(self, shared: bool) -> None:
        """While others change the index too, nothing of it is remembered without a pin (TA4)."""
        self._shared = shared
        self._known.clear()

    def pin(self, block: Block, content_hash: bytes) -> tuple[Entry, bool]:
        """Pin *block*, which has no pin yet: (entry, whether the caller has to resolve it).

        A block of a resolved entry has its ref on return.
        """
        assert block not in self._pins, "TA1: pinned twice"
        entry = self._entries.get(content_hash)
        claimed = False
        if entry is None:
            known = self._known.pop(content_hash, None)
            if known is None:
                entry = Entry(content_hash, BUSY, None, 0)
                claimed = True
            else:
                entry = Entry(content_hash, INDEXED, *known)
            self._entries[content_hash] = entry
        entry.blocks.add(block)
        self._pins[block] = entry
        if entry.state is not BUSY:
            block.ref = entry.ref
            block.stored_bytes = entry.stored_bytes
            self._holding.append(block)
        return entry, claimed

    def entry(self, block: Block) -> Entry | None:
        """The entry that *block* pins."""
        return self._pins.get(block)

    # -- what became of a BUSY entry --

    def found(self, entry: Entry, ref: ChunkRef, stored_bytes: int) -> None:
        """The index names *ref*, or did so at some moment since the pin."""
        assert entry.state is BUSY
        state = INDEXED
        for removed, removed_bytes in entry.removed or ():
            if removed == ref and state is INDEXED:
                state = SOLID  # the look-up saw it before it went; its bytes are still there
            else:
                self._ledger.doomed(removed, removed_bytes, added=False)
        entry.removed = None
        if state is SOLID:
            self._ledger.added(ref.volume, stored_bytes)
        self._resolve(entry, state, ref, stored_bytes, ())

    def written(self, entry: Entry, ref: ChunkRef, stored_bytes: int, places: Places) -> None:
        """New bytes lie at *ref* on every replica; durable only when the processes of *places* are proven alive."""
        assert entry.state is BUSY
        self._ledger.added(ref.volume, stored_bytes)
        if entry.ref is not None:
            self._ledger.doomed(entry.ref, entry.stored_bytes, added=True)
        self._doom_removed(entry)
        self._resolve(entry, FRESH, ref, stored_bytes, places)

    def failed(self, entry: Entry) -> None:
        """Nothing was found and nothing written: the blocks lose their pin.

        An entry that was being written again keeps its old ref, its pins and its doubtful places.
        """
        assert entry.state is BUSY
        self._doom_removed(entry)
        if entry.ref is not None:
            self._resolve(entry, FRESH, entry.ref, entry.stored_bytes, entry.places)
            return
        for block in entry.blocks:
            del self._pins[block]
        entry.blocks.clear()
        entry.state = GONE
        del self._entries[entry.hash]

    # -- durability --

    def fresh(self) -> list[Entry]:
        """Entries whose bytes a crash of their node may take."""
        return list(self._fresh)

    def holding(self) -> list[Block]:
        """Blocks that have a ref and perhaps still their data; the caller hands back those that are not durable."""
        holding, self._holding = self._holding, []
        return holding

    def hold_on(self, block: Block) -> None:
        """holding() shall name *block* once more."""
        self._holding.append(block)

    def holds(self) -> bool:
        return bool(self._holding or self._fresh)

    def hardened(self, entry: Entry) -> None:
        """The bytes are durable on every replica."""
        if entry.state is FRESH:
            del self._fresh[entry]
            entry.state = SOLID

    def lost(self, entry: Entry) -> bool:
        """The bytes may be gone: the entry is BUSY again for the caller to write. False: nobody needs it any more."""
        if entry.state is not FRESH:
            return False
        del self._fresh[entry]
        entry.state = BUSY
        return True

    # -- settling --

    def keep(self, block: Block) -> None:
        """The commit that names *block*'s ref went through."""
        entry = self._pins.pop(block, None)
        if entry is None:
            return
        entry.blocks.discard(block)
        assert entry.ref is not None, "committed before it was stored"
        assert entry.state is not BUSY, "committed before it was durable"
        self._fresh.pop(entry, None)
        if entry.state is not INDEXED:
            entry.state = INDEXED
            self._ledger.counted(entry.ref.volume, entry.stored_bytes)
        if not entry.blocks:
            self._leave(entry)

    def drop(self, block: Block) -> None:
        """Nobody will name *block*."""
        entry = self._pins.pop(block, None)
        if entry is None:
            return
        entry.blocks.discard(block)
        if not entry.blocks and entry.state is not BUSY:
            self._leave(entry)

    def unindexed(self, ref: ChunkRef, stored_bytes: int) -> None:
        """A commit removed the index entry of *ref*."""
        entry = self._entries.get(ref.hash)
        if entry is None:
            self._known.pop(ref.hash, None)
            self._ledger.doomed(ref, stored_bytes, added=False)
        elif entry.state is BUSY:
            entry.removed = [*(entry.removed or ()), (ref, stored_bytes)]
            self._unnamed[entry] = None
        elif entry.ref == ref:
            if entry.state is INDEXED:
                entry.state = SOLID
                self._unnamed[entry] = None
                self._ledger.added(ref.volume, entry.stored_bytes)
        else:
            self._ledger.doomed(ref, stored_bytes, added=False)

    # -- looking in --

    def pinned(self) -> int:
        return len(self._pins)

    def empty(self) -> bool:
        return not self._entries

    def lapsed(self) -> bool:
        """Is something old pinned that the index does not name? Never False when that is so; perhaps True when not."""
        oldest = next(iter(self._entries.values()), None)  # they are in the order in which they were made
        if oldest is not None and oldest.made + LONG_SECONDS < monotonic():
            return True
        if self._shared and any(entry.state is INDEXED and self._old(entry.ref) for entry in self._entries.values()):
            return True  # another session may have removed the index entry, unheard
        if not self._unnamed:
            return False
        self._unnamed = {entry: None for entry in self._unnamed if entry.state is SOLID or entry.removed}
        return any(
            self._old(entry.ref) or any(self._old(ref) for ref, _ in entry.removed or ()) for entry in self._unnamed
        )

    def _old(self, ref: ChunkRef | None) -> bool:
        """By its key, which begins with the seconds."""
        return ref is not None and int.from_bytes(ref.key[:4], "big") + LONG_SECONDS < self._now()

    def known(self) -> int:
        return len(self._known)

    def check_invariants(self) -> None:
        """Raise AssertionError when TA1 or TA4 is broken, or a count drifted. For tests."""
        for content_hash, entry in self._entries.items():
            assert entry.hash == content_hash
            assert entry.state is not GONE
            assert entry.blocks or entry.state is BUSY, "TA1: an entry that nobody pins"
            assert content_hash not in self._known, "TA4: pinned and remembered"
            assert (entry in self._fresh) == (entry.state is FRESH)
            assert entry.removed is None or entry.state is BUSY
            for block in entry.blocks:
                assert self._pins.get(block) is entry, "TA1: a pin of another entry"
                assert entry.state is BUSY or block.ref == entry.ref
        assert set(self._fresh) <= set(self._entries.values())
        assert len(self._pins) == sum(len(entry.blocks) for entry in self._entries.values())

    # -- private --

    def _resolve(self, entry: Entry, state: State, ref: ChunkRef, stored_bytes: int, places: Places) -> None:
        entry.state = state
        entry.ref = ref
        entry.stored_bytes = stored_bytes
        entry.places = places
        entry.owner = None
        if state is FRESH:
            self._fresh[entry] = None
        for block in entry.blocks:
            if block.ref is None:
                self._holding.append(block)
            block.ref = ref
            block.stored_bytes = stored_bytes
        if not entry.blocks:
            self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        """The last pin went."""
        assert entry.ref is not None
        del self._entries[entry.hash]
        self._fresh.pop(entry, None)
        if entry.state is INDEXED:
            if not self._shared:
                self._known[entry.hash] = (entry.ref, entry.stored_bytes)
        else:
            self._ledger.doomed(entry.ref, entry.stored_bytes, added=True)
        entry.state = GONE

    def _doom_removed(self, entry: Entry) -> None:
        for ref, stored_bytes in entry.removed or ():
            self._ledger.doomed(ref, stored_bytes, added=False)
        entry.removed = None


def content_of(entry: Entry) -> bytes | bytearray | None:
    """The plain content, from whichever of its blocks still has it."""
    return next((block.data for block in entry.blocks if block.data is not None), None)

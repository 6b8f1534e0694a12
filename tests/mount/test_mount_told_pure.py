"""What the kernel is taken to believe of names (fuse.told)."""

from __future__ import annotations

import stat

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flakefs.fuse.told import Told
from flakefs.namespace import Inode

OLD, NEW = (1, b"old"), (1, b"new")


def inode(ino: int) -> Inode:
    return Inode(ino, 1, b"old", stat.S_IFREG, 0, 0, 0, 0, 1, 0, 0, 0, 0, {}, b"", 1)


def test_to1_only_what_the_kernel_was_told_is_affirmed() -> None:
    told = Told()
    assert not told.agrees(OLD, inode(5))
    assert not told.given(OLD, inode(5))
    assert told.agrees(OLD, inode(5))
    assert not told.agrees(OLD, inode(6))
    told.moved(OLD, NEW, 5)
    assert told.agrees(NEW, inode(5))
    assert not told.agrees(OLD, inode(5))
    told.given(OLD, inode(6))
    told.moved(OLD, NEW, 6, 5)
    assert told.agrees(OLD, inode(5))
    assert told.agrees(NEW, inode(6))
    told.unknown(NEW)
    assert not told.agrees(NEW, inode(6))
    assert told.clear() == [(OLD, 5)]
    assert not told.agrees(OLD, inode(5))
    assert told.clear() == []


def test_to1_what_the_kernel_is_to_forget_it_believes_until_it_has() -> None:
    told = Told()
    told.given(OLD, inode(5))
    assert told.forget(OLD) == 5
    assert told.forget(OLD) == 0
    assert told.agrees(OLD, inode(5))
    assert not told.agrees(OLD, inode(6))
    assert told.other_name(NEW, inode(5)) is None
    told.forgotten(OLD)
    assert not told.agrees(OLD, inode(5))


def test_to1_a_name_that_led_elsewhere_is_doubted_until_the_kernel_has_forgotten_it() -> None:
    for forget in (False, True):
        told = Told()
        told.given(OLD, inode(5))
        if forget:
            told.forget(OLD)
        assert told.given(OLD, inode(6))
        assert not told.agrees(OLD, inode(6)), "a rename may be on its way that found 5"
        assert told.given(OLD, None)
        assert not told.given(OLD, inode(6)), "it is known already that it must forget the name"
        assert not told.agrees(OLD, inode(6))
        told.forget(OLD)
        told.forgotten(OLD)
        assert not told.given(OLD, inode(6))
        assert told.agrees(OLD, inode(6))


NAMES = st.sampled_from([b"a", b"b", b"c"])


class Kernel(RuleBasedStateMachine):
    """TO1 against a kernel that keeps names, asks again for those it has without a lock, and holds a lock for what it
    has not, for renames and for forgetting.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told = Told()
        self.store: dict[bytes, int] = {}  # changed by others, too
        self.names: dict[bytes, int] = {}  # what the kernel has; 0: that there is none
        self.to_forget: set[bytes] = set()
        self.rename: tuple[bytes, bytes, int] | None = None  # under way, with the inode that it found
        self.last = 1

    def answer(self, name: bytes) -> int:
        ino = self.store.get(name, 0)
        if self.told.given((1, name), inode(ino) if ino else None):
            self.forget(name)
        return ino

    def forget(self, name: bytes) -> None:
        self.told.forget((1, name))
        self.to_forget.add(name)

    @rule(name=NAMES, other=NAMES)
    def others_rename(self, name: bytes, other: bytes) -> None:
        if name in self.store:
            self.store[other] = self.store.pop(name)
            self.forget(name)
            self.forget(other)

    @rule(name=NAMES)
    def others_replace(self, name: bytes) -> None:
        self.last += 1
        self.store[name] = self.last
        self.forget(name)

    @rule(name=NAMES)
    def look_up(self, name: bytes) -> None:
        if name in self.names:
            if self.answer(name) != self.names[name]:
                del self.names[name]
        elif self.rename is None:
            self.names[name] = self.answer(name)

    @precondition(lambda self: self.rename is None and self.to_forget)
    @rule()
    def forgets(self) -> None:
        names, self.to_forget = self.to_forget, set()
        for name in names:
            self.names.pop(name, None)
            self.told.forgotten((1, name))

    @precondition(lambda self: self.rename is None)
    @rule(old=NAMES, new=NAMES)
    def asks_to_rename(self, old: bytes, new: bytes) -> None:
        found = self.names.get(old)
        if old != new and (self.answer(old) if found is None else found):
            self.rename = old, new, self.answer(old) if found is None else found
            self.names[old] = self.rename[2]

    @precondition(lambda self: self.rename is not None)
    @rule(again=st.booleans())
    def renames(self, again: bool) -> None:
        assert self.rename is not None
        (old, new, found), self.rename = self.rename, None
        source = self.store.get(old)
        agreed = source is not None and self.told.agrees((1, old), inode(source))
        if agreed:
            assert found == source, "the kernel moves another inode than the store"
        if source is None or not (agreed or again):
            return
        self.store[new] = self.store.pop(old)
        self.names.pop(old, None)
        self.names[new] = found
        if agreed:
            self.told.moved((1, old), (1, new), source)
        else:
            self.told.unknown((1, old))
            self.forget(new)
            self.told.doubted((1, new))

    @invariant()
    def is_not_wrong_for_good(self) -> None:
        for name, ino in self.names.items():
            if name not in self.to_forget:
                assert ino == self.store.get(name, 0), f"{name!r}"


TestKernel = Kernel.TestCase
TestKernel.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def test_to2_another_name_that_the_kernel_takes_for_the_same_file() -> None:
    told = Told()
    told.given(OLD, inode(5))
    assert told.other_name(OLD, inode(5)) is None
    assert told.other_name(NEW, inode(5)) == OLD
    told.moved(OLD, NEW, 5)
    assert told.other_name(NEW, inode(5)) is None
    assert told.other_name(OLD, inode(5)) == NEW
    told.given(NEW, None)
    assert told.other_name(OLD, inode(5)) is None
    told.given(NEW, inode(5))
    told.forget(NEW)
    assert told.other_name(OLD, inode(5)) is None

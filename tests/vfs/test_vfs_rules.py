"""Rules for attributes (A1 to A3), extended attributes (E1 to E4), options and facts."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest

from flakefs.errors import (
    AttributeTooLarge,
    ConfigError,
    Exists,
    InvalidArgument,
    NoAttribute,
    NoSpace,
    NotPermitted,
    NotSupported,
)
from flakefs.namespace import FileMap, Inode
from flakefs.values import ROOT_INO, Block, Extent
from flakefs.vfs import Caller, Changes, VfsOptions, attributes, facts, xattrs

ROOT = Caller(0, 0)
USER = Caller(1000, 1000)


def inode(mode: int = stat.S_IFREG | 0o644, *, uid: int = 0, gid: int = 0, name: bytes = b"file") -> Inode:
    made = Inode(7, ROOT_INO, name, mode, uid, gid, 0, 0, 1, 10, 10, 10, 10, {}, b"", 0)
    if stat.S_ISREG(mode):
        made.map = FileMap()
    return made


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0o4755, 0o755),
        (0o2755, 0o755),
        (0o6777, 0o777),
        (0o2644, 0o2644),  # no execute for the group: mandatory locking, not a privilege
        (0o1755, 0o1755),
    ],
)
def test_privileges_are_cleared(before: int, after: int) -> None:
    assert attributes.without_privileges(stat.S_IFREG | before) == stat.S_IFREG | after, "A1"


def test_folders_keep_their_bits() -> None:
    folder = inode(stat.S_IFDIR | 0o2775)
    attributes.apply(folder, Changes(uid=5), ROOT, 99)
    assert folder.mode == stat.S_IFDIR | 0o2775
    assert (folder.uid, folder.ctime, folder.mtime) == (5, 99, 10)


def test_a_change_of_owner_clears_privileges_even_for_root() -> None:
    file = inode(stat.S_IFREG | 0o6755)
    file.xattrs = {attributes.CAPABILITY: b"x", b"user.a": b"b"}
    attributes.apply(file, Changes(gid=4), ROOT, 99)
    assert file.mode == stat.S_IFREG | 0o755, "A1"
    assert file.xattrs == {b"user.a": b"b"}, "A1"


def test_mode_given_together_with_owner_wins() -> None:
    file = inode(stat.S_IFREG | 0o6755)
    attributes.apply(file, Changes(mode=stat.S_IFDIR | 0o4711, uid=4), ROOT, 99)
    assert file.mode == stat.S_IFREG | 0o4711, "type bits stay"


def test_truncation_clears_privileges_of_all_but_root() -> None:
    kept, cleared = inode(stat.S_IFREG | 0o4755), inode(stat.S_IFREG | 0o4755)
    attributes.apply(kept, Changes(size=0), ROOT, 99)
    attributes.apply(cleared, Changes(size=0), USER, 99)
    assert kept.mode & stat.S_ISUID
    assert not cleared.mode & stat.S_ISUID
    assert (kept.mtime, kept.ctime) == (99, 99)


def test_times_are_set_as_told() -> None:
    file = inode()
    attributes.apply(file, Changes(atime=1, mtime=2), ROOT, 99)
    assert (file.atime, file.mtime, file.ctime) == (1, 2, 99)


def test_times_that_cannot_be_stored_become_the_nearest_that_can() -> None:
    file = inode()
    attributes.apply(file, Changes(atime=2**64, mtime=-(2**64)), ROOT, 99)
    assert (file.atime, file.mtime) == (2**63 - 1, -(2**63))


def test_group_of_what_is_made() -> None:
    plain, inheriting = inode(stat.S_IFDIR | 0o755, gid=50), inode(stat.S_IFDIR | 0o2755, gid=50)
    file, folder = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
    assert attributes.of_new(plain, file, USER) == (file, 1000)
    assert attributes.of_new(inheriting, file, USER) == (file, 50), "A2"
    assert attributes.of_new(inheriting, folder, USER) == (folder | stat.S_ISGID, 50), "A2"


def test_relatime() -> None:
    file = inode()
    assert attributes.atime_is_due(file, 11), "A3: not after mtime"
    file.atime = 11
    assert not attributes.atime_is_due(file, 12)
    assert attributes.atime_is_due(file, 11 + attributes.DAY_NS), "A3: a day old"


@pytest.mark.parametrize(
    ("mode", "caller", "wanted", "granted"),
    [
        (0o640, Caller(5, 9), os.R_OK | os.W_OK, True),
        (0o640, Caller(6, 7), os.R_OK, True),
        (0o640, Caller(6, 7), os.W_OK, False),
        (0o640, Caller(6, 9), os.R_OK, False),
        (0o077, Caller(5, 9), os.R_OK, False),
        (0o000, Caller(0, 0), os.R_OK | os.W_OK, True),
        (0o666, Caller(0, 0), os.X_OK, False),
        (0o001, Caller(0, 0), os.X_OK, True),
        (0o000, Caller(6, 9), os.F_OK, True),
    ],
)
def test_access(mode: int, caller: Caller, wanted: int, granted: bool) -> None:
    assert attributes.may_access(inode(stat.S_IFREG | mode, uid=5, gid=7), wanted, caller) is granted


def test_attributes_are_copied_on_change() -> None:
    file = inode()
    before = file.xattrs
    file.xattrs = xattrs.with_attribute(file, b"user.a", b"1", create=True, replace=False)
    assert before == {}, "E2"
    with pytest.raises(Exists):
        xattrs.with_attribute(file, b"user.a", b"2", create=True, replace=False)
    with pytest.raises(NoAttribute):
        xattrs.with_attribute(file, b"user.b", b"2", create=False, replace=True)
    assert xattrs.without_attribute(file, b"user.a") == {}
    assert file.xattrs == {b"user.a": b"1"}, "E2"
    with pytest.raises(NoAttribute):
        xattrs.without_attribute(file, b"user.b")


@pytest.mark.parametrize("name", [b"system.posix_acl_access", b"system.posix_acl_default", b"btrfs.x", b"userx", b""])
def test_other_attribute_namespaces_are_refused(name: bytes) -> None:
    with pytest.raises(NotSupported):  # E1
        xattrs.with_attribute(inode(), name, b"", create=False, replace=False)


def test_attribute_limits() -> None:
    file = inode()
    with pytest.raises(InvalidArgument):
        xattrs.with_attribute(file, b"user.", b"", create=False, replace=False)
    with pytest.raises(InvalidArgument):
        xattrs.with_attribute(file, b"user." + b"n" * 251, b"", create=False, replace=False)
    with pytest.raises(AttributeTooLarge):
        xattrs.with_attribute(file, b"user.big", bytes(65537), create=False, replace=False)
    for number in range(15):
        file.xattrs = xattrs.with_attribute(file, b"user.%d" % number, bytes(65536), create=False, replace=False)
    with pytest.raises(NoSpace):  # E3
        xattrs.with_attribute(file, b"user.one_more", bytes(65536), create=False, replace=False)
    file.xattrs = {b"user.%0250d" % number: b"" for number in range(256)}
    with pytest.raises(NoSpace):  # E3
        xattrs.with_attribute(file, b"user." + b"x" * 250, b"", create=False, replace=False)


def test_user_attributes_are_for_files_and_folders() -> None:
    link = inode(stat.S_IFLNK | 0o777)
    with pytest.raises(NotPermitted):
        xattrs.with_attribute(link, b"user.a", b"", create=False, replace=False)
    assert xattrs.with_attribute(link, b"trusted.a", b"", create=False, replace=False)


def test_facts_cannot_be_set_and_are_not_listed() -> None:
    file = inode()
    with pytest.raises(NotPermitted):  # E4
        xattrs.with_attribute(file, b"user.flakefs.id", b"1", create=False, replace=False)
    assert xattrs.listed(file, Caller(0, 0)) == []


def test_facts_of_a_file() -> None:
    file = inode(name=b"photo.JPG")
    assert file.map is not None
    file.map.replace(0, [Extent(0, 3, b"abc", 0), Extent(10, 3, Block(b"xyz"), 0)])
    told = facts.facts(file, 65536, "001")
    assert told[b"id"] == b"7"
    assert told[b"extension"] == b"JPG"
    assert told[b"mime"] == b"image/jpeg"
    assert told[b"stored"] == b"6"
    assert told[b"chunks"] == b"0 3 inode\n10 3 memory"
    assert told[b"replication"] == b"001"
    file.xattrs = {b"user.flakefs.replication": b"010"}
    assert facts.facts(file, 65536, "001")[b"replication"] == b"010"
    assert b"chunks" not in facts.facts(inode(stat.S_IFDIR | 0o755), 65536, "000")
    assert b"extension" not in facts.facts(inode(name=b".hidden"), 65536, "000")
    assert b"replication" not in facts.facts(inode(stat.S_IFLNK | 0o777), 65536, "000")


@pytest.mark.parametrize(
    "wrong",
    [
        {"dirty_bytes": 1},
        {"error_timeout_seconds": 0},
        {"read_ahead_bytes": -1},
        {"atime": "strictatime"},
        {"store_tasks": 0},
    ],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        VfsOptions(**wrong)


def test_supplementary_groups_count_for_who_may_open(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attributes.groups_of(os.getpid()) == set(os.getgroups())
    assert not attributes.groups_of(2**30)
    found, caller = inode(stat.S_IFREG | 0o640, uid=5, gid=7), Caller(6, 8, pid=77)
    assert not attributes.may_open(found, os.O_RDONLY, caller)
    monkeypatch.setattr(attributes, "groups_of", {77: {7}}.__getitem__)
    assert attributes.may_open(found, os.O_RDONLY | os.O_CREAT, caller)
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        assert not attributes.may_open(found, flags, caller)

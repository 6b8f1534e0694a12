"""The replication code as an attribute (G1 to G3, E4): who gets it, what is written with it, what is refused."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable

import pytest
import trio

from flakefs.app.stack import Stack, metadata_door
from flakefs.engine.admin import add_node, set_replication
from flakefs.errors import Exists, InvalidArgument, NoAttribute, NotPermitted
from flakefs.format.hashing import chunk_hash, chunk_name
from flakefs.namespace import Inode
from flakefs.testing.servers import Servers
from flakefs.testing.stack import Fresh
from flakefs.values import ROOT_INO
from flakefs.vfs import Caller, FileSystem, replication, xattrs
from flakefs.vfs.paths import resolve
from flakefs.vfs.replication import ATTRIBUTE

ROOT = Caller(0, 0)
CHUNK = 64 * 1024


@pytest.fixture
def two_nodes(fresh: Fresh, servers: Servers, new_database: Callable[[], str]) -> Fresh:
    """Two nodes, on one server."""
    with metadata_door(fresh.config, purpose="test") as (door, resolve_node):
        add_node(
            door,
            fresh.config.database,
            uri=servers.node_uri(1),
            node_database=new_database(),
            resolve=resolve_node,
        )
    return fresh


def inode(mode: int = stat.S_IFREG | 0o644, code: bytes | None = None) -> Inode:
    attributes = {} if code is None else {ATTRIBUTE: code}
    return Inode(7, ROOT_INO, b"file", mode, 0, 0, 0, 0, 1, 0, 0, 0, 0, attributes, b"", 0)


async def put(fs: FileSystem, parent: int, name: bytes, data: bytes) -> int:
    handle, made = await fs.create(parent, name, 0o644, os.O_WRONLY, ROOT)
    await write(fs, handle, 0, data)
    return made.ino


async def write(fs: FileSystem, handle: int, offset: int, data: bytes) -> None:
    assert await fs.write(handle, offset, data) == len(data)
    await fs.flush(handle)
    await fs.release(handle)


async def codes_of(stack: Stack, ino: int) -> list[str]:
    """The code of each chunk of the file; "" is the default."""
    await stack.fs.sync()
    lines = (await stack.fs.facts(ino))[b"chunks"].decode().splitlines()
    return [line.partition(" replication=")[2] for line in lines]


@pytest.mark.parametrize(("stored", "told"), [(None, ""), (b"001", "001"), (b"", ""), (b"1", ""), (b"\xff\xfe1", "")])
def test_what_is_no_code_is_the_default(stored: bytes | None, told: str) -> None:
    assert replication.own_code(inode(code=stored)) == told, "G1"


def test_files_and_folders_inherit() -> None:
    folder = inode(stat.S_IFDIR | 0o755, b"001")
    for kind, gets in ((stat.S_IFREG, True), (stat.S_IFDIR, True), (stat.S_IFLNK, False), (stat.S_IFIFO, False)):
        assert replication.inherited(folder, kind | 0o644) == ({ATTRIBUTE: b"001"} if gets else None), "G2"
    assert replication.inherited(inode(stat.S_IFDIR | 0o755), stat.S_IFREG) is None


def test_it_is_the_one_fact_that_can_be_set() -> None:
    file = inode()
    file.xattrs = xattrs.with_attribute(file, ATTRIBUTE, b"001", create=False, replace=False)
    assert xattrs.listed(file, ROOT) == [ATTRIBUTE], "E4"
    with pytest.raises(NotPermitted):
        xattrs.with_attribute(file, b"user.flakefs.chunks", b"", create=False, replace=False)
    with pytest.raises(Exists):  # it can be read on every file, so it is there
        xattrs.with_attribute(inode(), ATTRIBUTE, b"001", create=True, replace=False)
    assert xattrs.with_attribute(inode(), ATTRIBUTE, b"001", create=False, replace=True)
    assert xattrs.without_attribute(file, ATTRIBUTE) == {}
    with pytest.raises(NoAttribute):
        xattrs.without_attribute(inode(), ATTRIBUTE)


@pytest.mark.parametrize("value", [b"", b"1", b"0001", b"00x", b"-01", b"\xff01", b"999", "٠٠١".encode()])
async def test_what_is_no_code_is_refused(stack: Stack, value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        await stack.fs.setxattr(ROOT_INO, ATTRIBUTE, value)
    assert await stack.fs.listxattr(ROOT_INO, ROOT) == []


async def test_what_the_nodes_cannot_satisfy_is_refused_with_a_line_in_the_log(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flakefs.vfs")
    with pytest.raises(InvalidArgument, match="missing is 1 further node"):
        await stack.fs.setxattr(ROOT_INO, ATTRIBUTE, b"001")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "flakefs.vfs.attributing"]
    assert "replication 001 cannot be kept" in line
    assert await stack.fs.getxattr(ROOT_INO, ATTRIBUTE) == b"000"


async def test_what_is_made_below_a_folder_gets_its_code(two_nodes: Fresh) -> None:
    async with two_nodes.open() as stack:
        fs = stack.fs
        before = await fs.mkdir(ROOT_INO, b"before", 0o755, ROOT)
        await fs.setxattr(ROOT_INO, ATTRIBUTE, b"001")
        folder = await fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
        sub = await fs.mkdir(folder.ino, b"sub", 0o755, ROOT)
        node = await fs.mknod(sub.ino, b"node", stat.S_IFREG | 0o644, 0, ROOT)
        made = await put(fs, sub.ino, b"file", os.urandom(2 * CHUNK + 5000))
        await fs.symlink(sub.ino, b"link", b"file", ROOT)
        await fs.rename(sub.ino, b"file", before.ino, b"moved")
        await fs.link(made, before.ino, b"hard")
        for each, code in ((before, b""), (folder, b"001"), (sub, b"001"), (node, b"001")):
            assert each.xattrs.get(ATTRIBUTE, b"") == code, each.name
        assert await codes_of(stack, made) == ["001"] * 3, "G2: a rename changes nothing"
    async with two_nodes.open() as stack:
        fs = stack.fs
        assert (await resolve(fs, b"folder/sub/node")).xattrs == {ATTRIBUTE: b"001"}
        assert await fs.getxattr((await resolve(fs, b"before")).ino, ATTRIBUTE) == b"000", "the default"
        assert (await resolve(fs, b"folder/sub/link", follow=False)).xattrs == {}
        await fs.removexattr(ROOT_INO, ATTRIBUTE)
        assert await fs.listxattr(ROOT_INO, ROOT) == []
        assert (await fs.mkdir(ROOT_INO, b"later", 0o755, ROOT)).xattrs == {}


async def test_content_has_the_code_of_the_moment_it_was_written(two_nodes: Fresh) -> None:
    async with two_nodes.open() as stack:
        fs = stack.fs
        ino = await put(fs, ROOT_INO, b"file", os.urandom(3 * CHUNK))
        assert await codes_of(stack, ino) == ["", "", ""]
        await fs.setxattr(ino, ATTRIBUTE, b"001")
        assert await codes_of(stack, ino) == ["", "", ""], "G3: old content stays as it is"
        await write(fs, await fs.open(ino, os.O_WRONLY), CHUNK, os.urandom(CHUNK))
        assert await codes_of(stack, ino) == ["", "001", ""]
        await fs.removexattr(ino, ATTRIBUTE)
        await write(fs, await fs.open(ino, os.O_WRONLY), CHUNK, os.urandom(CHUNK))
        assert await codes_of(stack, ino) == ["", "", ""]


async def test_equal_content_is_shared_within_a_code_only(two_nodes: Fresh) -> None:
    data = os.urandom(CHUNK)
    async with two_nodes.open() as stack:
        fs = stack.fs
        plain = await put(fs, ROOT_INO, b"plain", data)
        folder = await fs.mkdir(ROOT_INO, b"folder", 0o755, ROOT)
        await fs.setxattr(folder.ino, ATTRIBUTE, b"001")
        files = [await put(fs, folder.ino, name, data) for name in (b"a", b"b")]
        assert [await codes_of(stack, ino) for ino in (plain, *files)] == [[""], ["001"], ["001"]]
        index = {document["_id"]: document for document in stack.door.client[stack.database]["chunks"].find()}
        assert set(index) == {chunk_name(chunk_hash(data), ""), chunk_name(chunk_hash(data), "001")}
        assert index[chunk_name(chunk_hash(data), "001")]["r"] == 2
        volumes = {v["_id"]: v for v in stack.door.client[stack.database]["volumes"].find()}
        held = {name[32:]: volumes[document["v"]] for name, document in index.items()}
        assert (len(held[b""]["nodes"]), len(held[b"001"]["nodes"])) == (1, 2)


async def test_a_change_of_the_default_is_heard_of(two_nodes: Fresh) -> None:
    async with two_nodes.open() as stack:
        fs = stack.fs
        assert await fs.getxattr(ROOT_INO, ATTRIBUTE) == b"000"
        alone = await fs.statfs()
        await trio.to_thread.run_sync(set_replication, stack.door, stack.database, "001")
        with trio.fail_after(30):
            while await fs.getxattr(ROOT_INO, ATTRIBUTE) != b"001":  # noqa: ASYNC110
                await trio.sleep(0.01)
        doubled = await fs.statfs()
        assert abs(2 * doubled.blocks - alone.blocks) <= 1, "each block of new content takes two of the disks'"
        assert await codes_of(stack, await put(fs, ROOT_INO, b"file", os.urandom(CHUNK))) == [""]
        [volume] = {chunk["v"] for chunk in stack.door.client[stack.database]["chunks"].find()}
        record = stack.door.client[stack.database]["volumes"].find_one({"_id": volume})
        assert record is not None
        assert len(record["nodes"]) == 2
        await trio.to_thread.run_sync(
            set_replication, stack.door, stack.database, "000"
        )  # fsck calls the old volumes short


async def test_small_files_lie_in_their_inode_whatever_their_code(two_nodes: Fresh) -> None:
    async with two_nodes.open() as stack:
        fs = stack.fs
        await fs.setxattr(ROOT_INO, ATTRIBUTE, b"001")
        ino = await put(fs, ROOT_INO, b"small", b"x" * 100)
        await fs.sync()
        assert (await fs.facts(ino))[b"chunks"] == b"0 100 inode"
        await write(fs, await fs.open(ino, os.O_WRONLY), 100, b"y" * 5000)
        assert await codes_of(stack, ino) == ["001"]

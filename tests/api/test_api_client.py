"""flakefs.connect(): files, streams, chunks, facts, and what happens to objects that outlive the connection."""

from __future__ import annotations

import gc
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

import flakefs
from flakefs.api.files import RawFile
from flakefs.app.stack import metadata_door
from flakefs.config import Config
from flakefs.engine import EngineOptions
from flakefs.engine.admin import add_node, create_filesystem
from flakefs.errors import (
    BadHandle,
    Exists,
    InvalidArgument,
    IsDirectory,
    NoAttribute,
    NotDirectory,
    NotEmpty,
    NotFormatted,
    NotFound,
    ReadOnly,
    TooManySymlinks,
    UsageError,
)
from flakefs.namespace import schema
from flakefs.testing.servers import Servers
from flakefs.vfs import FileSystem

CHUNK = 64 * 1024
CONTENT = os.urandom(5 * CHUNK + 123)


@pytest.fixture
def config(servers: Servers, new_database: Callable[[], str]) -> Config:
    config = Config(metadata_uri=servers.metadata_uri, database=new_database(), engine=EngineOptions(reserve_bytes=0))
    with metadata_door(config, purpose="format") as (door, resolve):
        create_filesystem(
            door, config.database, chunk_size=CHUNK, codec="zstd", first_node_uri=servers.node_uri(1),
            first_node_database=new_database(), resolve=resolve, prepare=schema.create,
        )  # fmt: skip
    return config


@pytest.fixture
def fs(config: Config) -> Iterator[flakefs.Client]:
    with flakefs.connect(config) as client:
        yield client


def test_open_is_like_the_built_in_one(fs: flakefs.Client) -> None:
    """R2."""
    with fs.open("/f", "w") as file:
        assert file.write("line one\nline two\n") == 18
    with fs.open("/f") as file:
        assert list(file) == ["line one\n", "line two\n"]
    with fs.open("/f", "ab") as file:
        file.write(b"three")
    with fs.open("/f", "rb") as file:
        assert file.seek(-5, io.SEEK_END) == 18
        assert file.read() == b"three"
        assert file.seek(5) == 5
        assert file.read(3) == b"one"
        assert file.tell() == 8
    with fs.open("/f", "r+b") as file:
        file.seek(5)
        file.write(b"ONE")
        file.truncate(9)
        file.seek(0)
        assert file.read() == b"line ONE\n"
    with pytest.raises(Exists):
        fs.open("/f", "x")
    with fs.open("/f", "wb") as file:
        file.write(b"")
    assert fs.stat("/f").size == 0


def test_new_files_and_folders_get_the_umask(fs: flakefs.Client, tmp_path: Path) -> None:
    """O3."""
    before = os.umask(0o027)
    try:
        fs.open("/f", "w").close()
        fs.mkdir("/d")
        (tmp_path / "script").write_text("")
        (tmp_path / "script").chmod(0o777)
        fs.put(tmp_path / "script", "/script")
    finally:
        os.umask(before)
    assert [fs.stat(path).mode & 0o7777 for path in ("/f", "/d", "/script")] == [0o640, 0o750, 0o750]


def test_raw_files(fs: flakefs.Client) -> None:
    with fs.open("/raw", "w+b", buffering=0) as raw:
        assert isinstance(raw, RawFile)
        assert raw.write(CONTENT) == len(CONTENT)
        raw.sync()
        raw.seek(CHUNK - 5)
        buffer = bytearray(10)
        assert raw.readinto(buffer) == 10
        assert buffer == CONTENT[CHUNK - 5 : CHUNK + 5]
        assert raw.readable()
        assert raw.writable()
        assert raw.seekable()
        raw.seek(10, io.SEEK_END)
        assert raw.read(1) == b""
        raw.write(b"after a hole")
    assert fs.stat("/raw").size == len(CONTENT) + 10 + 12


def test_what_a_file_is_not_open_for(fs: flakefs.Client) -> None:
    """R3, and io.UnsupportedOperation."""
    fs.put(io.BytesIO(b"x"), "/f")
    with fs.open("/f", "rb") as file, pytest.raises(io.UnsupportedOperation):
        file.write(b"y")
    with fs.open("/f", "ab", buffering=0) as file, pytest.raises(io.UnsupportedOperation, match="not open for reading"):
        file.read(1)
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    with pytest.raises(ValueError, match="before the start"):
        fs.open("/f", "rb", buffering=0).seek(-1)


@pytest.mark.parametrize("mode", ["", "rw", "b", "rbt", "q", "r++", "rr"])
def test_bad_modes(fs: flakefs.Client, mode: str) -> None:
    with pytest.raises(UsageError, match="mode"):
        fs.open("/f", mode)


def test_large_content_through_small_buffers(fs: flakefs.Client) -> None:
    with fs.open("/f", "wb", buffering=1000) as file:
        for start in range(0, len(CONTENT), 777):
            file.write(CONTENT[start : start + 777])
    with fs.open("/f", "rb", buffering=3000) as file:
        assert b"".join(iter(lambda: file.read(999), b"")) == CONTENT


def test_put_and_get(fs: flakefs.Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    assert fs.put(source, "/f") == len(CONTENT)
    assert fs.get("/f", tmp_path / "target") == len(CONTENT)
    assert (tmp_path / "target").read_bytes() == CONTENT
    stream = io.BytesIO()
    assert fs.get("f", stream) == len(CONTENT)
    assert stream.getvalue() == CONTENT
    assert fs.put(io.BytesIO(b"short"), b"/f") == 5
    assert fs.stat("/f").size == 5
    with pytest.raises(IsDirectory):
        fs.put(tmp_path, "/f")
    with pytest.raises(FileNotFoundError):
        fs.put(tmp_path / "gone", "/f")
    with pytest.raises(NotFound, match="/gone"):
        fs.get("/gone", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_source_that_fails_is_the_callers_error(fs: flakefs.Client) -> None:
    """P1, and O1: the handle is released."""

    class Failing(io.RawIOBase):
        def read(self, _size: int = -1, /) -> bytes:
            raise OSError(5, "the tape is torn")

    with pytest.raises(OSError, match="the tape is torn"):
        fs.put(Failing(), "/f")  # type: ignore[arg-type]
    fs.put(io.BytesIO(b"fine"), "/f")


def test_chunks_are_the_content_with_its_places(fs: flakefs.Client) -> None:
    """B1, E1: what was just written is stored first."""
    fs.put(io.BytesIO(CONTENT), "/f")
    pieces = list(fs.chunks("/f"))
    assert b"".join(piece.data for piece in pieces) == CONTENT
    assert [piece.offset for piece in pieces] == [number * CHUNK for number in range(6)]
    for piece, known in zip(pieces, fs.stat("/f").chunks, strict=True):
        assert piece.hash == blake3(piece.data).digest()
        assert (piece.chunk, piece.volume) == (known.chunk, known.volume)
        assert (known.references, known.nodes) == (1, (1,))


def test_replication_of_files_and_folders(
    config: Config, servers: Servers, new_database: Callable[[], str], tmp_path: Path
) -> None:
    """RC1; a second node, on the same server."""
    with metadata_door(config, purpose="test") as (door, resolve):
        add_node(door, config.database, uri=servers.node_uri(1), node_database=new_database(), resolve=resolve)
    (tmp_path / "local").write_bytes(CONTENT)
    with flakefs.connect(config) as fs:
        fs.put(tmp_path / "local", "/plain")
        fs.put(tmp_path / "local", "/twice", replication="001")
        fs.put(io.BytesIO(CONTENT), "/stream", replication="001")
        with fs.open("/opened", "wb", replication="001") as file:
            file.write(CONTENT)
        assert [(piece.replication, piece.hash) for piece in fs.chunks("/twice")] == [
            ("001", piece.hash) for piece in fs.chunks("/plain")
        ]
        assert {(chunk.replication, len(chunk.nodes)) for chunk in fs.stat("/twice").chunks} == {("001", 2)}
        assert {(chunk.replication, len(chunk.nodes)) for chunk in fs.stat("/plain").chunks} == {("000", 1)}
        assert {chunk.references for chunk in fs.stat("/opened").chunks} == {3}, "shared within the code"
        assert fs.stat("/twice").checksum == fs.stat("/plain").checksum
        assert (fs.replication("/"), fs.replication("/twice")) == ("000", "001")
        fs.set_replication("/", "001")
        fs.mkdir("/folder")
        assert fs.replication("/folder") == "001"
        fs.set_replication("/", None)
        with pytest.raises(NoAttribute, match="/ has no replication code of its own"):
            fs.set_replication("/", None)
        with pytest.raises(InvalidArgument, match="further rack"):
            fs.put(tmp_path / "local", "/plain", replication="010")
        assert b"".join(piece.data for piece in fs.chunks("/plain")) == CONTENT, "RC1"
        with pytest.raises(InvalidArgument, match="is no replication code"):
            fs.open("/new", "x", replication="two")
        assert not fs.exists("/new")
        with pytest.raises(UsageError, match="nothing is written"):
            fs.open("/plain", replication="001")
        fs.symlink("nowhere", "/link")
        with pytest.raises(NotFound):
            fs.set_replication("/link", "001")


def test_chunks_of_holes_literals_and_many_segments(fs: flakefs.Client) -> None:
    """B1."""
    fs.put(io.BytesIO(b"tiny"), "/tiny")
    [piece] = fs.chunks("/tiny")
    assert (piece.offset, piece.data, piece.chunk) == (0, b"tiny", None)
    with fs.open("/sparse", "wb") as file:
        file.write(b"a" * 5000)
        file.seek(1 << 40)
        file.write(b"b" * 5000)
    found = list(fs.chunks("/sparse"))
    assert [(piece.offset, piece.data) for piece in found] == [(0, b"a" * 5000), (1 << 40, b"b" * 5000)]


def test_overwritten_parts_show_in_pieces(fs: flakefs.Client) -> None:
    fs.put(io.BytesIO(CONTENT), "/f")
    fs.sync()
    with fs.open("/f", "r+b") as file:
        file.seek(CHUNK + 100)
        file.write(b"X" * 50)
    expected = bytearray(CONTENT)
    expected[CHUNK + 100 : CHUNK + 150] = b"X" * 50
    content = bytearray(len(CONTENT))
    for piece in fs.chunks("/f"):
        content[piece.offset : piece.offset + len(piece.data)] = piece.data
    assert content == expected


def test_names(fs: flakefs.Client) -> None:
    """Among others O2: writing through a symlink."""
    fs.mkdir("/a/b/c", parents=True)
    fs.mkdir("/a/b/c", parents=True)
    with pytest.raises(Exists):
        fs.mkdir("/a")
    fs.put(io.BytesIO(b"1"), "/a/one")
    fs.symlink("one", "/a/link")
    fs.symlink("loop", "/loop")
    assert fs.listdir("/a") == ["b", "link", "one"]
    assert fs.exists("/a/link")
    assert not fs.exists("/a/two")
    assert fs.stat("/a/link").kind == "file"
    assert fs.stat("/a/link", follow=False).target == b"one"
    with pytest.raises(TooManySymlinks):
        fs.open("/loop", "wb")
    with fs.open("/a/link", "wb") as file:
        file.write(b"through the link")
    assert fs.stat("/a/one").size == 16
    fs.rename("/a/one", "/a/two")
    with pytest.raises(Exists):
        fs.rename("/a/two", "/a/link", replace=False)
    with pytest.raises(NotEmpty):
        fs.remove("/a")
    with pytest.raises(NotDirectory):
        fs.listdir("/a/two")
    with pytest.raises(IsDirectory):
        fs.open("/a", "wb")
    fs.remove("/a", recursive=True)
    assert fs.listdir() == ["loop"]


def test_names_of_any_bytes(fs: flakefs.Client) -> None:
    """R1."""
    name = b"/odd \xff\xfe\n\xc3\xa4"
    fs.put(io.BytesIO(b"x"), name)
    assert fs.listdir("/") == [os.fsdecode(name[1:])]
    assert fs.exists(os.fsdecode(name))
    assert [entry.path for entry in fs.find(name=None, kind="file")] == [name]


def test_a_folder_of_many_names_is_read_in_pages(fs: flakefs.Client) -> None:
    """Q1."""
    fs.mkdir("/many")
    for number in range(2500):
        fs.put(io.BytesIO(b""), f"/many/{number}")
    assert {entry.name for entry in fs.scandir("/many")} == {str(number) for number in range(2500)}
    assert sum(1 for _ in fs.find("/many", kind="file")) == 2500


def test_find_sees_what_was_just_written(fs: flakefs.Client) -> None:
    fs.put(io.BytesIO(CONTENT), "/big.bin")
    fs.put(io.BytesIO(b"x"), "/small.bin")
    assert [entry.path for entry in fs.find(name="*.bin", size_min=1000)] == [b"/big.bin"]
    with pytest.raises(UsageError, match="unknown"):
        fs.find(kind="shoe")
    with pytest.raises(NotFound):
        fs.find("/gone")


def test_any_number_of_writers_and_readers(fs: flakefs.Client, config: Config) -> None:
    """C5, C6."""
    fs.put(io.BytesIO(b"seen"), "/f")
    fs.sync()
    with flakefs.connect(config) as second:
        assert second.open("/f").read() == "seen"
        second.put(io.BytesIO(b"from the second"), "/h")
        assert fs.open("/h").read() == "from the second"
        second.remove("/h")
        with pytest.raises(NotFound):
            fs.remove("/h")
    with flakefs.connect(config, read_only=True) as reader, flakefs.connect(config, read_only=True) as other:
        assert reader.open("/f").read() == "seen"
        assert other.listdir() == ["f"]
        with pytest.raises(ReadOnly):
            reader.put(io.BytesIO(b"x"), "/g")
        with pytest.raises(ReadOnly):
            reader.remove("/f")
    fs.put(io.BytesIO(b"still writing"), "/g")


def test_everything_is_there_after_close(config: Config) -> None:
    """C7."""
    with flakefs.connect(config) as fs:
        fs.put(io.BytesIO(CONTENT), "/f")
    with flakefs.connect(config, read_only=True) as fs:
        stream = io.BytesIO()
        fs.get("/f", stream)
        assert stream.getvalue() == CONTENT


def test_after_close(config: Config) -> None:
    """P3."""
    fs = flakefs.connect(config)
    fs.put(io.BytesIO(b"x"), "/f")
    fs.close()
    fs.close()
    with pytest.raises(BadHandle, match="closed"):
        fs.listdir()


def test_a_file_that_nobody_closed(config: Config) -> None:
    with flakefs.connect(config) as fs:
        file = fs.open("/f", "wb", buffering=0)
        file.write(b"kept")
        del file
        gc.collect()
        assert fs.stat("/f").size == 4
        assert fs.run(_handles) == 0


async def _handles(fs: FileSystem) -> int:
    return fs.statistics().handles


def test_no_file_system_there(servers: Servers, database: str) -> None:
    with pytest.raises(NotFormatted, match=database):
        flakefs.connect(Config(metadata_uri=servers.metadata_uri, database=database))


def test_many_threads_share_a_client(fs: flakefs.Client) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                path = f"/{number}-{turn}"
                fs.put(io.BytesIO(path.encode() * 1000), path)
                with fs.open(path, "rb") as file:
                    assert file.read() == path.encode() * 1000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(fs.listdir()) == 120

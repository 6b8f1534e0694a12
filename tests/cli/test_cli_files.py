"""put, get, cat, ls, stat, rm, mkdir, mv, find: what cp and its friends would do, and the sentence when they cannot."""

from __future__ import annotations

import contextlib
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from flakefs.api import connect
from tests.cli.conftest import Cli

CHUNK = 64 * 1024
CONTENT = bytes(range(256)) * 1000  # four chunks, the last one short


def tree_of(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: type, mode, time, content, target."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content = path.read_bytes() if stat.S_ISREG(kind) else os.readlink(path) if path.is_symlink() else None
        mode = None if path.is_symlink() else stat.S_IMODE(status.st_mode)
        found[str(path.relative_to(top))] = (kind, mode, status.st_mtime_ns, status.st_nlink, content)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders, files of several sizes, symlinks, a hard link, a fifo, an odd name, odd modes and times."""
    top = tmp_path / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "none").write_bytes(b"")
    (top / "small.txt").write_text("small")
    (top / "big.bin").write_bytes(CONTENT)
    (top / "sub" / "script.sh").write_text("#!/bin/sh\n")
    (top / "sub" / "script.sh").chmod(0o751)
    (top / "sub" / "deep" / "link").symlink_to("../../small.txt")
    (top / "sub" / "dangling").symlink_to("/nowhere/at/all")
    (top / "sub" / "outside").symlink_to(tmp_path)
    os.link(top / "small.txt", top / "sub" / "hard")
    os.mkfifo(top / "fifo", 0o640)
    Path(os.fsdecode(os.fsencode(top) + b"/odd \xff\n name")).write_text("odd")
    (top / "sub").chmod(0o705)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18, 10**18 + number), follow_symlinks=False)
    return top


def test_a_tree_there_and_back_with_everything_kept(cli: Cli, tree: Path, tmp_path: Path) -> None:
    """Y2, Y3, U1, U2, W1."""
    cli.ok("put", "-a", tree, "/")
    assert cli.ok("ls", "/") == "tree\n"
    cli.ok("get", "-a", "/tree", tmp_path / "back")
    assert tree_of(tmp_path / "back") == tree_of(tree)
    assert (tmp_path / "back" / "sub" / "hard").stat().st_ino == (tmp_path / "back" / "small.txt").stat().st_ino
    assert "no damage" in cli.ok("fsck", "--deep")


def test_without_preserve_times_are_now_and_modes_less_the_umask(cli: Cli, tree: Path, tmp_path: Path) -> None:
    """Y3."""
    (tree / "small.txt").chmod(0o4666)
    cli.ok("put", "-r", tree, "/copy")
    facts = {entry["path"]: entry for entry in cli.json("ls", "-R", "/copy")}
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(facts["/copy/small.txt"]["mode"]) == 0o666 & ~umask
    assert facts["/copy/small.txt"]["mtime"] > 10**18 + 10**17
    assert facts["/copy/small.txt"]["links"] == 1
    assert facts["/copy/sub/dangling"]["target"] == "/nowhere/at/all"
    assert facts["/copy/fifo"]["kind"] == "fifo"


def test_put_places_files_as_cp_does(cli: Cli, tmp_path: Path) -> None:
    """Y1."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    cli.ok("put", one, "/named")
    assert cli.ok("cat", "/named") == "1"
    cli.ok("mkdir", "/folder")
    cli.ok("put", one, two, "folder")  # a missing leading slash is accepted
    assert cli.ok("ls", "/folder") == "one\ntwo\n"
    cli.ok("put", two, "/named")
    assert cli.ok("cat", "/named") == "2"
    cli.ok("put", "-n", one, "/named")
    assert cli.ok("cat", "/named") == "2"
    assert "is not a folder, and several files" in cli.fails(2, "put", one, two, "/named")
    assert "is not a folder; make it first" in cli.fails(2, "put", one, "/fresh/")
    assert "left out; -r copies it" in cli.fails(1, "put", tmp_path, "/folder")
    assert "cannot be read: No such file" in cli.fails(1, "put", tmp_path / "gone", "/folder")
    assert "there is no /missing" in cli.fails(1, "put", one, "/missing/x")
    assert "a folder is there" in cli.fails(1, "put", "-T", one, "/folder")


def test_one_file_that_fails_does_not_stop_the_others(cli: Cli, tmp_path: Path) -> None:
    """Y4."""
    (tmp_path / "good").write_text("good")
    assert "gone cannot be read" in cli.fails(1, "put", tmp_path / "gone", tmp_path / "good", "/")
    assert cli.ok("cat", "/good") == "good"
    (tmp_path / "out").mkdir()
    assert "there is no /nothing" in cli.fails(1, "get", "/nothing", "/good", tmp_path / "out")
    assert (tmp_path / "out" / "good").read_text() == "good"


def test_streams(cli: Cli) -> None:
    cli.ok("put", "-", "/stream", input=CONTENT)
    assert cli.run("cat", "/stream").stdout_bytes == CONTENT
    assert cli.run("get", "/stream", "-").stdout_bytes == CONTENT
    assert cli.run("cat", "/stream", "/stream").stdout_bytes == CONTENT * 2
    assert "needs the path of a file" in cli.fails(2, "put", "-", "/", input=b"x")
    assert '"-" must be the only SOURCE' in cli.fails(2, "put", "-", "x", "/y", input=b"x")


def test_get_places_files_as_cp_does(cli: Cli, tmp_path: Path) -> None:
    cli.ok("put", "-", "/file", input=b"content")
    cli.ok("mkdir", "/folder")
    cli.ok("get", "/file", tmp_path / "named")
    assert (tmp_path / "named").read_bytes() == b"content"
    (tmp_path / "there").mkdir()
    cli.ok("get", "file", tmp_path / "there")
    assert (tmp_path / "there" / "file").read_bytes() == b"content"
    assert "left out; -r copies it" in cli.fails(1, "get", "/folder", tmp_path)
    assert "cannot be written: No such file" in cli.fails(1, "get", "/file", tmp_path / "no" / "where")
    assert "several files cannot become one" in cli.fails(2, "get", "/file", "/folder", tmp_path / "named")


def test_get_does_not_write_through_a_symlink_in_a_tree(cli: Cli, tmp_path: Path) -> None:
    """W2."""
    cli.ok("mkdir", "/t")
    cli.ok("put", "-", "/t/f", input=b"new")
    (tmp_path / "victim").write_text("old")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "f").symlink_to(tmp_path / "victim")
    cli.ok("get", "-r", "-T", "/t", tmp_path / "t")
    assert (tmp_path / "victim").read_text() == "old"
    assert (tmp_path / "t" / "f").read_text() == "new"
    assert not (tmp_path / "t" / "f").is_symlink()


def test_holes_stay_holes(cli: Cli, tmp_path: Path) -> None:
    """T2."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.write(b"start")
        file.seek(1 << 30)
        file.write(b"middle")
        file.truncate(3 << 30)
    cli.ok("put", sparse, "/sparse")
    [facts] = cli.json("stat", "/sparse")
    assert facts["size"] == 3 << 30
    assert facts["used"] < 1 << 20
    cli.ok("get", "/sparse", tmp_path / "back")
    status = (tmp_path / "back").stat()
    assert status.st_size == 3 << 30
    assert status.st_blocks * 512 < 1 << 20
    with (tmp_path / "back").open("rb") as file:
        assert file.read(5) == b"start"
        file.seek(1 << 30)
        assert file.read(6) == b"middle"


def test_stat_says_everything(cli: Cli, tmp_path: Path) -> None:
    """E2, J1."""
    cli.ok("put", "-", "/a.tar", input=CONTENT)
    cli.ok("put", "-", "/b.tar", input=CONTENT)
    cli.ok("put", "-", "/small.JPG", input=b"tiny")
    [facts] = cli.json("stat", "/a.tar")
    assert facts["kind"] == "file"
    assert facts["size"] == len(CONTENT)
    assert facts["extension"] == "tar"
    assert facts["mime_type"] == "application/x-tar"
    assert facts["checksum_of"] == "map"
    assert len(facts["chunks"]) == 4
    for number, chunk in enumerate(facts["chunks"]):
        start = number * CHUNK
        assert chunk["offset"] == start
        assert chunk["hash"] == blake3(CONTENT[start : start + CHUNK]).hexdigest()
        assert chunk["nodes"] == [1]
        assert chunk["volume"] >= 1
        assert len(chunk["chunk"]) == 24
    assert [chunk["references"] for chunk in facts["chunks"]] == [6, 6, 6, 2]
    [other] = cli.json("stat", "/b.tar")
    assert other["checksum"] == facts["checksum"]
    [small] = cli.json("stat", "/small.JPG")
    assert (small["literal"], small["chunks"], small["checksum_of"]) == (True, [], "content")
    assert small["checksum"] == blake3(b"tiny").hexdigest()
    assert small["mime_type"] == "image/jpeg"
    text = cli.ok("stat", "--chunks", "1", "/a.tar")
    for word in ("File id", "Checksum", "BLAKE3 of the chunk map", "references", "application/x-tar", "and 3 more"):
        assert word in text
    assert "the content lies in the inode document" in cli.ok("stat", "/small.JPG")
    assert cli.json("stat", "/")[0]["kind"] == "folder"
    assert cli.fails(1, "stat", "/nothing") == "flakefs: there is no /nothing"


def test_ls(cli: Cli) -> None:
    cli.ok("mkdir", "-p", "/d/e")
    cli.ok("put", "-", "/d/f", input=b"12345")
    cli.ok("put", "-", "/d/.hidden", input=b"")
    assert cli.ok("ls", "/d") == "e\nf\n"
    assert cli.ok("ls", "-a", "/d") == ".hidden\ne\nf\n"
    assert cli.ok("ls", "-d", "/d") == "/d\n"
    assert cli.ok("ls", "/d/f") == "/d/f\n"
    assert cli.ok("ls", "-R") == "/:\nd\n\n/d:\ne\nf\n\n/d/e:\n"
    long = cli.ok("ls", "-l", "/d").splitlines()
    assert long[0].startswith("drwx")
    assert long[1].split()[4] == "5"
    assert [entry["path"] for entry in cli.json("ls", "/d")] == ["/d/e", "/d/f"]
    assert cli.fails(1, "ls", "/gone") == "flakefs: there is no /gone"


def test_mkdir(cli: Cli) -> None:
    assert cli.ok("mkdir", "-v", "/a") == "/a\n"
    assert cli.fails(1, "mkdir", "/a") == "flakefs: /a exists already"
    assert "its folder does not exist; --parents" in cli.fails(1, "mkdir", "/x/y/z")
    cli.ok("mkdir", "-p", "-m", "1777", "/x/y/z", "/a")
    assert stat.S_IMODE(cli.json("stat", "/x/y/z")[0]["mode"]) == 0o1777
    cli.ok("put", "-", "/file", input=b"")
    assert "/file exists already" in cli.fails(1, "mkdir", "-p", "/file")
    assert "is not a folder" in cli.fails(1, "mkdir", "/file/below")


def test_rm(cli: Cli) -> None:
    cli.ok("mkdir", "-p", "/a/b/c")
    for name in ("/a/1", "/a/b/2", "/a/b/c/3", "/top"):
        cli.ok("put", "-", name, input=CONTENT)
    assert cli.fails(1, "rm", "/a") == "flakefs: /a is a folder; -r removes it with everything in it"
    assert "no such file" in cli.fails(1, "rm", "/gone", "/top")
    assert cli.ok("ls") == "a\n"
    cli.ok("rm", "-f", "/gone", "/not/there")
    assert set(cli.ok("rm", "-rv", "/a").split()) == {"/a", "/a/1", "/a/b", "/a/b/2", "/a/b/c", "/a/b/c/3"}
    assert cli.ok("ls") == ""
    assert cli.fails(1, "rm", "-r", "/")
    status = cli.json("status")
    assert (status["chunks"], status["stored_bytes"]) == (0, 0)


def test_mv(cli: Cli) -> None:
    cli.ok("mkdir", "/d", "/full")
    cli.ok("put", "-", "/one", input=b"1")
    cli.ok("put", "-", "/full/x", input=b"x")
    cli.ok("mv", "/one", "/two")
    assert cli.ok("mv", "-v", "two", "d") == "/d/two\n"
    assert cli.ok("cat", "/d/two") == "1"
    cli.ok("put", "-", "/three", input=b"3")
    cli.ok("mv", "-n", "/three", "/d/two")
    assert cli.ok("cat", "/d/two") == "1"
    cli.ok("mv", "/three", "/d/two")
    assert cli.ok("cat", "/d/two") == "3"
    assert "no such file" in cli.fails(1, "mv", "/gone", "/d")
    assert "the folder there is not empty" in cli.fails(1, "mv", "-T", "/d", "/full")
    assert "cannot be moved into itself" in cli.fails(1, "mv", "-T", "/d", "/d/below")
    assert "is not a folder" in cli.fails(2, "mv", "/d", "/full", "/full/x")
    assert "its folder does not exist" in cli.fails(1, "mv", "/d", "/no/where")
    assert "/d is a folder" in cli.fails(1, "mv", "-T", "/full/x", "/d")


def test_find_asks_the_database(cli: Cli) -> None:
    cli.ok("mkdir", "-p", "/a/photos", "/b")
    cli.ok("put", "-", "/a/photos/x.jpg", input=CONTENT)
    cli.ok("put", "-", "/a/y.jpg", input=b"small")
    cli.ok("put", "-", "/b/z.JPG", input=b"")

    def found(*arguments: str) -> set[str]:
        return set(cli.ok("find", *arguments).split())

    assert found() == {"/a", "/a/photos", "/a/photos/x.jpg", "/a/y.jpg", "/b", "/b/z.JPG"}
    assert found("--name", "*.jpg") == {"/a/photos/x.jpg", "/a/y.jpg"}
    assert found("/a/photos", "--name", "*.jpg") == {"/a/photos/x.jpg"}
    assert found("--type", "d") == {"/a", "/a/photos", "/b"}
    assert found("--size", "+100K") == {"/a/photos/x.jpg"}
    assert found("--size", "+1", "--size", "-10", "--type", "f") == {"/a/y.jpg"}
    assert found("--size", "0", "--type", "f") == {"/b/z.JPG"}
    assert found("--newer", "1h", "--name", "?.jpg") == {"/a/photos/x.jpg", "/a/y.jpg"}
    assert found("--older", "1h", "--type", "f") == set()
    assert found("--older", "2000-01-01") == set()
    assert cli.ok("find", "/b", "-0", "--type", "f") == "/b/z.JPG\0"
    assert [entry["size"] for entry in cli.json("find", "--name", "x.*")] == [len(CONTENT)]
    assert cli.fails(1, "find", "/gone") == "flakefs: there is no /gone"


@contextmanager
def holder(cli: Cli) -> Iterator[None]:
    with connect(cli.config, purpose="the test itself"):
        yield


def test_writers_work_beside_each_other(cli: Cli) -> None:
    cli.ok("put", "-", "/f", input=b"before")
    with holder(cli):
        cli.ok("put", "-", "/f", input=b"x")
        cli.ok("mkdir", "/d")
        cli.ok("mv", "/f", "/d/g")
        assert cli.ok("cat", "/d/g") == "x"
        assert cli.ok("ls", "/d") == "g\n"
        cli.ok("rm", "/d/g")
        assert "is in use by" in cli.fails(1, "format", "--force", "--confirm", cli.database)
    cli.ok("put", "-", "/f", input=b"after")
    assert cli.ok("cat", "/f") == "after"


def test_head_ends_cat_without_a_word(cli: Cli, tmp_path: Path) -> None:
    """L3."""
    big = tmp_path / "big"
    with big.open("wb") as file:
        for number in range(512):
            file.write(number.to_bytes(2, "big") * (CHUNK // 2))
    cli.ok("put", big, "/big")
    command = f"{sys.executable} -m flakefs --config {cli.config} cat /big | head -c1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    assert done.stdout == b"\x001\n"


def test_pipes_and_devices(cli: Cli, tmp_path: Path) -> None:
    """T3."""
    run = f"{sys.executable} -m flakefs --config {cli.config}"
    command = f"{run} put <(echo from a pipe) /piped && {run} get /piped /dev/stdout && {run} get /piped /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "from a pipe\n"
    assert done.stderr == "flakefs: /dev/full: No space left on device\n"
    assert done.returncode == 1


def test_a_progress_bar_appears_on_a_terminal_only(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(CONTENT)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "flakefs", "--config", str(cli.config), "put", str(tmp_path / "big"), "/"]
    xterm = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(command, stderr=follower, stdout=subprocess.PIPE, timeout=60, env=xterm)
    os.close(follower)
    said = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end open any more
        while part := os.read(leader, 65536):
            said += part
    os.close(leader)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"KiB" in said
    assert cli.ok("put", tmp_path / "big", "/again") == ""


def test_a_reader_of_a_listing_that_goes_away(cli: Cli) -> None:
    cli.ok("mkdir", *[f"/folder{number}" for number in range(3000)])
    run = f"{sys.executable} -m flakefs --config {cli.config}"
    for words in ("ls", "find", "ls -l"):
        command = f"{run} {words} | head -n1 >/dev/null; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        assert done.stdout in ("0\n", "1\n")


def test_put_over_what_is_there(cli: Cli, tree: Path) -> None:
    cli.ok("put", "-a", tree, "/t")
    cli.ok("put", "-a", "-T", tree, "/t")
    assert cli.json("status")["names"] == len(list(tree.rglob("*"))) + 2
    cli.ok("rm", "-r", "/t/sub")
    cli.ok("put", "-", "/t/sub", input=b"a file in the way")
    message = cli.fails(1, "put", "-a", "-T", tree, "/t")
    assert message == "flakefs: /t/sub cannot be written: a file is there, not a folder"
    assert "no damage" in cli.ok("fsck")

"""The sessions of docs/commands.md: every command is run, in order, and prints what the page shows.

What differs from run to run (ids, times, hashes, sizes of disks, addresses) is masked on both sides. Run this file as a
program to write today's output into the page: python tests/cli/test_cli_docs.py
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from flakefs.cli.root import root
from flakefs.mongo.clients import redacted
from flakefs.testing.servers import Servers

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?( [+-]\d{4})?"), "TIME"),
    (re.compile(r"\d{19}"), "NS"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{24}\b"), "ID"),
    (re.compile(r"mongodb://\S+"), "URI"),
    (re.compile(r"\b\d+ B\b"), "SIZE"),
    (re.compile(r"(File id|\"file_id\":) +\d+"), "NUMBER"),
    (re.compile(r"MongoDB \d+\.\d+\.\d+"), "MongoDB"),
    (re.compile(r"Configuration .*"), "Configuration"),
    (re.compile(r"\d+\.\d [GTP]iB of .*free|\d+\.\d [GTP]iB +\d+\.\d [GTP]iB$", re.MULTILINE), "DISK"),
    (re.compile(r"\(process \d+, running since TIME\)"), "(process)"),
    (re.compile(r"\b(root|\w+) +(root|\w+)( +\d+ TIME)"), r"USER GROUP\3"),
    (re.compile(r"Owner .*"), "Owner"),
    (re.compile(r"(\"uid\"|\"gid\"): \d+"), r"\1"),
    (re.compile(r"[ \t]+"), " "),
)


def _lines(text: str) -> list[str]:
    """Sorted: the order of a database is nobody's promise."""
    return sorted(masked(text).splitlines())


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return text.strip()


class Session:
    """Runs the commands of the page in a folder of its own."""

    def __init__(self, folder: Path, servers: Servers, database: str, node_database: str, second: str) -> None:
        self.folder = folder
        self.servers = servers
        self.real = {"mongodb://store2.example/more_chunks": f"{servers.node_uri(1).rstrip('/')}/{second}"}
        (folder / "flakefs.conf").write_text(
            f'[metadata]\nuri = "{servers.metadata_uri}"\ndatabase = "{database}"\n[engine]\nreserve_bytes = 0\n'
        )
        self.first = ["--node", servers.node_uri(1), "--node-database", node_database]
        self.names = {database: "flakefs", node_database: "flakefs_chunks", second: "more_chunks"}
        (folder / "photos" / "2024").mkdir(parents=True)
        (folder / "photos" / "big.raw").write_bytes(bytes(range(256)) * 10_000)
        (folder / "photos" / "small.jpg").write_bytes(b"a small picture")
        (folder / "photos" / "2024" / "copy.raw").write_bytes(bytes(range(256)) * 10_000)

    def run(self, line: str) -> str:
        """What a command prints, stdout first, with the names of the page."""
        for shown, real in self.real.items():
            line = line.replace(shown, real)
        before, umask = os.getcwd(), os.umask(0o022)
        os.chdir(self.folder)
        try:
            text = self._piped(line) if "|" in line else self._plain(line)
        finally:
            os.chdir(before)
            os.umask(umask)
        assert "Traceback" not in text, text
        for real, shown in self.names.items():
            text = text.replace(real, shown)
        return text

    def _plain(self, line: str) -> str:
        """In this process: starting Python thirty times takes long on a busy machine."""
        program, *words = shlex.split(line)
        assert program == "flakefs"
        if words == ["format"]:
            words += self.first
        done = CliRunner().invoke(root, words, prog_name="flakefs")
        return done.stdout + done.stderr

    def _piped(self, line: str) -> str:
        line = line.replace("| flakefs", f"| {sys.executable} -m flakefs")
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100)
        return done.stdout + done.stderr


def commands(block: str) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of a block."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield line, output


@pytest.fixture
def session(
    servers: Servers, new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Session:
    monkeypatch.delenv("FLAKEFS_CONFIG", raising=False)
    return Session(tmp_path, servers, new_database(), new_database(), new_database())


def test_the_page_shows_what_the_commands_print(session: Session) -> None:
    count = 0
    for block in BLOCK.findall(PAGE.read_text()):
        for line, output in commands(block):
            assert _lines(session.run(line)) == _lines(output), f"{line}: run this file as a program to renew the page"
            count += 1
    assert count > 25


def _renew(session: Session) -> None:
    """Write what the commands print now into the page, with addresses that mean something to its readers."""
    shown = {
        next(iter(session.real.values())): "mongodb://store2.example/more_chunks",
        session.servers.node_uri(1): "mongodb://store1.example/",
        session.servers.metadata_uri: "mongodb://meta.example/?replicaSet=rs0",
    }
    readable = {redacted(real): name for real, name in shown.items()}
    for real, name in list(readable.items()):
        for database, page in session.names.items():
            readable[real.replace(database, page)] = name

    def fill(match: re.Match[str]) -> str:
        parts = []
        for line, _ in commands(match[1]):
            output = session.run(line).replace(str(session.folder), "/home/me")
            for real in sorted(readable, key=len, reverse=True):
                pad = len(real) if "  " in output.partition(real)[2].partition("\n")[0] else 0  # keep columns
                output = output.replace(real, readable[real].ljust(pad))
            parts.append(f"$ {line}\n{output}")
        return "```console\n" + "".join(parts) + "```"

    PAGE.write_text(BLOCK.sub(fill, PAGE.read_text()))


if __name__ == "__main__":
    import tempfile

    with Servers() as running, tempfile.TemporaryDirectory() as scratch:
        assert running.metadata.pid
        assert running.node(1).pid
        _renew(Session(Path(scratch), running, "flakefs", "flakefs_chunks", "more_chunks"))

"""The command line in this process, over the test servers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flakefs.cli.root import root
from flakefs.testing.servers import Servers


class Cli:
    """Runs commands with a configuration of its own; `ok` and `fails` check the status."""

    def __init__(self, config: Path, servers: Servers, node_database: str) -> None:
        self.config = config
        self.servers = servers
        self.node_database = node_database
        self.database = ""

    def run(self, *arguments: str | bytes | Path, input: bytes | str | None = None) -> Result:
        words = ["--config", str(self.config), *(os.fsdecode(argument) for argument in arguments)]
        result = CliRunner().invoke(root, words, input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.stderr
        return result

    def ok(self, *arguments: str | bytes | Path, input: bytes | str | None = None) -> str:
        """stdout of a command that succeeds and complains about nothing."""
        result = self.run(*arguments, input=input)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    def json(self, *arguments: str | bytes | Path) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def fails(self, status: int, *arguments: str | bytes | Path, input: bytes | str | None = None) -> str:
        """The last line of stderr of a command that ends with *status*."""
        result = self.run(*arguments, input=input)
        assert result.exit_code == status, (result.stdout, result.stderr)
        return result.stderr.strip().splitlines()[-1] if result.stderr.strip() else ""

    def format(self, *options: str) -> None:
        self.ok("format", "--node", self.servers.node_uri(1), "--node-database", self.node_database, *options)


@pytest.fixture
def bare(servers: Servers, new_database: Callable[[], str], tmp_path: Path) -> Cli:
    """A configuration whose database holds no file system yet."""
    cli = Cli(tmp_path / "test.conf", servers, new_database())
    cli.database = new_database()
    cli.config.write_text(
        f'[metadata]\nuri = "{servers.metadata_uri}"\ndatabase = "{cli.database}"\n[engine]\nreserve_bytes = 0\n'
    )
    return cli


@pytest.fixture
def cli(bare: Cli) -> Cli:
    """A file system with the smallest chunks."""
    bare.format("--chunk-size", "64K")
    return bare

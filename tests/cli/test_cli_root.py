"""Help, version, unknown commands, configuration errors, and what is never shown: a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import flakefs
from flakefs.cli import cluster, nodes, replication, root
from flakefs.cli.lazy import LazyGroup
from flakefs.errors import ChunkCorrupt, ConfigError, FlakeError, NotFound, UsageError

TOP = Path(__file__).parents[2]


def commands() -> list[tuple[str, ...]]:
    groups = {"nodes": nodes.COMMANDS, "cluster": cluster.COMMANDS, "replication": replication.COMMANDS}
    return [(name,) for name in root.COMMANDS] + [(group, name) for group, names in groups.items() for name in names]


def found(path: tuple[str, ...]) -> click.Command:
    command: click.Command = root.root
    for name in path:
        assert isinstance(command, LazyGroup)
        child = command.get_command(click.Context(command), name)
        assert child is not None
        command = child
    return command


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_of_every_command_has_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(root.root, [*path, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"flakefs {' '.join(path)}" in result.stdout
    for parameter in found(path).params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_the_table_says_what_the_command_says(path: tuple[str, ...]) -> None:
    """G1."""
    group = found(path[:-1])
    assert isinstance(group, LazyGroup)
    words = group.lazy[path[-1]].help
    first = (found(path).help or "").split("\n\n")[0]
    assert words
    assert words[0].isupper()
    assert words.endswith(".")
    assert set(re.findall(r"\w{4,}", words.lower())) & set(re.findall(r"\w{4,}", first.lower())), (words, first)


def test_listing_the_commands_imports_nothing_heavy() -> None:
    """G1."""
    code = (
        "import sys\nfrom flakefs.cli.root import root\n"
        "try:\n    root.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('pymongo', 'trio', 'rich', 'flakefs.config', 'flakefs.vfs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout


def test_version_is_that_of_the_package() -> None:
    said = CliRunner().invoke(root.root, ["--version"]).stdout
    assert said == f"flakefs {flakefs.__version__}\n"
    assert tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"] == flakefs.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stauts"], "there is no command 'stauts'; did you mean 'status'?"),
        (["qqqq"], "there is no command 'qqqq'; root --help lists the commands"),
        (["nodes", "lst"], "there is no command 'lst'; did you mean 'list'?"),
        (["ls", "--nonsense"], "No such option"),
        (["put", "one"], "a SOURCE and a TARGET are needed"),
        (["mv", "one"], "mv needs a SOURCE and a TARGET"),
        (["format", "--chunk-size", "100K"], "the chunk size 102400 cannot be"),
        (["format", "--chunk-size", "much"], "'much' is no size"),
        (["format", "--codec", "gzip"], "gzip"),
        (["mkdir", "-m", "999", "/a"], "'999' is no mode"),
        (["find", "--newer", "yesterday"], "'yesterday' is no time"),
        (["find", "--newer", "3000-01-01"], "'3000-01-01' is no time"),
        (["find", "--older", "0001-01-01"], "'0001-01-01' is no time"),
        (["find", "--newer", "999999999d"], "'999999999d' is no time"),
        (["find", "--size", "+99999P"], "'99999P' is no size"),
        (["gc", "--grace", "9999999999d"], "'9999999999d' is no span of time"),
        (["nodes", "add", "mongodb://store/x", "--id", "99999999999999999999"], "--id"),
        (["nodes", "set", "1", "--rack", "r\udcff"], "'r\\udcff' is not UTF-8"),
        (["cat", ""], "a path cannot be empty"),
    ],
)
def test_usage_errors_end_with_status_2(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    result = CliRunner().invoke(root.root, words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_bad_configuration_ends_with_status_2(tmp_path: Path) -> None:
    path = tmp_path / "f.conf"
    path.write_text("[engine]\ntreads = 1\n")
    result = CliRunner().invoke(root.root, ["--config", str(path), "ls"])
    assert result.exit_code == 2
    assert result.stderr == f"flakefs: {path}: [engine] has no key 'treads'; did you mean 'threads'?\n"


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (NotFound("there is no /x"), 1, "there is no /x"),
        (ChunkCorrupt("chunk 5 is damaged"), 1, "chunk 5 is damaged"),
        (UsageError("not so"), 2, "not so"),
        (ConfigError("f.conf: no"), 2, "f.conf: no"),
        (PermissionError(13, "Permission denied", "/root/x"), 1, "/root/x: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ExceptionGroup("g", [ValueError("v"), NotFound("in a group")]), 1, "in a group"),
        (RuntimeError("boom"), 1, "unexpected RuntimeError: boom; this is a bug in FlakeFS"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_every_error_is_one_sentence(
    error: BaseException, status: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L1, L2."""

    @click.command("ls")
    def failing() -> None:
        raise error

    monkeypatch.setattr("flakefs.cli.reading.ls_command", failing)
    result = CliRunner().invoke(root.root, ["ls"])
    assert result.exit_code == status
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == bool(sentence)


@pytest.mark.logs
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("ls")
    def failing() -> None:
        raise FlakeError("the reason")

    monkeypatch.setattr("flakefs.cli.reading.ls_command", failing)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    result = CliRunner().invoke(root.root, ["--debug", "ls"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("flakefs: the reason\n")

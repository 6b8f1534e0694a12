"""flakefs.conf: where it is looked for, what is refused and in which words, and that the sample is the defaults."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from pathlib import Path
from typing import get_type_hints

import pytest

from flakefs.config import Config, find, load, parse_size
from flakefs.config.model import METADATA_KEYS, SECTIONS
from flakefs.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "flakefs.conf"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and a home without any configuration."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FLAKEFS_CONFIG", raising=False)
    return work


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(path: Path, text: str) -> str:
    written(path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def keys_of_sample() -> dict[str, set[str]]:
    return {section: set(table) for section, table in tomllib.loads(SAMPLE.read_text()).items()}


def test_the_sample_is_the_defaults() -> None:
    assert dataclasses.replace(load(SAMPLE), path="") == Config()


def test_the_sample_has_every_key_and_no_other() -> None:
    hints = get_type_hints(Config)
    expected = {section: {field.name for field in dataclasses.fields(hints[section])} for section in SECTIONS}
    expected["metadata"] = set(METADATA_KEYS)
    assert keys_of_sample() == expected
    assert {field.name for field in dataclasses.fields(Config)} == {*SECTIONS, *METADATA_KEYS.values(), "path"}


def test_every_key_of_the_sample_has_a_comment() -> None:
    lines = SAMPLE.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+ =", line):
            assert lines[number - 1].startswith("# "), f"{line} has no comment above it"


def test_without_any_file_it_is_embedded() -> None:
    if find() is None:  # a machine may have one in /etc
        assert load() == Config()
    assert Config().metadata_uri == ""


def test_the_first_place_that_has_a_file_decides(
    tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1."""

    def text(name: str) -> str:
        return f'[metadata]\ndatabase = "{name}"\n'

    written(tmp_path / "xdg" / "flakefs" / "flakefs.conf", text("user"))
    assert load().database == "user"
    written(nowhere / "flakefs.conf", text("here"))
    assert load().database == "here"
    monkeypatch.setenv("FLAKEFS_CONFIG", str(written(tmp_path / "env.conf", text("environment"))))
    assert load().database == "environment"
    option = written(tmp_path / "option.conf", text("option"))
    assert load(option).database == "option"
    assert load(option).path == str(option)


@pytest.mark.parametrize("source", ["--config", "FLAKEFS_CONFIG"])
def test_a_named_file_must_be_there(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C2."""
    if source == "FLAKEFS_CONFIG":
        monkeypatch.setenv(source, "/nowhere/flakefs.conf")
    with pytest.raises(ConfigError, match=f"/nowhere/flakefs.conf named by {source} is not there"):
        load("/nowhere/flakefs.conf" if source == "--config" else None)


@pytest.mark.parametrize("source", ["--config", "FLAKEFS_CONFIG"])
def test_a_named_file_is_no_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C2."""
    if source == "FLAKEFS_CONFIG":
        monkeypatch.setenv(source, str(tmp_path))
    with pytest.raises(ConfigError, match=f"{tmp_path} named by {source} is a folder, not a file"):
        load(tmp_path if source == "--config" else None)


def test_values_of_all_kinds(tmp_path: Path) -> None:
    """F2."""
    config = load(
        written(
            tmp_path / "c.conf",
            """
            [metadata]
            uri = "mongodb://host/"
            deadline_seconds = 3
            [engine]
            chunk_cache_bytes = "1.5 MiB"
            threads = 2
            volume_max_bytes = 123456789
            [vfs]
            close_stored = true
            atime = "noatime"
            """,
        )
    )
    assert config.metadata_uri == "mongodb://host/"
    assert config.metadata_deadline_seconds == 3.0
    assert isinstance(config.metadata_deadline_seconds, float)
    assert config.engine.chunk_cache_bytes == 3 * 512 * 1024
    assert (config.engine.threads, config.engine.volume_max_bytes) == (2, 123456789)
    assert config.vfs.close_stored
    assert config.vfs.atime == "noatime"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engin]\n", "unknown section 'engin'; did you mean 'engine'?"),
        ("[engine]\ntreads = 3\n", "[engine] has no key 'treads'; did you mean 'threads'?"),
        ("[metadata]\nurl = ''\n", "[metadata] has no key 'url'; did you mean 'uri'?"),
        ("[mount]\nqqqqqq = 1\n", "[mount] has no key 'qqqqqq'; known are mountpoint, log"),
        ("database = 'x'\n", "unknown key outside of a section 'database'"),
        ("metadata = 5\n", "[metadata] is a section"),
        ("[engine]\nthreads = '4'\n", "[engine] threads must be a whole number, not '4'"),
        ("[engine]\nthreads = true\n", "[engine] threads must be a whole number, not true"),
        ("[engine]\nthreads = 4.0\n", "[engine] threads must be a whole number, not 4.0"),
        ("[engine]\nbalance = 1\n", "[engine] balance must be a string, not 1"),
        ("[engine]\ndeadline_seconds = '1'\n", "[engine] deadline_seconds must be a number, not '1'"),
        ("[vfs]\nclose_stored = 1\n", "[vfs] close_stored must be true or false, not 1"),
        ("[vfs]\ndirty_bytes = '64 MB!'\n", "[vfs] dirty_bytes: '64 MB!' is no size"),
        ("[vfs]\ndirty_bytes = {}\n", "[vfs] dirty_bytes must be a size"),
        ("[engine]\nthreads = -1\n", "[engine] threads must not be negative"),
        ("[engine]\nthreads = 0\n", "threads"),
        ("[vfs]\natime = 'strict'\n", "atime"),
        ("[engine]\nfewer_copies = 'some'\n", "fewer_copies is refuse or warn, not 'some'"),
        ("[engine]\nrack = 3\n", "[engine] rack must be a string, not 3"),
        ("[engine]\nvolume_min_bytes = 'much'\n", "[engine] volume_min_bytes: 'much' is no size"),
        ("[metadata]\ndatabase = 'a/b'\n", "'a/b' cannot be a database"),
        ("[metadata]\ndatabase = 'admin'\n", "'admin' cannot be a database"),
        ("[metadata]\ndeadline_seconds = 0\n", "deadline_seconds must be above zero"),
        ("[metadata\n", "is no TOML"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    """C3, F1, F3."""
    path = tmp_path / "bad.conf"
    message = refusal(path, text)
    assert words in message
    assert str(path) in message or "[metadata] d" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give a file to another user")
def test_a_strangers_file_in_the_working_folder_chooses_no_programs(nowhere: Path) -> None:
    """C4."""
    path = written(nowhere / "flakefs.conf", "[embedded]\nmongod = '/bin/sh'\n")
    assert load().embedded.mongod == "/bin/sh"
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match=r"belongs to user 12345 and sets .embedded. mongod"):
        load()
    assert load(path).embedded.mongod == "/bin/sh"
    path.write_text("[engine]\nthreads = 3\n")
    assert load().engine.threads == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), ("4096", 4096), ("64 MiB", 64 << 20), ("64m", 64 << 20), ("1.5G", 3 << 29), ("1kB", 1000),
        ("2 TB", 2 * 10**12), ("5 b", 5), (" 1 KiB ", 1024),
    ],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


def test_relative_folders_are_those_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = home / "flakefs.conf"
    path.write_text('[embedded]\ndata = "data"\nmongod = "~/mongod"\n[mount]\nlog = "/log"\nmountpoint = "../flake"\n')
    monkeypatch.chdir(tmp_path)
    config = load("home/flakefs.conf")
    assert config.embedded.data == str(home / "data")
    assert config.embedded.mongod == "~/mongod"
    assert config.mount.log == "/log"
    assert config.mount.mountpoint == str(home / "../flake")


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 XiB", "1..5M", "0x10", "1 M M", "8192P", "99999P"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)

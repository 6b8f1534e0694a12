"""The unit and the line of fstab in docs/operations.md, as systemd reads them. Running them is by hand (the page)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from flakefs.app import mount_options

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
UNIT = re.compile(r"```\n(\[Unit\]\n.*?)```", re.DOTALL)
LINE = re.compile(r"^/etc/flakefs/flakefs\.conf .* flakefs .*$", re.MULTILINE)
GENERATOR = Path("/lib/systemd/system-generators/systemd-fstab-generator")
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
needs_generator = pytest.mark.skipif(not GENERATOR.exists(), reason="systemd-fstab-generator is not here")


def verify(unit: Path) -> None:
    """systemd says nothing about it, and so knows every key and value."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr, done.stderr


def the_line() -> str:
    """The first of the page: the one to be copied."""
    found = LINE.findall(PAGE)
    assert found, "the page shows no line for fstab"
    return str(found[0])


@needs_analyze
def test_the_unit_of_the_page_is_one(tmp_path: Path) -> None:
    units = UNIT.findall(PAGE)
    assert len(units) == 1
    command = re.search(r"^ExecStart=(\S+/flakefs) mount -f -o (\S+) \S+$", units[0], re.MULTILINE)
    assert command is not None
    mount_options.parse([command[2]])
    unit = tmp_path / "flakefs.service"
    unit.write_text(units[0].replace(command[1], shutil.which("true") or ""))
    verify(unit)


@needs_analyze
def test_a_unit_with_a_mistake_is_found(tmp_path: Path) -> None:
    unit = tmp_path / "wrong.service"
    unit.write_text(f"[Service]\nExecStart={shutil.which('true')}\nTimeoutStopSec=soon\n")
    with pytest.raises(AssertionError, match="Failed to parse time value"):
        verify(unit)


def test_the_words_of_the_line_are_known() -> None:
    source, folder, kind, words, dump, check = the_line().split()
    assert (source, folder, kind) == ("/etc/flakefs/flakefs.conf", "/mnt/flake", "flakefs")
    assert (dump, check) == ("0", "0")
    assert mount_options.parse([words]).netdev
    for line in LINE.findall(PAGE):
        mount_options.parse([line.split()[3]])


@needs_generator
def test_systemd_makes_a_unit_of_the_line(tmp_path: Path) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text(the_line() + "\n")
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()
    subprocess.run([GENERATOR, *folders], check=True, env=os.environ | {"SYSTEMD_FSTAB": str(fstab)}, timeout=100)
    unit = folders[0] / "mnt-flake.mount"
    text = unit.read_text()
    assert "\nType=flakefs\n" in text
    assert "\nTimeoutSec=2min\n" in text
    assert re.search(r"^Options=_netdev,nofail,", text, re.MULTILINE)
    assert (folders[0] / "remote-fs.target.wants" / unit.name).is_symlink(), "nofail: wanted, and not required"
    if shutil.which("systemd-analyze"):
        verify(unit)

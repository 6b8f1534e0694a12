"""The line that long commands draw: BL1, BL2."""

from __future__ import annotations

import io
import os
import pty
import sys

import pytest
from rich.console import Console

from flakefs.cli.bar import bar, terminal

NAME = "a-rather-long-name-of-a-file-that-fits-nowhere-at-all.bin"


@pytest.mark.parametrize("width", [16, 20, 29, 30, 40, 49, 50, 60, 69, 70, 80, 200])
def test_it_is_one_line_and_no_figure_is_cut(width: int) -> None:
    """BL1"""
    out = io.StringIO()
    progress = bar(Console(file=out, width=width, force_terminal=True, color_system=None), "files")
    task = progress.add_task(NAME, total=1000 << 20, count=1234)
    progress.advance(task, 999 << 20)
    progress.console.print(progress.get_renderable())
    [line] = out.getvalue().splitlines()
    assert len(line) == width
    shown = ("1234 files" in line, "999.0/1,000.0 MiB" in line, "0:00:00" in line or "-:--:--" in line)
    assert shown == (width >= 30, width >= 50, width >= 70)
    assert ("100%" in line) == (width < 50)
    assert ("…" in line) == (30 <= width < 200), "only the name"


@pytest.mark.parametrize(("term", "drawn"), [("xterm", True), ("dumb", False), ("unknown", False), ("", False)])
def test_a_dumb_terminal_is_left_alone(monkeypatch: pytest.MonkeyPatch, term: str, drawn: bool) -> None:
    """BL2"""
    leader, follower = pty.openpty()
    with os.fdopen(leader), os.fdopen(follower, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setenv("TERM", term)
        assert (terminal() is not None) == drawn


def test_nothing_is_drawn_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """BL2"""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert terminal() is None

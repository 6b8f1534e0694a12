"""Every numbered promise and invariant occurs in a test.

A promise is `**P1**` in docs/*.md. An invariant is `X1` at the start of a line below "Invariants" or "Rules" in a
module's docstring. A test that holds one names it: in its name, its docstring, a message or a comment.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
PROMISE = re.compile(r"\*\*([A-Z]{1,2}\d{1,2})\*\*")
SECTION = re.compile(r"^(?:Invariants?|Rules?)[^\n]*\n((?:(?:[ \t][^\n]*)?\n)+)", re.MULTILINE)
NUMBERED = re.compile(r"^ +([A-Z]{1,2}\d{1,2}) ", re.MULTILINE)
WORD = re.compile(r"(?<![A-Za-z0-9])([A-Z]{1,2}\d{1,2})(?![0-9])")
RANGE = re.compile(r"\b([A-Z]{1,2})(\d{1,2}) (?:to|-) \1(\d{1,2})\b")
HELD_PACKAGES = ("format", "tools")


def named_in_tests() -> set[str]:
    """Every number that a test names; 'D1 to D4' names four."""
    text = "\n".join(p.read_text() for p in (TOP / "tests").rglob("*.py") if p != Path(__file__))
    found = set(WORD.findall(text))
    for letters, first, last in RANGE.findall(text):
        found |= {f"{letters}{number}" for number in range(int(first), int(last) + 1)}
    return found


def invariants(docstring: str) -> set[str]:
    """The numbers that a module's docstring declares."""
    return {number for section in SECTION.findall(docstring + "\n\n") for number in NUMBERED.findall(section)}


@pytest.mark.parametrize("page", sorted((TOP / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_promise_of_the_docs_has_a_test(page: Path) -> None:
    missing = set(PROMISE.findall(page.read_text())) - named_in_tests()
    assert not missing, f"untested promises of {page.name}: {sorted(missing)}"


@pytest.mark.parametrize("package", HELD_PACKAGES)
def test_every_invariant_has_a_test(package: str) -> None:
    declared = {
        number: path.name
        for path in (TOP / "flakefs" / package).rglob("*.py")
        for number in invariants(ast.get_docstring(ast.parse(path.read_text())) or "")
    }
    assert declared, "the docstrings were not understood"
    missing = {number: name for number, name in declared.items() if number not in named_in_tests()}
    assert not missing, f"untested invariants: {missing}"


def test_docstrings_are_understood() -> None:
    text = "What.\n\nInvariants\n    W1  A thing\n        goes on.\n\n    W2  More.\n\nConcurrency\n    T9  is none\n"
    assert invariants(text) == {"W1", "W2"}
    assert RANGE.findall("D1 to D4") == [("D", "1", "4")]

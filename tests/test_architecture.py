"""The table in docs/internals.md section 1, sizes and docstrings, enforced."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
ROOT = TOP / "flakefs"
LINES = [
    {"errors", "values"},
    {"format"},
    {"mongo"},
    {"namespace", "engine"},
    {"vfs"},
    {"fuse", "tools"},
    {"config"},
    {"app"},
    {"api"},
    {"cli", "testing"},
]
LINE_OF = {package: number for number, packages in enumerate(LINES) for package in packages}
TOGETHER = [{"errors", "values"}]
"""Packages on one line that may nevertheless know each other: none but the two at the bottom."""
ONLY_IN = {
    "pyfuse3": {"fuse"},
    "pymongo": {"mongo", "namespace", "engine", "tools", "testing"},
    "gridfs": set(),
    "bson": {"format", "mongo", "namespace", "engine", "tools", "testing"},
    "psutil": {"mongo", "namespace", "app", "cli", "testing"},
    "cachetools": {"namespace", "engine", "vfs", "fuse"},
    "blake3": {"format"},
    "zstandard": {"format"},
    "lz4": {"format"},
    "click": {"cli"},
    "rich": {"cli"},
    "tomllib": {"config"},
    "pytest": {"testing"},
    "hypothesis": {"testing"},
}
PURE = {"errors", "values", "format"}
IMPURE = {"trio", "time", "os", "io", "socket", "asyncio", "random", "subprocess", "pathlib", "tempfile", "datetime"}
NO_TRIO = {"errors", "values", "format", "config"}
LINES_MAX = 400
FUNCTION_LINES_MAX = 60
MODULES = sorted(ROOT.rglob("*.py"))
TABLE_ROW = re.compile(r"^\| (\d) \| (.*?) \|", re.MULTILINE)


def package_of(path: Path) -> str:
    """'flakefs/engine/store.py' -> 'engine'; '' for flakefs/__init__.py and __main__.py."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first in ("__init__", "__main__") else first


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, wherever it stands (functions and TYPE_CHECKING included)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: absolute imports only: they show the layer"
            if node.module == "flakefs":
                yield from (f"flakefs.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def broken_rules(here: str, tree: ast.AST) -> list[str]:
    """What a module of package *here* imports and must not."""
    found = []
    for name in imports(tree):
        top = name.split(".")[0]
        if here and here not in ONLY_IN.get(top, {here}):
            found.append(f"{top} is not for {here}")
        if here in PURE and top in IMPURE:
            found.append(f"{here} is pure, so no {top}")
        if here in NO_TRIO and top == "trio":
            found.append(f"{here} runs without an event loop, so no trio")
        if top == "flakefs" and "." in name:
            there = name.split(".")[1]
            if there not in LINE_OF:
                continue  # a name of flakefs/__init__.py
            friends = any({here, there} <= pair for pair in TOGETHER)
            if here and there != here and LINE_OF[there] >= LINE_OF[here] and not friends:
                found.append(f"{here} (line {LINE_OF[here]}) may not import {there} (line {LINE_OF[there]})")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_its_place(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    here = package_of(path)
    assert here in LINE_OF or not here, f"{here} has no line in docs/internals.md section 1"
    assert ast.get_docstring(tree), "say what this module is for and what holds"
    assert text.count("\n") <= LINES_MAX, "split it"
    assert broken_rules(here, tree) == []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines: split it"


def test_the_table_for_people_is_this_one() -> None:
    rows = TABLE_ROW.findall((TOP / "docs" / "internals.md").read_text())
    said = {int(number): set(re.findall(r"`(\w+)`", cell)) for number, cell in rows}
    assert said == dict(enumerate(LINES))
    assert {package_of(path) for path in MODULES} - {""} <= set(LINE_OF)


def test_the_page_of_modules_is_up_to_date() -> None:
    page = runpy.run_path(str(TOP / "scripts" / "modules"))["page"]()
    assert (TOP / "docs" / "modules.md").read_text() == page, "run scripts/modules"


@pytest.mark.parametrize(
    ("here", "code"),
    [
        ("engine", "import flakefs.namespace.schema"),
        ("namespace", "from flakefs import engine"),
        ("tools", "from flakefs.fuse import serve"),
        ("mongo", "from flakefs.vfs import FileSystem"),
        ("vfs", "def f():\n    import pymongo"),
        ("cli", "from pyfuse3 import FUSEError"),
        ("format", "import time"),
        ("values", "import trio"),
    ],
)
def test_the_test_bites(here: str, code: str) -> None:
    assert broken_rules(here, ast.parse(code))


def test_names_of_test_files_are_unique() -> None:
    names = [path.name for path in (TOP / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

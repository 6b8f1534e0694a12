"""A process of another user: does system calls in the working directory on request.

    python somebody.py UID GID GROUP,GROUP...

Reads pickled (folder, function, arguments) from its standard input and answers (errno, result).
"""

from __future__ import annotations

import fcntl
import os
import pickle
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import calls  # type: ignore[import-not-found]  # from its own folder, see -I in kit.py

MODULES = (calls, fcntl, os)


def main(uid: int, gid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.umask(0)
    top = os.open(".", os.O_PATH)
    answers = os.fdopen(os.dup(1), "wb")
    while True:
        try:
            folder, function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            os.fchdir(top)
            os.chdir(folder)
            call = next(getattr(module, function) for module in MODULES if hasattr(module, function))
            answer: tuple[int | None, Any] = (0, call(*arguments))
        except OSError as error:
            answer = (error.errno, str(error))
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), [int(word) for word in sys.argv[3].split(",") if word])

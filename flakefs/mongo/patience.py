"""Asking a server again until it answers: what "operations wait, and go on" (P5) means for one question.

Purpose
    A server that is restarted, or a replica set that elects a new primary, is away for seconds. Whoever needs an answer
    for a program waits for it, as long as the program may wait.

Invariants
    PT1  Only Unavailable is tried again: every other answer is one.
    PT2  A question ends when it is answered, or with the error of its last attempt when *seconds* have passed since it
         was asked, or since the server fell silent, whichever is sooner; later only by one deadline. So many questions
         of one operation, or operations that wait for each other's questions, do not add up.
    PT3  While a server has been silent for longer than that, each question is one short attempt.

Concurrency
    Trio. The pauses may be cancelled; an attempt that runs ends first (mongo.door).

Not here
    Commits (namespace.journal) and chunks (engine.reader), which wait in ways of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random
from time import monotonic
from typing import TypeVar

import trio

from flakefs.errors import Unavailable
from flakefs.mongo.door import Door

T = TypeVar("T")

PAUSE_FIRST_SECONDS = 0.05
PAUSE_MAX_SECONDS = 1.0
LEAST_SECONDS = 1.0
"""Deadline of an attempt when no time is left (PT3)."""


async def ask(door: Door, call: Callable[[], T], seconds: Callable[[], float], *, since: float | None = None) -> T:
    """Run *call*, which is repeatable, through *door* (PT2). *seconds* may become less meanwhile; 0: one attempt.

    *since*: monotonic time when the question was asked, if that was before this call.
    """
    asked = monotonic() if since is None else since
    pause = PAUSE_FIRST_SECONDS
    whole = door.deadline_seconds
    while True:
        patience = seconds()
        deadline = whole if not patience else min(whole, max(_left(door, asked, patience), min(LEAST_SECONDS, whole)))
        try:
            return await door.run(call, deadline_seconds=deadline)
        except Unavailable:
            left = _left(door, asked, seconds())
            if left <= 0:
                raise
        await trio.sleep(min(pause * (0.5 + random()), left))
        pause = min(2 * pause, PAUSE_MAX_SECONDS)


def _left(door: Door, asked: float, patience: float) -> float:
    """Seconds until a question asked then has waited enough."""
    silent = door.silent_since
    return (asked if silent is None else min(asked, silent)) + patience - monotonic()

"""What a driver error means: one of ours, with a sentence.

Invariants
    E1  No driver error ever becomes NotFound or an empty answer: a server that fails is not an empty file system.
    E2  Unavailable is what time can heal (the call may have taken effect); Refused is what it cannot.
    E3  The order is: disk full, then not answered, then a guard that failed, then refused.

Concurrency
    Pure functions.

Not here
    Where calls run (mongo.door).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bson.errors import BSONError
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from flakefs.errors import Conflict, FlakeError, NoSpace, Refused, Unavailable

DISK_FULL = frozenset({14031})
"""OutOfDiskSpace."""
NOT_ANSWERED = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        24,  # LockTimeout
        43,  # CursorNotFound: the server was restarted under an open cursor
        50,  # MaxTimeMSExpired
        64,  # WriteConcernFailed
        89,  # NetworkTimeout
        91,  # ShutdownInProgress
        134,  # ReadConcernMajorityNotAvailableYet
        189,  # PrimarySteppedDown
        202,  # NetworkInterfaceExceededTimeLimit
        262,  # ExceededTimeLimit
        290,  # TransactionExceededLifetimeLimitSeconds
        9001,  # SocketException
        10058,  # LegacyNotPrimary
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11602,  # InterruptedDueToReplStateChange
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
    }
)
GUARD_FAILED = frozenset({112, 251, 11000, 11001})
"""WriteConflict, NoSuchTransaction (the server gave it up), duplicate key."""
NOT_ALLOWED = frozenset({13, 18, 8000})
"""Unauthorized, AuthenticationFailed, and what Atlas says for both."""
MARKERS = (
    ", full error:",
    ", Timeout:",
    ", Topology Description:",
    " (configured timeouts:",
    " to execute command",  # "not authorized on ...": what follows are the documents of the command
)
"""Where the part of a driver's message begins that helps nobody."""
NOT_REPEATABLE = "does not support retryable writes"
"""A connection broke while a standalone server restarted: some drivers then repeat a write in the way that only replica
sets know. The server has done nothing, and the next write goes through."""
CACHE_FULL = "will not fit in the storage engine cache"
"""A transaction met a cache full of what is not on disk yet: after the next checkpoint there is room."""
TRANSIENT_LABELS = ("RetryableWriteError", "RetryableError", "SystemOverloadedError")


def translated(error: PyMongoError | BSONError, where: str) -> FlakeError:
    """The error to raise in place of *error*; *where* names the server ("the metadata server", "node 3")."""
    if isinstance(error, BSONError):
        return _refused(f"{where} cannot take a document: {error}", None)
    reason = short(error)
    if isinstance(error, ConnectionFailure | ExecutionTimeout):
        return Unavailable(f"{where} does not answer ({reason}): check that it runs and can be reached")
    if not isinstance(error, OperationFailure):
        return _refused(f"{where} cannot be used ({reason}): check its URI and its settings", None)
    codes = set(_codes(error))
    if codes & DISK_FULL or "No space left on device" in str(error):
        return NoSpace(f"the disk of {where} is full: free some space there or add a node")
    passing = any(said in str(error) for said in (NOT_REPEATABLE, CACHE_FULL)) or any(
        error.has_error_label(label) for label in TRANSIENT_LABELS
    )
    if passing or codes & NOT_ANSWERED:
        return Unavailable(f"{where} cannot answer at the moment ({reason}): it will be asked again")
    if codes & GUARD_FAILED or error.has_error_label("TransientTransactionError"):
        return Conflict(f"somebody else changed the same documents on {where} first ({reason})")
    if codes & NOT_ALLOWED:
        return _refused(
            f"{where} does not let us in ({reason}): check user, password and rights in its URI", error.code
        )
    return _refused(f"{where} refuses ({reason})", error.code)


def short(error: PyMongoError) -> str:
    """The driver's message without the topology dump it likes to append; one line."""
    message = str(error)
    if isinstance(error, BulkWriteError):
        message = "; ".join(str(entry.get("errmsg", "")) for entry in _entries(error.details)) or message
    for marker in MARKERS:
        message = message.split(marker)[0]
    if isinstance(error, ServerSelectionTimeoutError) and not message.strip():
        message = "no server found"
    return " ".join(message.split())[:300]


def _refused(message: str, code: int | None) -> Refused:
    refused = Refused(message)
    refused.code = code
    return refused


def _codes(error: OperationFailure) -> Iterator[int]:
    """The error's own code and those of the writes inside it."""
    if not isinstance(error, BulkWriteError) and error.code is not None:
        yield error.code
    for entry in _entries(error.details or {}):
        if isinstance(entry.get("code"), int):
            yield entry["code"]


def _entries(details: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from details.get("writeErrors") or ()
    yield from details.get("writeConcernErrors") or ()
    single = details.get("writeConcernError")
    if single:
        yield single

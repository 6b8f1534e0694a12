"""Every error FlakeFS raises on purpose.

A message is one sentence for the person who meets it: what, where, and what to do about it.

    FlakeError                  errno       retry  who caused it
    +-- PosixError                                 the caller of a file operation
    |   +-- NotFound            ENOENT      no
    |   +-- Exists              EEXIST      no
    |   +-- NotDirectory        ENOTDIR     no
    |   +-- IsDirectory         EISDIR      no
    |   +-- NotEmpty            ENOTEMPTY   no
    |   +-- NameTooLong         ENAMETOOLONG no
    |   +-- InvalidArgument     EINVAL      no
    |   +-- NotPermitted        EPERM       no
    |   +-- AccessDenied        EACCES      no
    |   +-- TooManyLinks        EMLINK      no
    |   +-- TooManySymlinks     ELOOP       no
    |   +-- FileTooLarge        EFBIG       no
    |   +-- NoAttribute         ENODATA     no
    |   +-- AttributeTooLarge   E2BIG       no
    |   +-- NotSupported        EOPNOTSUPP  no
    |   +-- Stale               ESTALE      no
    |   +-- NotMeant            ESTALE      no     a name leads elsewhere: the kernel looks again
    |   +-- BadHandle           EBADF       no
    |   +-- NoSpace             ENOSPC      no     nodes or metadata disk full
    |   +-- ReadOnly            EROFS       no     mounted read-only, or turned read-only by trouble
    +-- StoreError              EIO                the store
    |   +-- Unavailable         EIO         yes    a server does not answer (metadata or node)
    |   +-- Refused             EIO         no     a server answers no (rights, limits, version)
    |   +-- ChunkMissing        EIO         no     data damage
    |   +-- ChunkCorrupt        EIO         no     data damage
    |   +-- Fenced              EIO         no     another session has taken over
    |   +-- Conflict            EIO         yes    a guard failed: somebody else was first
    |   +-- Damaged             EIO         no     documents contradict each other: run fsck
    +-- OperatorError           EINVAL             whoever set this up
        +-- ConfigError                            configuration file or option
        +-- UsageError                             command line
        +-- NotFormatted                           no file system there
        +-- AlreadyFormatted                       one is there already
        +-- FormatUnsupported                      written by a newer program
        +-- HeldElsewhere       EBUSY              another session holds the file system
        +-- EmbeddedError                          the embedded mongod cannot run
        +-- MountError                             mountpoint, FUSE or the kernel says no
"""

from __future__ import annotations

import errno
import logging
from typing import ClassVar


class FlakeError(Exception):
    """Base of all; `errno` is what a file operation answers, `retryable` whether time can help."""

    errno: ClassVar[int] = errno.EIO
    retryable: ClassVar[bool] = False
    log_level: ClassVar[int] = logging.DEBUG


class PosixError(FlakeError):
    """The caller asked for something POSIX refuses."""


class NotFound(PosixError):
    errno = errno.ENOENT


class Exists(PosixError):
    errno = errno.EEXIST


class NotDirectory(PosixError):
    errno = errno.ENOTDIR


class IsDirectory(PosixError):
    errno = errno.EISDIR


class NotEmpty(PosixError):
    errno = errno.ENOTEMPTY


class NameTooLong(PosixError):
    errno = errno.ENAMETOOLONG


class InvalidArgument(PosixError):
    errno = errno.EINVAL


class NotPermitted(PosixError):
    errno = errno.EPERM


class AccessDenied(PosixError):
    errno = errno.EACCES


class TooManyLinks(PosixError):
    errno = errno.EMLINK


class TooManySymlinks(PosixError):
    errno = errno.ELOOP


class FileTooLarge(PosixError):
    errno = errno.EFBIG


class NoAttribute(PosixError):
    errno = errno.ENODATA


class AttributeTooLarge(PosixError):
    errno = errno.E2BIG


class NotSupported(PosixError):
    errno = errno.EOPNOTSUPP


class Stale(PosixError):
    errno = errno.ESTALE


class NotMeant(PosixError):
    errno = errno.ESTALE


class BadHandle(PosixError):
    errno = errno.EBADF


class NoSpace(PosixError):
    errno = errno.ENOSPC
    log_level = logging.INFO


class ReadOnly(PosixError):
    errno = errno.EROFS


class StoreError(FlakeError):
    """The store, not the caller, is the reason."""

    log_level = logging.ERROR


class Unavailable(StoreError):
    """A server did not answer in time; the call may or may not have taken effect."""

    retryable = True
    log_level = logging.WARNING


class Refused(StoreError):
    """A server answered no, and will again."""

    code: int | None = None
    """The server's error code, when it gave one."""


class ChunkMissing(StoreError):
    """An extent names a chunk that no replica has."""


class ChunkCorrupt(StoreError):
    """No replica holds bytes whose hash is the one the extent names."""


class Fenced(StoreError):
    """Another session declared this one dead; nothing more may be written."""


class Conflict(StoreError):
    """A guard did not match: the document was changed by somebody else."""

    retryable = True
    log_level = logging.DEBUG


class Damaged(StoreError):
    """Documents contradict each other; fsck names and repairs what it can."""


class OperatorError(FlakeError):
    """The set-up is wrong; a person has to act. Commands exit with status 2 for UsageError and ConfigError."""

    errno = errno.EINVAL


class ConfigError(OperatorError):
    pass


class UsageError(OperatorError):
    pass


class NotFormatted(OperatorError):
    pass


class AlreadyFormatted(OperatorError):
    pass


class FormatUnsupported(OperatorError):
    pass


class HeldElsewhere(OperatorError):
    errno = errno.EBUSY


class EmbeddedError(OperatorError):
    pass


class MountError(OperatorError):
    pass


def first_leaf(group: BaseExceptionGroup[FlakeError]) -> FlakeError:
    """The first FlakeError in a (nested) exception group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FlakeError)
    return error

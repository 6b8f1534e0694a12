"""The error boundary: what the kernel is told of an error, and what is logged."""

from __future__ import annotations

import errno

import pytest
import trio
from pyfuse3 import FUSEError

from flakefs.errors import NotFound, Unavailable
from flakefs.fuse.boundary import answered, silent


class Handlers:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    @answered
    async def lookup(self, ino: int, name: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        return name

    @answered
    async def unlink(self, parent_inode: int, name: bytes) -> None:
        assert self.error is not None
        raise self.error

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        assert self.error is not None
        raise self.error

    def ino_of(self, fh: int) -> int:
        return 40 + fh

    @silent
    async def forget(self, pairs: list[tuple[int, int]]) -> None:
        raise KeyError("no such inode")


async def errno_of(error: BaseException) -> int:
    with pytest.raises(FUSEError) as caught:
        await Handlers(error).lookup(7, b"name")
    return caught.value.errno


async def test_a_result_passes() -> None:
    assert await Handlers().lookup(7, b"name") == b"name"


async def test_b1_errors_of_ours_become_their_errno() -> None:
    assert await errno_of(NotFound("no such file")) == errno.ENOENT
    assert await errno_of(FUSEError(errno.EXDEV)) == errno.EXDEV


@pytest.mark.logs
async def test_store_trouble_is_logged_and_is_eio(caplog: pytest.LogCaptureFixture) -> None:
    assert await errno_of(Unavailable("node 3 does not answer")) == errno.EIO
    assert "lookup of inode 7: node 3 does not answer" in caplog.text


@pytest.mark.logs
async def test_b2_a_bug_is_eio_and_logged_with_operation_and_inode(caplog: pytest.LogCaptureFixture) -> None:
    assert await errno_of(ZeroDivisionError("a bug")) == errno.EIO
    assert "lookup of inode 7: bug in FlakeFS" in caplog.text
    assert "ZeroDivisionError" in caplog.text, "the traceback is missing"


@pytest.mark.logs
async def test_b2_lines_name_operation_name_inode_handle_and_cause(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FUSEError):
        await Handlers(Unavailable("node 3 does not answer")).unlink(7, b"a name\n")
    assert "unlink of b'a name\\n' in inode 7: node 3 does not answer" in caplog.text
    with pytest.raises(FUSEError):
        await Handlers(Unavailable("node 3 does not answer")).write(2, 0, b"content")
    assert "write of inode 42 (handle 2): node 3 does not answer" in caplog.text


@pytest.mark.logs
async def test_groups_are_what_they_hold(caplog: pytest.LogCaptureFixture) -> None:
    assert await errno_of(ExceptionGroup("nursery", [NotFound("gone")])) == errno.ENOENT
    assert not caplog.records
    assert await errno_of(ExceptionGroup("nursery", [NotFound("gone"), ValueError("bug")])) == errno.EIO
    assert "ValueError" in caplog.text


async def test_cancellation_passes_the_boundary() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await Handlers(None).lookup(1, b"")
            await trio.lowlevel.checkpoint()
        except FUSEError:
            pytest.fail("a cancelled request was answered as an error")
    assert scope.cancelled_caught


@pytest.mark.logs
async def test_b3_forget_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    await Handlers().forget([(1, 1)])
    assert "no such inode" in caplog.text

"""The end of the connection to the kernel, without one."""

from __future__ import annotations

import errno
from typing import Any

import pyfuse3
import pytest
import trio

from flakefs.fuse.options import FuseOptions
from flakefs.fuse.quick import Turn
from flakefs.fuse.serving import _Serving


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EIO])
async def test_s5_an_aborted_connection_is_an_unmount(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def main(**options: Any) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(read)

    async def read() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(code, "fuse_session_receive_buf failed")

    monkeypatch.setattr(pyfuse3, "main", main)
    serving = _Serving("/nowhere", FuseOptions(), Turn())
    if code == errno.ECONNABORTED:
        await serving.answer()
    else:
        with pytest.raises(BaseExceptionGroup):
            await serving.answer()
    assert serving.ended.is_set()

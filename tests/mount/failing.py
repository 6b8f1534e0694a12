"""What a system call fails with."""

from __future__ import annotations

import pytest


def failing(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == code)

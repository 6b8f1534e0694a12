"""The heap keeps some of the freed memory, and no more (ME1)."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import threading
from flakefs.engine.memory import KEPT_BYTES, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def use():
    pieces = [bytes(bytearray(1 << 20)) for _ in range(200)]
    pieces.clear()

print(keep_freed_memory() and keep_freed_memory())
before = resident()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resident() - before - KEPT_BYTES)
"""


def test_freed_memory_is_kept_within_bounds() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    arranged, beyond = result.stdout.split()
    if arranged != "True":
        pytest.skip("this C library is not glibc")
    assert int(beyond) < 16 << 20, "ME1"

"""A mount and a local folder, told to do the same things, stay the same: the rules of tests/vfs/test_vfs_machine.py,
by system calls on a real mount.
"""

from __future__ import annotations

import ctypes
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from flakefs.testing.mounted import Mount, NewMount

RULES = runpy.run_path(str(Path(__file__).parents[1] / "vfs" / "test_vfs_machine.py"))  # test folders are no packages
MACHINE: Any = RULES["Machine"]
EXAMPLES = int(os.environ.get("FLAKEFS_MOUNT_EXAMPLES", "2"))
"""tests/run-long takes many."""
_libc = ctypes.CDLL(None, use_errno=True)


class Calls:
    """What the rules ask for, by the names of the functions that do it on a FileSystem."""

    def __init__(self, top: bytes) -> None:
        self._top = top

    def at(self, path: bytes) -> bytes:
        return os.path.join(self._top, path)

    def opened(self, path: bytes, flags: int, machine: Any, slot: int) -> None:
        descriptor = os.open(self.at(path), flags | os.O_NOFOLLOW, 0o644)
        if slot in machine.slots:
            os.close(machine.slots[slot])
        machine.slots[slot] = descriptor

    def write(self, descriptor: int, offset: int, data: bytes) -> int:
        return os.pwrite(descriptor, data, offset)

    def read(self, descriptor: int, offset: int, length: int) -> bytes:
        return os.pread(descriptor, length, offset)

    def ino_of(self, descriptor: int) -> int:
        return descriptor

    def change(self, descriptor: int, changes: Any) -> None:
        os.ftruncate(descriptor, changes.size)

    def change_path(self, path: bytes, changes: Any) -> None:
        if changes.mode is not None:
            os.chmod(self.at(path), changes.mode)
        if changes.mtime is not None:
            os.utime(self.at(path), ns=(changes.atime, changes.mtime), follow_symlinks=False)
        if changes.size is not None:
            os.truncate(self.at(path), changes.size)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def flush(self, descriptor: int) -> None:
        os.close(os.dup(descriptor))

    def release(self, descriptor: int) -> None:
        os.close(descriptor)

    def make_folder(self, path: bytes, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def remove_folder(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def remove_file(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def make_symlink(self, path: bytes, target: bytes) -> None:
        os.symlink(target, self.at(path))

    def make_link(self, old: bytes, new: bytes) -> None:
        os.link(self.at(old), self.at(new), follow_symlinks=False)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if _libc.renameat2(-100, self.at(old), -100, self.at(new), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def set_attribute(self, path: bytes, name: bytes, value: bytes | None) -> None:
        if value is None:
            os.removexattr(self.at(path), name)
        else:
            os.setxattr(self.at(path), name, value)

    def picture(self, path: bytes) -> Any:
        return RULES["local_picture"](self.at(path))

    def sync(self) -> None:
        descriptor = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def invariants(self) -> None:
        """They are checked in the process of the mount, by nobody; fsck looks at what is stored."""


class Mounted:
    """In place of the portal: close() unmounts."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        if not mount.is_mounted:
            mount.mount()

    def close(self) -> None:
        if self._mount.is_mounted:
            self._mount.unmount()


class MountMachine(MACHINE):  # type: ignore[misc]  # nobody has types of what runpy finds
    mount: Mount

    @property
    def fresh(self) -> Any:
        return self

    def assert_sound(self) -> None:
        self.mount.check_fsck()

    def opened(self) -> Mounted:
        self.calls = Calls(os.fsencode(self.mount.path))
        return Mounted(self.mount)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return getattr(self.calls, function.__name__)(*args)


def test_the_same_as_a_local_folder_on_a_mount(new_mount: NewMount, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = new_mount(chunk_size=64 * 1024, start=False)
    machine = type("MachineOfThisRun", (MountMachine,), {"mount": mount})
    before = os.umask(0o022)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=50,
                deadline=None,
                phases=[Phase.generate],  # a run takes too long for shrinking; the steps are printed
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )
    finally:
        os.umask(before)
    assert MACHINE.run >= EXAMPLES, "nothing was tried"

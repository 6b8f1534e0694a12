"""Random operations on a few files, each compared with bytes in memory: what the programs called fsx do.

Purpose
    Reads, writes, shared memory maps, truncations, appends, direct I/O, copies between files, fsync, dropped pages and
    reopened files in any order, on files small enough that they meet each other.

Invariants
    T12  The seed alone decides what is done. A difference is an AssertionError that names the seed, the file, the
         offset, and the operations that touched it.

Concurrency
    One thread; several may run at once on files of their own.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

SIZE_MAX = 3_000_000
PIECE_MAX = 200_000
FILES = 3
SHOWN = 25
PAGE = mmap.PAGESIZE


class _File:
    """A file, what it should hold, and what was done to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = bytearray()
        self.done: list[tuple[str, int, int]] = []
        """(what, from, to); of the last operations."""
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def note(self, what: str, start: int, end: int) -> None:
        self.done.append((what, start, end))
        if len(self.done) > 20_000:
            del self.done[:10_000]


class Fsx:
    """The run on files in *folder*."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.count = 0
        """Operations so far."""
        self._folder = folder
        self._chance = random.Random(seed)
        self._pool = self._chance.randbytes(4 * PIECE_MAX)
        self._files = [_File(folder / f"fsx{number}") for number in range(FILES)]
        self._kinds: dict[Callable[[_File], None], int] = {
            self._read: 20, self._write: 20, self._map_read: 12, self._map_write: 14, self._truncate: 6,
            self._append: 5, self._direct_read: 4, self._direct_write: 4, self._copy: 4, self._fsync: 3,
            self._drop_pages: 5, self._reopen: 4, self._rename_over: 1, self._all: 1,
        }  # fmt: skip

    def run(self, seconds: float = 0.0, operations: int = 0) -> None:
        """Until so many seconds or operations are over, whichever is given; then everything is compared."""
        end = time.monotonic() + seconds
        stop = self.count + operations
        kinds, weights = list(self._kinds), list(self._kinds.values())
        while time.monotonic() < end if seconds else self.count < stop:
            self.count += 1
            self._chance.choices(kinds, weights)[0](self._chance.choice(self._files))
        self.compare()

    def compare(self) -> None:
        """Every file, whole, by its name: also after a remount."""
        for file in self._files:
            self._same(file, 0, file.path.read_bytes(), "whole")
            assert file.path.stat().st_size == len(file.data), self._text(file, 0, "st_size")

    def close(self) -> None:
        for file in self._files:
            if file.fd >= 0:
                os.close(file.fd)
                file.fd = -1

    def reopen(self) -> None:
        """After close(), and whatever was done in between."""
        for file in self._files:
            file.fd = os.open(file.path, os.O_RDWR)

    # -- operations --

    def _read(self, file: _File) -> None:
        start, length = self._anywhere(file, beyond=1000)
        self._same(file, start, os.pread(file.fd, length, start), "read", length)

    def _write(self, file: _File) -> None:
        start, length = self._anywhere(file, beyond=PIECE_MAX)
        data = self._some(length)
        assert os.pwrite(file.fd, data, start) == len(data)
        self._put(file, start, data, "write")

    def _append(self, file: _File) -> None:
        data = self._some(self._chance.choice((1, 100, 5000, 70_000)))
        if len(file.data) + len(data) > SIZE_MAX:
            return
        descriptor = os.open(file.path, os.O_WRONLY | os.O_APPEND)
        try:
            assert os.write(descriptor, data) == len(data)
        finally:
            os.close(descriptor)
        self._put(file, len(file.data), data, "append")

    def _map_read(self, file: _File) -> None:
        if not file.data:
            return
        start, length = self._inside(file)
        base = start - start % PAGE
        with mmap.mmap(file.fd, start - base + length, offset=base, prot=mmap.PROT_READ) as view:
            self._same(file, start, view[start - base : start - base + length], "map read", length)

    def _map_write(self, file: _File) -> None:
        if not file.data:
            return
        start, length = self._inside(file)
        data = self._some(length)
        base = start - start % PAGE
        with mmap.mmap(file.fd, start - base + length, offset=base) as view:
            view[start - base : start - base + length] = data
            if self._chance.random() < 0.3:
                view.flush()
        self._put(file, start, data, "map write")

    def _truncate(self, file: _File) -> None:
        size = self._chance.randrange(SIZE_MAX if self._chance.random() < 0.2 else len(file.data) + 2)
        os.ftruncate(file.fd, size)
        before = len(file.data)
        if size < before:
            del file.data[size:]
        else:
            file.data.extend(bytes(size - before))
        file.note("truncate", min(size, before), max(size, before))

    def _direct_read(self, file: _File) -> None:
        start, length = self._aligned(file)
        with mmap.mmap(-1, length) as buffer:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_DIRECT)
            try:
                got = os.preadv(descriptor, [buffer], start)
            finally:
                os.close(descriptor)
            self._same(file, start, buffer[:got], "direct read", length)

    def _direct_write(self, file: _File) -> None:
        start, length = self._aligned(file)
        data = self._some(length)
        with mmap.mmap(-1, length) as buffer:
            buffer[:] = data
            descriptor = os.open(file.path, os.O_WRONLY | os.O_DIRECT)
            try:
                assert os.pwritev(descriptor, [buffer], start) == length
            finally:
                os.close(descriptor)
        self._put(file, start, data, "direct write")

    def _copy(self, file: _File) -> None:
        source = self._chance.choice(self._files)
        if source is file or not source.data:
            return
        start, length = self._inside(source)
        target = self._chance.randrange(len(file.data) + 1)
        if target + length > SIZE_MAX:
            return
        done = os.copy_file_range(source.fd, file.fd, length, start, target)
        assert 0 < done <= length
        self._put(file, target, bytes(source.data[start : start + done]), "copy")

    def _fsync(self, file: _File) -> None:
        self._chance.choice((os.fsync, os.fdatasync))(file.fd)

    def _drop_pages(self, file: _File) -> None:
        """What is read next does not come from the kernel's memory."""
        os.fsync(file.fd)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _reopen(self, file: _File) -> None:
        os.close(file.fd)
        file.fd = os.open(file.path, os.O_RDWR)

    def _rename_over(self, file: _File) -> None:
        """A new file takes the name, as an editor saves; the old one stays readable until it is closed."""
        fresh = file.path.with_suffix(".new")
        fresh.write_bytes(file.data)
        old = file.fd
        file.fd = os.open(fresh, os.O_RDWR)
        os.rename(fresh, file.path)
        self._same(file, 0, os.pread(old, len(file.data) + 1, 0), "replaced")
        os.close(old)

    def _all(self, file: _File) -> None:
        self._same(file, 0, file.path.read_bytes(), "whole")
        size = os.fstat(file.fd).st_size
        assert size == len(file.data), self._text(file, min(size, len(file.data)), f"st_size {size}")

    # -- helpers --

    def _some(self, length: int) -> bytes:
        start = self._chance.randrange(len(self._pool) - length)
        return self._pool[start : start + length]

    def _length(self) -> int:
        return self._chance.randint(1, self._chance.choice((10, PAGE, 3 * PAGE, 70_000, PIECE_MAX)))

    def _anywhere(self, file: _File, beyond: int) -> tuple[int, int]:
        start = self._chance.randrange(min(len(file.data) + beyond, SIZE_MAX))
        return start, min(self._length(), SIZE_MAX - start)

    def _inside(self, file: _File) -> tuple[int, int]:
        start = self._chance.randrange(len(file.data))
        return start, min(self._length(), len(file.data) - start)

    def _aligned(self, file: _File) -> tuple[int, int]:
        start = self._chance.randrange(len(file.data) // PAGE + 1) * PAGE
        return start, self._chance.randint(1, 16) * PAGE

    def _put(self, file: _File, start: int, data: bytes, what: str) -> None:
        if start > len(file.data):
            file.data.extend(bytes(start - len(file.data)))
        file.data[start : start + len(data)] = data
        file.note(what, start, start + len(data))

    def _same(self, file: _File, start: int, got: bytes, what: str, asked: int | None = None) -> None:
        expected = file.data[start:] if asked is None else file.data[start : start + asked]
        if got == expected:
            return
        at = next((i for i, (one, two) in enumerate(zip(got, expected, strict=False)) if one != two), None)
        if at is None:
            at = min(len(got), len(expected))
        raise AssertionError(self._text(file, start + at, f"{what} of {start} + {len(got)} ({len(expected)} expected)"))

    def _text(self, file: _File, offset: int, what: str) -> str:
        touched = [f"{name} {start}-{end}" for name, start, end in file.done if start <= offset < max(end, start + 1)]
        return (
            f"seed {self.seed}, operation {self.count}, {file.path.name}: {what} differs at {offset}; "
            f"touched there: {', '.join(touched[-SHOWN:])}; last of all: {file.done[-3:]}"
        )

"""Files that a rename is shown under another number, so that the kernel asks for it.

Purpose
    The kernel does nothing, and says so with success, when a rename's names both lead to the same inode. It takes the
    old name from its memory; when another mount has made the same rename before, the new name leads to that inode,
    too. It holds the folder, so nothing can be dropped, and whether it asks for the old name, the new one or a folder
    on the way cannot be seen. So whichever it is, a file that may have another name in the kernel is shown to a rename
    as one that the kernel has never met: then the rename is asked for, by its names, and finds what there is.

Invariants
    SI1  Only a thread that is seen to rename is answered with a stand-in, with a time-out of 0: the kernel asks again
         before anybody uses the name, and what stays after the rename is replaced then.
    SI2  A stand-in has a number of its own, above all inodes, and the attributes of what it stands for (the kernel
         checks owners and kinds). It may be a folder or a symbolic link on the way to what is renamed: look-ups and
         renames in it, its attributes and its target are those of the inode. It is not counted with what the kernel
         holds, and ends when the kernel forgets it.

Concurrency
    Trio task only.

Not here
    Which names the kernel takes an inode for (fuse.told).
"""

from __future__ import annotations

from pyfuse3 import EntryAttributes

FIRST = 1 << 62


class StandIns:
    def __init__(self) -> None:
        self._inos: dict[int, int] = {}  # what they stand for
        self._next = FIRST

    def made_of(self, entry: EntryAttributes, ino: int) -> EntryAttributes:
        """*entry*, which was made for the inode with a time-out of 0, for a new stand-in."""
        self._inos[self._next] = ino
        entry.st_ino = self._next
        self._next += 1
        return entry

    def real(self, number: int) -> int:
        """The inode that is meant."""
        return number if number < FIRST else self._inos.get(number, number)

    def forget(self, number: int) -> int:
        """The kernel has forgotten it: what it stood for; 0: it was none."""
        return self._inos.pop(number, 0)

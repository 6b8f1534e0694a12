"""Fresh file systems for the tests of this folder."""

from flakefs.testing.stack import fresh, new_fresh, stack

__all__ = ["fresh", "new_fresh", "stack"]

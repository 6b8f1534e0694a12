"""FlakeFS for Python programs: synchronous, without a mount. See docs/api.md.

import flakefs

with flakefs.connect() as fs:
    fs.put("photo.jpg", "/photos/2024/photo.jpg")
    with fs.open("/notes.txt", "w") as file:
        file.write("hello")
"""

from flakefs.api.client import Client, connect
from flakefs.api.facts import ChunkFacts, Entry, Facts
from flakefs.api.pieces import Piece

__all__ = ["ChunkFacts", "Client", "Entry", "Facts", "Piece", "connect"]

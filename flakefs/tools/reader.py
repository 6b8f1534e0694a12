"""Reading whole collections in pages, at one moment.

Purpose
    Checks go through millions of documents beside a live mount. `Reader` reads them page by page, in order of `_id`,
    all pages at one point in time.

Invariants
    R1  Every read of one Reader sees the same committed state (a snapshot session), when `snapshot` is asked for.
    R2  At most one page is in memory, and no cursor stays open between pages: a slow consumer meets no time-out.

Concurrency
    One thread. Blocks: for worker threads and commands, never for the trio thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from bson.codec_options import CodecOptions
from pymongo import ASCENDING
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from flakefs.errors import Conflict
from flakefs.format.documents import Document
from flakefs.mongo.door import Door

T = TypeVar("T")

PAGE_DOCUMENTS = 2_000
PAGE_SECONDS = 60.0
"""Deadline of one page: a page that is not in memory comes from a disk that others use too."""
SNAPSHOT_TOO_OLD = 239
EXCHANGED = (43, 175)
"""CursorNotFound, QueryPlanKilled."""
EXCHANGED_TRIES = 5


class Reader:
    """Reads of one database. Made by open_reader()."""

    def __init__(self, door: Door, database: str, session: ClientSession | None) -> None:
        self.door = door
        self.database = database
        self._session = session

    def collection(self, name: str) -> Collection[Document]:
        return self.door.client[self.database][name].with_options(codec_options=CodecOptions(tz_aware=True))

    def stream(
        self,
        name: str,
        wanted: Document | None = None,
        *,
        fields: Document | None = None,
        after: Any = None,
        page: int = PAGE_DOCUMENTS,
    ) -> Iterator[Document]:
        """Documents of collection *name* that match *wanted*, in order of `_id`, from *after* on."""
        for documents in self.pages(name, wanted, fields=fields, after=after, page=page):
            yield from documents

    def pages(
        self,
        name: str,
        wanted: Document | None = None,
        *,
        fields: Document | None = None,
        after: Any = None,
        page: int = PAGE_DOCUMENTS,
    ) -> Iterator[list[Document]]:
        """The same, page by page."""
        while documents := self._page(name, wanted, fields, after, page):
            yield documents
            if len(documents) < page:
                return
            after = documents[-1]["_id"]

    def all(self, name: str, wanted: Document | None = None) -> list[Document]:
        """For collections that are small by design."""
        return list(self.stream(name, wanted))

    def one(self, name: str, key: Any) -> Document | None:
        """The document with that `_id`."""
        found = self._page(name, {"_id": key}, None, None, 1)
        return found[0] if found else None

    def aggregate(self, name: str, pipeline: Sequence[Document]) -> list[Document]:
        """All results: for pipelines with few of them."""

        def call() -> list[Document]:
            with self.collection(name).aggregate(list(pipeline), session=self._session, allowDiskUse=True) as cursor:
                return list(cursor)

        return self._run(call, deadline_seconds=600.0)

    def _page(
        self, name: str, wanted: Document | None, fields: Document | None, after: Any, page: int
    ) -> list[Document]:
        query: Document = dict(wanted or {})
        if after is not None:
            query = {"$and": [query, {"_id": {"$gt": after}}]} if query else {"_id": {"$gt": after}}

        def call() -> list[Document]:
            cursor = self.collection(name).find(query, fields, session=self._session)
            with cursor.sort("_id", ASCENDING).limit(page) as documents:
                return list(documents)

        return self._run(call, deadline_seconds=PAGE_SECONDS)

    def _run(self, call: Callable[[], T], *, deadline_seconds: float) -> T:
        def guarded(tries: int = EXCHANGED_TRIES) -> T:
            try:
                return call()
            except OperationFailure as error:
                if error.code in EXCHANGED and tries > 1:  # a vacuum has put a new collection in its place
                    return guarded(tries - 1)
                if error.code == SNAPSHOT_TOO_OLD:
                    raise Conflict(
                        f"checking {self.database} beside a live mount took longer than its server keeps history "
                        "(minSnapshotHistoryWindowInSeconds); unmount it and check again"
                    ) from error
                raise

        return self.door.run_sync(guarded, deadline_seconds=deadline_seconds)


@contextmanager
def open_reader(door: Door, database: str, *, snapshot: bool) -> Iterator[Reader]:
    """A Reader; with *snapshot* on one moment's state (metadata servers only: nodes may be standalone)."""
    if not snapshot:
        yield Reader(door, database, None)
        return
    with door.client.start_session(snapshot=True) as session:
        yield Reader(door, database, session)

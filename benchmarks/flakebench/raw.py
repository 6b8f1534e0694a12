"""pymongo without a file system, on the very servers that FlakeFS uses in this run.

Content goes to the node as FlakeFS would put it there: 1 MiB documents without compression, 4 threads, each insert
acknowledged, and one journaled write at the end. Small documents go to the metadata replica set in transactions of
1,000.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bson import ObjectId
from pymongo import MongoClient, WriteConcern
from pymongo.read_concern import ReadConcern

from flakebench.content import MIB, Noise
from flakebench.workloads import SMALL, Sizes, timed

THREADS = 4
BATCH = 1000
DATABASE = "baseline"


class RawMongo:
    name = "raw"

    def __init__(self, metadata_uri: str, node_uri: str) -> None:
        self._metadata = MongoClient(metadata_uri, timeoutMS=120_000)
        self._node = MongoClient(node_uri, timeoutMS=120_000)
        self._keys: list[ObjectId] = []
        self.drop()

    def drop(self) -> None:
        self._metadata.drop_database(DATABASE)
        self._node.drop_database(DATABASE)

    def checkpoint(self) -> None:
        """Both servers write out what they hold, so that the next measurement does not pay for the last one."""
        for client in (self._metadata, self._node):
            client.admin.command("fsync")

    def close(self) -> None:
        self.drop()
        self._metadata.close()
        self._node.close()

    def write(self, sizes: Sizes) -> float:
        database = self._node[DATABASE]
        database.drop_collection("bulk")
        bulk = database.create_collection(
            "bulk", storageEngine={"wiredTiger": {"configString": "block_compressor=none"}}
        )
        self._keys = [ObjectId() for _ in range(sizes.bulk_mib)]

        def insert(keys: Sequence[ObjectId]) -> None:
            noise = Noise(MIB)
            for key in keys:
                bulk.insert_one({"_id": key, "h": os.urandom(32), "c": "none", "d": bytes(noise.next())})

        def work() -> None:
            self._in_threads(insert)
            database.get_collection("barrier", write_concern=WriteConcern(w=1, j=True)).insert_one({})

        return timed(work)

    def read(self) -> float:
        bulk = self._node[DATABASE]["bulk"]

        def find(keys: Sequence[ObjectId]) -> None:
            for key in keys:
                bulk.find_one({"_id": key})

        return timed(lambda: self._in_threads(find))

    def _in_threads(self, work: Callable[[Sequence[ObjectId]], None]) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(work, [self._keys[number::THREADS] for number in range(THREADS)]))

    def small_documents(self, count: int) -> float:
        collection = self._metadata[DATABASE]["small"]
        collection.drop()
        collection.create_index([("p", 1), ("n", 1)], unique=True)
        noise = Noise(SMALL)
        documents = [
            {"_id": number, "p": 1, "n": f"file-{number:05}", "size": SMALL, "d": bytes(noise.next())}
            for number in range(count)
        ]

        def work() -> None:
            for first in range(0, count, BATCH):
                with (
                    self._metadata.start_session() as session,
                    session.start_transaction(ReadConcern("snapshot"), WriteConcern("majority", j=True)),
                ):
                    collection.insert_many(documents[first : first + BATCH], session=session)

        return timed(work)

    def find_small(self) -> float:
        collection = self._metadata[DATABASE]["small"]
        return timed(lambda: list(collection.find({}, {"d": 0})))

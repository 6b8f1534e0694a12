"""Making pymongo clients, and asking whether a server is one we can use.

Invariants
    C1  Every client has all its time-outs set; none waits for ever, whatever the URI says.
    C2  No message or table contains a password: URIs are shown through redacted(). References to secrets are resolved
        by connect(), for the driver alone (mongo.secrets).
    C3  No client is made at import time, none is used across a fork.
    C4  A client acknowledges its writes and reads from the primary.

Concurrency
    Clients are safe for any number of threads. The checks are synchronous.

Not here
    Running calls (mongo.door).
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pymongo
from bson.errors import BSONError
from pymongo import MongoClient, ReadPreference
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError

from flakefs.errors import ConfigError, OperatorError, Unavailable
from flakefs.format.documents import Document
from flakefs.mongo.diagnosis import why_no_tls, why_not_usable
from flakefs.mongo.secrets import redacted as redacted
from flakefs.mongo.secrets import resolved
from flakefs.mongo.translate import translated

CHECK_SECONDS = 10.0
OLDEST_WIRE_VERSION = 17
"""MongoDB 6.0."""
PROBE_COLLECTION = "flakefs_probe"
_SCHEMES = ("mongodb://", "mongodb+srv://")
_TIMEOUTS = {"timeoutms", "sockettimeoutms", "connecttimeoutms", "serverselectiontimeoutms", "waitqueuetimeoutms"}


def connect(
    uri: str, *, purpose: str, deadline_seconds: float = 10.0, compressors: bool = False, max_pool: int = 16
) -> MongoClient[Document]:
    """A client that connects when it is first used. Raises ConfigError for a URI that makes no sense.

    *compressors*: compress what goes over the network (useful for remote metadata; content is compressed already).
    """
    address = resolved(uri)
    given = _given_options(address, uri)
    milliseconds = int(deadline_seconds * 1000)
    options: dict[str, Any] = {
        "appname": f"flakefs-{purpose}",
        "connect": False,
        "timeoutMS": milliseconds,
        "serverSelectionTimeoutMS": milliseconds,
        "connectTimeoutMS": milliseconds,
        "socketTimeoutMS": milliseconds,
        "waitQueueTimeoutMS": milliseconds,
        "maxPoolSize": max_pool,
        "minPoolSize": 1,
        "maxConnecting": 4,
        "heartbeatFrequencyMS": 5000,
    }
    if compressors and not is_local(address):
        options["compressors"] = "zlib"  # in every build of the driver; zstd needs a further package
        options["zlibCompressionLevel"] = 1
    options = {
        name: value
        for name, value in options.items()
        if name.lower() not in given or (name.lower() in _TIMEOUTS and given[name.lower()] in ("", "0"))
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pymongo only warns about options it does not know
            return MongoClient(address, read_preference=ReadPreference.PRIMARY, **options)
    except (PyMongoError, OSError, ValueError, TypeError, Warning) as error:
        raise ConfigError(
            why_not_usable(redacted(uri), given, error)
            or f"{redacted(uri)} is not a usable MongoDB URI ({_without(address, str(error))}): correct it"
        ) from error


def hosts_of(uri: str) -> list[str]:
    """The hosts that a URI names, without ports, in lower case; a unix socket as its path. Raises ConfigError."""
    hosts = urlsplit(resolved(uri)).netloc.rpartition("@")[2].split(",")
    names = (unquote(host).strip() for host in hosts)
    return [
        name if name.startswith("/") else re.sub(r"\[([^]]*)\](:\d+)?$|:\d+$", r"\1", name).lower()
        for name in names
        if name
    ]


def is_local(uri: str) -> bool:
    """Does the URI name only unix sockets or this machine?"""
    hosts = urlsplit(uri).netloc.rpartition("@")[2].lower().split(",")
    return all(host.endswith(".sock") or host.split(":")[0] in ("localhost", "127.0.0.1") for host in hosts)


def check_metadata_server(client: MongoClient[Document], uri: str) -> None:
    """Reachable, lets us in, a replica set (transactions), new enough; else one sentence that says which is not."""
    where = f"the metadata server {redacted(uri)}"
    hello = _ask(client, where, lambda: client.admin.command("hello"))
    _check_version(client, where, hello)
    if hello.get("msg") == "isdbgrid":
        return
    if "setName" not in hello:
        raise OperatorError(
            f"{where} is a standalone server, and metadata needs transactions: start it with --replSet and run "
            "rs.initiate() (a replica set of one member is enough)"
        )


def check_node_server(client: MongoClient[Document], uri: str, database: str) -> None:
    """Reachable, lets us in and write into *database*, new enough; else one sentence that says which is not."""
    where = f"the node {redacted(uri)}"
    hello = _ask(client, where, lambda: client.admin.command("hello"))
    _check_version(client, where, hello)

    def probe() -> None:
        collection = client[database][PROBE_COLLECTION]
        name = secrets.token_hex(8)
        collection.insert_one({"_id": name})
        collection.delete_one({"_id": name})
        if collection.find_one({}) is None:
            collection.drop()

    _ask(client, f"{where} (database {database})", probe)


def server_time(client: MongoClient[Document]) -> datetime:
    """The clock of the server, in UTC: what several machines compare goes by it, whatever theirs say. Raises as a
    command does.
    """
    now: datetime = client.admin.command("hello")["localTime"]
    return now if now.tzinfo else now.replace(tzinfo=UTC)


def server_process(client: MongoClient[Document]) -> bytes:
    """Which server process answers: changes whenever the server is started anew. For use inside a door's call."""
    process = client.admin.command("hello")["topologyVersion"]["processId"]
    return bytes(process.binary)


def _given_options(address: str, uri: str) -> dict[str, str]:
    """Options that the URI itself sets, which we leave alone. *uri*: as it may be shown, with references."""
    if not address.startswith(_SCHEMES):
        raise ConfigError(f"{redacted(uri)!r} is not a MongoDB URI: it has to start with mongodb:// or mongodb+srv://")
    _, _, query = address.partition("?")
    given = {name.lower(): value for name, value in parse_qsl(query, keep_blank_values=True)}
    if given.get("w") == "0":
        raise ConfigError(f"{redacted(uri)} says w=0, which loses data silently: leave w out")
    if given.get("readpreference", "primary").lower() != "primary":
        raise ConfigError(f"{redacted(uri)} sets readPreference, which would read old data: leave it out")
    return given


def _ask(client: MongoClient[Document], where: str, call: Callable[[], Any]) -> Any:
    try:
        with pymongo.timeout(min(CHECK_SECONDS, client.options.timeout or CHECK_SECONDS)):
            return call()
    except ServerSelectionTimeoutError as error:
        kinds = {server.server_type_name for server in client.topology_description.server_descriptions().values()}
        if kinds == {"RSGhost"}:
            raise OperatorError(
                f"the replica set of {where} has not been initiated: run rs.initiate() there"
            ) from error
        if kinds <= {"RSSecondary", "RSArbiter", "RSOther"} and kinds:
            raise Unavailable(f"{where} has no primary at the moment: wait, or look at rs.status() there") from error
        if problem := why_no_tls(where, str(error)):
            raise OperatorError(problem) from error
        if "connection closed" in str(error) and getattr(client.options.pool_options, "_ssl_context", None) is None:
            raise Unavailable(f"{where} closes every connection: it may want TLS (tls=true in its URI)") from error
        raise translated(error, where) from error
    except (PyMongoError, BSONError) as error:
        raise translated(error, where) from error


def _check_version(client: MongoClient[Document], where: str, hello: dict[str, Any]) -> None:
    if hello.get("maxWireVersion", 0) < OLDEST_WIRE_VERSION:
        version = _ask(client, where, lambda: client.admin.command("buildInfo"))["version"]
        raise OperatorError(f"{where} runs MongoDB {version}, FlakeFS needs 6.0 or newer: upgrade it")


def _without(uri: str, message: str) -> str:
    """*message* without the password of *uri*, in case the driver quotes it."""
    login = uri.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")[2]
    return message.replace(login, "***").replace(unquote(login), "***") if login else message

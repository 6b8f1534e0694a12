"""Waiting for the metadata server before mounting: at boot it may start later than this machine asks for it.

Invariants
    W1  Only silence is waited for. A server that answers and says no (rights, version, no replica set) is an error at
        once, and so is a configuration that makes no sense.
    W2  After the time given, the error says why the last attempt failed.

Concurrency
    Trio; asking blocks a thread for ASK_SECONDS at most, which is left behind when the caller is cancelled.

Not here
    A server that goes away later (namespace, engine).
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from flakefs.config import Config
from flakefs.errors import Unavailable
from flakefs.mongo.clients import check_metadata_server, connect

ASK_SECONDS = 2.0
PAUSE_SECONDS = 0.5


async def metadata_answers(config: Config, say: Callable[[str], None]) -> float:
    """Return when it answers; the seconds that took. `[mount] wait_seconds` bounds it: 0 asks nobody.

    *say* is called once with a sentence when there is something to wait for. Raises Unavailable (W2).
    """
    seconds = config.mount.wait_seconds
    if not seconds or not config.metadata_uri:  # the embedded servers are started, not waited for
        return 0.0
    begin = trio.current_time()
    said = False
    while True:
        try:
            await trio.to_thread.run_sync(_ask, config, abandon_on_cancel=True)
            return trio.current_time() - begin
        except Unavailable as error:
            left = begin + seconds - trio.current_time()
            if left <= 0:
                raise Unavailable(f"{error} (waited {seconds:g} s for it)") from error
            if not said:
                said = True
                say(f"waiting up to {left:.0f} s more for the metadata server: {error}")
        await trio.sleep(min(PAUSE_SECONDS, left))


def _ask(config: Config) -> None:
    uri = config.metadata_uri
    client = connect(uri, purpose="mount", deadline_seconds=min(ASK_SECONDS, config.metadata_deadline_seconds))
    try:
        check_metadata_server(client, uri)
    finally:
        client.close()

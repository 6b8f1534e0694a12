"""Telling systemd how a mount is doing: the few lines of sd_notify(3) that a service of Type=notify needs.

Invariants
    Y1  Without NOTIFY_SOCKET, or when nobody listens there, nothing happens: a mount never fails for want of systemd.
    Y2  The variable is taken out of the environment, so that no child (a mongod) speaks for the mount.

Concurrency
    Synchronous; one datagram, sent without waiting.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)

VARIABLE = "NOTIFY_SOCKET"


class Notifier:
    """Sends to the socket that was named when this was made."""

    def __init__(self) -> None:
        name = os.environ.pop(VARIABLE, "")
        self._address = "\0" + name[1:] if name.startswith("@") else name

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str, *, extend_seconds: float = 0.0) -> None:
        """*extend_seconds*: starting (or stopping) may take so much longer from now on."""
        more = [f"EXTEND_TIMEOUT_USEC={int(extend_seconds * 1_000_000)}"] if extend_seconds else []
        self._send(f"STATUS={status}", *more)

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), self._address)
        except (OSError, ValueError) as error:  # Y1
            log.info("the service manager cannot be told %r: %s", lines[0], error)

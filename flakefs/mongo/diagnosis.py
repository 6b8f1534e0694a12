"""Why a mongod ended that should be running, and why TLS leads to none: one sentence from what is said about it.

Concurrency
    Pure but for reading the end of two files.

Not here
    Starting and stopping (mongo.server), what a server answers (mongo.translate).
"""

from __future__ import annotations

import json
import signal
import ssl
from collections.abc import Mapping
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_NEEDS_OTHER_VERSION = 62
_NO_LIBRARY = 127


def why_it_ended(binary: Path, data: Path, log: Path, output: Path, status: int) -> str:
    """One sentence for the person in front of it."""
    printed = _tail(output)
    logged = _tail(log)
    text = logged + printed
    if status in (_NO_LIBRARY, -signal.SIGILL):
        return why_it_cannot_run(binary, printed, status)
    if "No space left on device" in text or "OutOfDiskSpace" in text:
        return f"mongod cannot start because the disk of {data} is full: free some space there"
    if "DBPathInUse" in text:
        return f"another mongod is running on {data} already: stop it, or choose another data folder"
    if status == _NEEDS_OTHER_VERSION:
        return (
            f"the data in {data} was written by another version of MongoDB than mongod ({binary}) can read: "
            "use the mongod it was made with"
        )
    if "Permission denied" in text or "Read-only file system" in text:
        return f"mongod cannot write to {data}: check its owner, its rights and how its disk is mounted"
    if status < 0:
        return f"mongod ({binary}) was ended by {_signal_name(-status)} while starting on {data}: look into {log}"
    reason = _last_error(logged) or _last_line(printed) or f"exit status {status}"
    return f"mongod ({binary}) ended at once on {data} ({reason}): look into {log}"


def why_it_cannot_run(binary: Path, printed: str, status: int) -> str:
    """One sentence about a program that does not even say its version."""
    if "error while loading shared libraries" in printed:
        missing = _after(printed, "error while loading shared libraries: ").split(":")[0]
        return (
            f"mongod ({binary}) cannot run on this system because {missing} is missing: install it, or another mongod"
        )
    if status == -signal.SIGILL:
        return (
            f"mongod ({binary}) cannot run on this processor (MongoDB 5.0 and newer need AVX): "
            "use a machine with AVX, or the URI of a server elsewhere"
        )
    reason = _signal_name(-status) if status < 0 else _last_line(printed) or f"exit status {status}"
    return f"mongod ({binary}) cannot run on this machine ({reason}): name another one"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return _since_last_start(file.read().decode("utf-8", "replace"))
    except OSError:
        return ""


def _since_last_start(text: str) -> str:
    """A log is appended to by every start; older troubles must not explain a new one."""
    at = text.rfind("***** SERVER RESTARTED *****")
    return text if at < 0 else text[at:]


def _last_error(logged: str) -> str:
    found = ""
    for line in logged.splitlines():
        if '"s":"E"' in line or '"s":"F"' in line:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            attributes = entry.get("attr", {})
            found = str(attributes.get("error") or attributes.get("message") or entry.get("msg", ""))
    return found[:300]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _after(text: str, marker: str) -> str:
    _, found, rest = text.partition(marker)
    return rest.splitlines()[0] if found and rest else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def why_not_usable(where: str, options: Mapping[str, str], error: Exception) -> str:
    """One sentence when it is a file that the URI of *where* names for TLS; "" when it is something else."""
    text = str(error)
    for option in ("tlsCAFile", "tlsCertificateKeyFile", "tlsCRLFile"):
        name = options.get(option.lower())
        if name is None:
            continue
        # older drivers pass the error of open()
        if f"The {option.lower()} file is not readable" in text or getattr(error, "filename", None) == name:
            return f"the file {name}, which {where} names ({option}), cannot be read: put it there on this machine"
    if isinstance(error, ssl.SSLError):
        names = [options[key] for key in ("tlscafile", "tlscertificatekeyfile", "tlscrlfile") if options.get(key)]
        reason = (error.reason or text).replace("_", " ").lower()
        return f"what {where} names for TLS ({', '.join(names)}) cannot be used ({reason}): it has to be a PEM file"
    return ""


def why_no_tls(where: str, message: str) -> str:
    """One sentence from what the driver says when TLS is the reason that it reaches nobody; "" when it is not."""
    if "certificate has expired" in message:
        return f"the certificate of {where} has expired: renew it there"
    if "mismatch" in message and "certificate verify failed" in message:
        reason = _after(message, "certificate verify failed: ").split(" (_ssl")[0].rstrip(".")
        return f"the certificate of {where} is that of another name ({reason}): use the name that it was made for"
    if "self-signed certificate" in message or "unable to get local issuer certificate" in message:
        return (
            f"the certificate of {where} was signed by nobody that this machine trusts: name the authority's "
            "certificate in the URI (tlsCAFile=/path)"
        )
    if "certificate verify failed" in message:
        reason = _after(message, "certificate verify failed: ").split(" (_ssl")[0]
        return f"the certificate of {where} is not accepted ({reason}): correct it there"
    if "CERTIFICATE_REQUIRED" in message or "certificate required" in message:
        return f"{where} wants a certificate of ours: name it in the URI (tlsCertificateKeyFile=/path)"
    if "SSL handshake failed" in message and ("EOF" in message or "WRONG_VERSION_NUMBER" in message):
        return f"{where} does not speak TLS: leave tls=true out of the URI, or switch TLS on there"
    return ""

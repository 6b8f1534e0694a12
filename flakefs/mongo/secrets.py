"""References to secrets in MongoDB URIs: `${env:NAME}` and `${file:/path}`.

Purpose
    What is stored, shown and handed from process to process is the reference. What it stands for is looked up on each
    machine, at the moment of connecting.

Invariants
    SE1  Nothing but resolved() looks a secret up, and only mongo.clients calls it: the result goes into the driver and
         nowhere else.
    SE2  What is shown of a URI (redacted()) has no secret that stands there in clear; references are shown.
    SE3  A secret is percent-quoted when it is put into a URI: any character may be in it. A reference that is the whole
         URI is put there as it is.

Concurrency
    Synchronous; reads small files.

Not here
    Connecting (mongo.clients).
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

from flakefs.errors import ConfigError, UsageError

REFERENCE = re.compile(r"\$\{(env|file):([^{}]+)\}")
HOW = "write mongodb://USER:${file:/PATH}@HOST/ or mongodb://USER:${env:NAME}@HOST/ and put the password there"
SECRET_MAX = 64 * 1024
"""Bytes of a file that may be a secret."""
_FIRST_TOKEN = 0xE000
"""References become private characters while a URI is taken apart: they have slashes and colons in them."""
_TOKENS = re.compile("[\ue000-\uf8ff]+")
_LOGIN = re.compile(r"^(mongodb(?:\+srv)?://[^:@/]*):(.*)@")
_OPTION = re.compile(r"(?i)(authmechanismproperties|tlscertificatekeyfilepassword)=([^&]*)")


def resolved(uri: str) -> str:
    """*uri* with its secrets in it (SE1). Raises ConfigError for one that is not there."""
    whole = REFERENCE.fullmatch(uri)
    if whole is not None:
        return _looked_up(whole, uri)
    return REFERENCE.sub(lambda match: quote(_looked_up(match, uri), safe=""), _checked(uri))


def masked(uri: str) -> str:
    """*uri* with a letter in place of each reference: it can be taken apart as any URI."""
    return _TOKENS.sub("x", _cut(uri)[0])


def redacted(uri: str) -> str:
    """*uri* for people: without its password (SE2); a unix socket as a readable path."""
    cut, references = _cut(uri)
    shown = _LOGIN.sub(lambda match: f"{match[1]}:{_hidden(match[2])}@", cut)
    shown = _OPTION.sub(lambda match: f"{match[1]}={_hidden(match[2])}", shown)
    shown = re.sub(r"(?i)%2f[^/?@,]*\.sock", lambda match: unquote(match[0]), shown)
    return _restored(shown, references)


def hosts_part(uri: str) -> str:
    """The hosts of a URI as they are written, in lower case, references included; the URI itself when it names none."""
    cut, references = _cut(uri)
    hosts = re.split(r"[/?]", cut.partition("://")[2] or cut, maxsplit=1)[0].rpartition("@")[2].lower()
    return _restored(hosts, references)


def has_clear_secret(uri: str) -> bool:
    """Does the URI say a password, instead of where it is?"""
    cut, _ = _cut(uri)
    login, at, _ = re.split(r"[/?]", cut.partition("://")[2], maxsplit=1)[0].rpartition("@")
    secrets = [login.partition(":")[2]] if at else []
    secrets += [match[2] for match in _OPTION.finditer(cut)]
    return any(_TOKENS.sub("", secret) for secret in secrets)


def refuse_clear_secret(uri: str) -> None:
    """For addresses that would be stored, and for such as come from a command line, where every user may read them."""
    if has_clear_secret(uri):
        raise UsageError(
            f"{redacted(uri)} has its password in clear, which others could read in the list of processes and in the "
            f"metadata: {HOW}"
        )


def _hidden(secret: str) -> str:
    """References may be seen."""
    return secret if not _TOKENS.sub("", secret) else "***"


def _cut(uri: str) -> tuple[str, list[str]]:
    references: list[str] = []

    def take(match: re.Match[str]) -> str:
        references.append(match[0])
        return chr(_FIRST_TOKEN + len(references) - 1)

    return REFERENCE.sub(take, uri), references


def _restored(text: str, references: list[str]) -> str:
    for number, reference in enumerate(references):
        text = text.replace(chr(_FIRST_TOKEN + number), reference)
    return text


def _checked(uri: str) -> str:
    cut, _ = _cut(uri)
    if "${" in cut:
        raise ConfigError(
            f"{redacted(uri)} has a reference that is none: it can be ${{env:NAME}} or ${{file:/path}}; a password "
            "with ${ in it is written with %24%7B"
        )
    return uri


def _looked_up(match: re.Match[str], uri: str) -> str:
    kind, name = match[1], match[2]
    if kind == "env":
        value = os.environ.get(name, "")
        if not value:
            raise ConfigError(
                f"the environment variable {name}, which {redacted(uri)} refers to, is not set here: set it before "
                "this starts"
            )
        return value
    if not os.path.isabs(name):
        raise ConfigError(f"{match[0]} in {redacted(uri)} has to be an absolute path: it is read on every machine")
    try:
        with open(name, "rb") as file:
            value = file.read(SECRET_MAX).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"the file {name}, which {redacted(uri)} refers to, cannot be read ({reason}): put the secret there on "
            "this machine"
        ) from error
    if not value:
        raise ConfigError(f"the file {name}, which {redacted(uri)} refers to, is empty: put the secret there")
    return value

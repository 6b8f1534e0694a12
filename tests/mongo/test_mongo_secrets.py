"""References to secrets in URIs (SE1 to SE3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from flakefs.errors import ConfigError, UsageError
from flakefs.mongo.clients import connect
from flakefs.mongo.secrets import has_clear_secret, hosts_part, masked, redacted, refuse_clear_secret, resolved


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path of a file with a password of the worst kind, which FLAKE_SECRET holds, too."""
    path = tmp_path / "password"
    path.write_text("p@ss/w:rd?&%ü\n")
    monkeypatch.setenv("FLAKE_SECRET", "p@ss/w:rd?&%ü")
    return path


def test_references_are_quoted_and_reach_the_driver(secret: Path) -> None:
    wanted = "mongodb://u:p%40ss%2Fw%3Ard%3F%26%25%C3%BC@h/db?authSource=admin"
    for reference in ("${env:FLAKE_SECRET}", f"${{file:{secret}}}"):
        uri = f"mongodb://u:{reference}@h/db?authSource=admin"
        assert resolved(uri) == wanted, "SE3"
        assert redacted(uri) == uri, "SE2"
        assert masked(uri) == "mongodb://u:x@h/db?authSource=admin"
        with connect(uri, purpose="test") as client:
            assert client.options._options["authsource"] == "admin"
            credentials = client.options.pool_options._credentials
            assert credentials is not None
            assert credentials.password == "p@ss/w:rd?&%ü"
    assert resolved("mongodb://h/") == "mongodb://h/"


def test_a_reference_may_be_the_whole_uri(tmp_path: Path) -> None:
    whole = tmp_path / "uri"
    whole.write_text("mongodb://u:secret@h1,h2/?replicaSet=rs\n")
    uri = f"${{file:{whole}}}"
    assert resolved(uri) == "mongodb://u:secret@h1,h2/?replicaSet=rs", "SE3"
    assert redacted(uri) == uri
    assert not has_clear_secret(uri)
    whole.write_text("http://u:secret@h/")
    with pytest.raises(ConfigError, match="is not a MongoDB URI") as caught:
        connect(uri, purpose="test")
    assert "u:secret" not in str(caught.value), "SE2"
    whole.write_text("mongodb://u:sec ret@h:port/")
    with pytest.raises(ConfigError, match="is not a usable MongoDB URI") as caught:
        connect(uri, purpose="test")
    assert "sec ret" not in str(caught.value), "SE2"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mongodb://u:${env:FLAKE_NOT_SET}@h/", "environment variable FLAKE_NOT_SET, which .* is not set"),
        ("mongodb://u:${file:/nowhere/x}@h/", "file /nowhere/x, which .* cannot be read .No such file"),
        ("mongodb://u:${file:/}@h/", "Is a directory"),
        ("mongodb://u:${file:/dev/null}@h/", "is empty"),
        ("mongodb://u:${file:relative}@h/", "has to be an absolute path"),
        ("mongodb://u:${HOME}@h/", r"has a reference that is none: it can be \$\{env:NAME\}"),
    ],
)
def test_sentences(uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        connect(uri, purpose="test")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is no text"):
        resolved(f"mongodb://u:${{file:{tmp_path}/binary}}@h/")


def test_hosts_are_told_apart_whatever_the_references_hide() -> None:
    assert hosts_part("mongodb://u:${file:/a/b@c}@Host:1,other/db?x=y") == "host:1,other"
    assert hosts_part("mongodb://${env:U}:${env:P}@${env:HOST1}/") == "${env:HOST1}"
    assert hosts_part("${file:/etc/one}") != hosts_part("${file:/etc/two}")


@pytest.mark.parametrize(
    ("uri", "clear"),
    [
        ("mongodb://h/", False),
        ("mongodb://u@h/", False),
        ("mongodb://h/?x=a:b@c", False),
        ("mongodb://%2Ftmp%2Fa.sock/", False),
        ("mongodb://u:secret@h/", True),
        ("mongodb://u:p@ss@h/", True),
        ("mongodb+srv://u:secret@h/db", True),
        ("mongodb://u:${env:P}@h/", False),
        ("mongodb://u:${file:/a/b@c}@h/", False),
        ("mongodb://u:${env:P}x@h/", True),
        ("mongodb://${env:U}:${env:P}@${env:H}/", False),
        ("${env:URI}", False),
        ("mongodb://h/?tls=true&tlsCertificateKeyFilePassword=secret", True),
        ("mongodb://h/?tls=true&tlsCertificateKeyFilePassword=${env:P}", False),
        ("mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:secret", True),
        ("embedded", False),
    ],
)
def test_clear_secrets_are_recognised_and_never_shown(uri: str, clear: bool) -> None:
    assert has_clear_secret(uri) is clear
    assert "secret" not in redacted(uri), "SE2"
    if clear:
        with pytest.raises(UsageError, match="has its password in clear") as caught:
            refuse_clear_secret(uri)
        assert "secret" not in str(caught.value).replace("has its password", "")
    else:
        refuse_clear_secret(uri)
        assert redacted(uri).count("${") == uri.count("${"), "references are shown"

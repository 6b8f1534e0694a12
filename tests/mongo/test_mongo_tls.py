"""TLS with certificates of our own, against servers that want nothing else: it works, and what is wrong is said."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pymongo
import pytest

from flakefs.errors import ConfigError, FlakeError, OperatorError
from flakefs.format.documents import Document
from flakefs.mongo.binaries import find_mongod
from flakefs.mongo.clients import check_metadata_server, check_node_server, connect
from flakefs.mongo.server import Mongod, ServerPlan
from flakefs.testing.servers import Servers

SECRET = "not:in@clear"
SHORT = "timeoutMS=1500&serverSelectionTimeoutMS=1500"


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> None:
    openssl(
        folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={name}",
        "-keyout", f"{name}.key", "-out", f"{name}.pem",
    )  # fmt: skip


def make_certificate(folder: Path, name: str, alternative: str, days: int = 30) -> None:
    """<name>.pem: certificate and key, signed by the authority."""
    openssl(
        folder,
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        f"/CN={name}",
        "-keyout",
        f"{name}.key",
        "-out",
        "request",
    )
    (folder / "extensions").write_text(f"subjectAltName={alternative}\n")
    openssl(
        folder, "x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", str(days), "-extfile", "extensions", "-out", f"{name}.crt",
    )  # fmt: skip
    (folder / f"{name}.pem").write_bytes((folder / f"{name}.crt").read_bytes() + (folder / f"{name}.key").read_bytes())


class Guarded:
    """A metadata server and a node with TLS and passwords, on TCP."""

    def __init__(self, servers: Servers, certificates: Path) -> None:
        self.certificates = certificates
        self.authority = f"tls=true&tlsCAFile={certificates}/ca.pem"
        self.mongods: list[Mongod] = []
        more = (
            "--tlsMode", "requireTLS", "--tlsCertificateKeyFile", f"{certificates}/good.pem",
            "--tlsCAFile", f"{certificates}/ca.pem", "--tlsAllowConnectionsWithoutCertificates",
        )  # fmt: skip
        self.ports = {}
        for name, replica_set in (("metadata", True), ("node1", False)):
            plain = servers.server(name, replica_set=replica_set, auth=True, tcp=True)
            with plain.client() as client:
                client.admin.command("createUser", "tls", pwd=SECRET, roles=["root"])
                if replica_set:  # the certificate is that of an address, not of a socket
                    config = client.admin.command("replSetGetConfig")["config"]
                    config["members"][0]["host"] = f"127.0.0.1:{plain.plan.port}"
                    config["version"] += 1
                    client.admin.command("replSetReconfig", config, force=True)
            plain.stop()
            plan: ServerPlan = replace(plain.plan, more=more)
            if replica_set:  # nobody but a TLS client can ask it whether it is the primary
                plan = replace(plan, members=(plan.socket,))
            server = Mongod(plan)
            server.start(find_mongod())
            server.wait_ready()
            self.mongods.append(server)
            self.ports[name] = plan.port
        with pymongo.MongoClient[Document](
            self.uri("metadata").replace("${env:TLS_SECRET}", "not%3Ain%40clear")
        ) as client:
            deadline = time.monotonic() + 60
            while not client.admin.command("hello")["isWritablePrimary"] and time.monotonic() < deadline:
                time.sleep(0.02)
            assert client.admin.command("hello")["isWritablePrimary"]

    def uri(
        self, name: str, *, options: str | None = None, secret: str = "${env:TLS_SECRET}", host: str = "127.0.0.1"
    ) -> str:
        options = self.authority if options is None else options
        return f"mongodb://tls:{secret}@{host}:{self.ports[name]}/?directConnection=true&authSource=admin&{options}"

    def stop(self) -> None:
        for mongod in self.mongods:
            mongod.kill()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, "ca")
    make_authority(folder, "stranger")
    make_certificate(folder, "good", "IP:127.0.0.1")
    with Servers() as servers:
        running = Guarded(servers, folder)
        yield running
        running.stop()


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLS_SECRET", SECRET)
    monkeypatch.setenv("WRONG", "guessed")


def why(uri: str) -> str:
    with pytest.raises(FlakeError) as caught, connect(uri, purpose="test") as client:
        check_node_server(client, uri, "probe")
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 450
    assert SECRET not in said
    assert "guessed" not in said
    return said


def test_a_file_system_with_tls_and_passwords(guarded: Guarded, tmp_path: Path) -> None:
    config = tmp_path / "flakefs.conf"
    config.write_text(f'[metadata]\nuri = {json.dumps(guarded.uri("metadata"))}\ndatabase = "tls"\n')
    config.chmod(0o600)

    def flake(*words: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flakefs", "--config", str(config), *map(str, words)],
            capture_output=True, text=True, timeout=100, env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert SECRET not in done.stdout
        return done.stdout

    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    flake("format", "--node", guarded.uri("node1"))
    flake("put", tmp_path / "file", "/")
    folder = tmp_path / "mnt"
    flake("mount", "-o", f"log={tmp_path}/log", folder)
    try:
        assert (folder / "file").read_bytes() == content
        (folder / "second").write_bytes(content[::-1])
    finally:
        flake("umount", folder)
    assert SECRET not in (tmp_path / "log").read_text()
    flake("fsck")


def test_what_is_wrong_is_said(guarded: Guarded) -> None:
    here = guarded.certificates
    for options, words in (
        ("", "closes every connection: it may want TLS"),
        ("tls=true", "was signed by nobody that this machine trusts: name the authority's certificate in the URI"),
        (f"tls=true&tlsCAFile={here}/stranger.pem", "was signed by nobody that this machine trusts"),
        ("tls=true&tlsCAFile=/nowhere/ca.pem", "the file /nowhere/ca.pem, which .* names .tlsCAFile., cannot be read"),
        (f"tls=true&tlsCAFile={here}/ca.key", "it has to be a PEM file"),
        (
            f"{guarded.authority}&tlsCertificateKeyFile=/nowhere/me.pem",
            r"names \(tlsCertificateKeyFile\), cannot be read",
        ),
    ):
        uri = guarded.uri("node1", options=f"{options}&{SHORT}".lstrip("&"))
        with pytest.raises(FlakeError, match=words), connect(uri, purpose="test") as client:
            check_node_server(client, uri, "probe")
        why(uri)
    assert "does not let us in" in why(guarded.uri("node1", secret="${env:WRONG}"))
    other = guarded.uri("node1", host="localhost", options=f"{guarded.authority}&{SHORT}")
    assert "is that of another name" in why(other)
    metadata = guarded.uri("metadata", options="tls=true&tlsCAFile=/nowhere/ca.pem")
    with pytest.raises(ConfigError, match="cannot be read"):
        connect(metadata, purpose="test")
    metadata = guarded.uri("metadata", options=f"tls=true&{SHORT}")
    with (
        pytest.raises(OperatorError, match="the certificate of the metadata server"),
        connect(metadata, purpose="test") as client,
    ):
        check_metadata_server(client, metadata)


def test_a_server_without_tls(servers: Servers) -> None:
    server = servers.server("tcp", tcp=True)
    uri = f"mongodb://127.0.0.1:{server.plan.port}/?tls=true&{SHORT}"
    assert "does not speak TLS: leave tls=true out" in why(uri)


def test_an_expired_certificate(guarded: Guarded) -> None:
    """A mongod does not start with one, but it may run until it expires: what answers here is its handshake alone."""
    make_certificate(guarded.certificates, "old", "IP:127.0.0.1", days=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(guarded.certificates / "old.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            uri = f"mongodb://127.0.0.1:{listener.getsockname()[1]}/?{guarded.authority}&{SHORT}"
            assert "has expired: renew it there" in why(uri)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

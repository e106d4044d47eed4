"""TLS that is not to be trusted gets no login, and no field of the API turns the checks off."""

import datetime
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mailpoll.imap import Fault, ImapError, connection
from mailpoll.imap.connection import Login
from mailpoll.settings import Settings, from_environment
from tests.servers.process import HOST

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority that signs whatever it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        self.ca_file = directory / "ca.pem"
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        authority = self._builder(self.name, self.key).add_extension(constraints, critical=True)
        authority = authority.add_extension(usage, critical=True)
        self._write(self.ca_file, authority.sign(self.key, hashes.SHA256()))

    def certificate(
        self, *, names: list[str], common: str = "x", days: tuple[int, int] = (-1, 1)
    ) -> tuple[Path, Path]:
        """The files of a certificate and its key, good from the first day to the second."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        builder = self._builder(subject, key, days)
        if names:
            alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternative, critical=False)
        files = self.directory / "server.pem", self.directory / "server.key"
        self._write(files[0], builder.sign(self.key, hashes.SHA256()))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _builder(
        self, subject: x509.Name, key: Any, days: tuple[int, int] = (-1, 1)
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + days[0] * DAY)
            .not_valid_after(NOW + days[1] * DAY)
        )

    def _write(self, path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


class TlsServer:
    """Greets like an IMAP server on one connection after the handshake; notes what it reads."""

    def __init__(self, files: tuple[Path, Path], version: ssl.TLSVersion | None = None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*files)
        if version:
            self.context.minimum_version = ssl.TLSVersion.TLSv1
            self.context.maximum_version = version
            self.context.set_ciphers("ALL:@SECLEVEL=0")
        self.read: list[bytes] = []
        self.asked_for: list[str | None] = []
        self.context.sni_callback = lambda _, name, __: self.asked_for.append(name)
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "TlsServer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join(10)
        self.listener.close()

    def _serve(self) -> None:
        client, _ = self.listener.accept()
        client.settimeout(10)
        try:
            with self.context.wrap_socket(client, server_side=True) as secured:
                secured.sendall(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")
                while data := secured.recv(4_096):
                    self.read.append(data)
        except OSError:
            client.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings_for(authority: Authority) -> Settings:
    return from_environment(
        {
            "MAILPOLL_IMAP_CA_FILE": str(authority.ca_file),
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            "MAILPOLL_IMAP_CONNECT_TIMEOUT": "5",
        }
    )


def connect(server: TlsServer, authority: Authority) -> None:
    connection.greets("localhost", server.port, settings_for(authority), 10)


def test_a_good_certificate_is_accepted_and_the_name_is_asked_for(authority: Authority) -> None:
    """S07, S09: what the refusals below have in common is not to blame; SNI is the name."""
    with TlsServer(authority.certificate(names=["localhost"])) as server:
        connect(server, authority)
    assert server.asked_for == ["localhost"]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"names": ["localhost"], "days": (-9, -1)}, "expired"),
        ({"names": ["localhost"], "days": (1, 9)}, "not yet valid"),
        ({"names": ["imap.example.org"]}, "Hostname mismatch"),
        ({"names": ["*.localhost"]}, "Hostname mismatch"),
        ({"names": [], "common": "localhost"}, "Hostname mismatch"),
    ],
    ids=["expired", "not yet", "other host", "wild card", "common name only"],
)
def test_a_wrong_certificate_ends_it_before_a_word_is_said(
    authority: Authority, made: dict[str, Any], words: str
) -> None:
    """S07: signed by an authority that is trusted, and wrong all the same."""
    with TlsServer(authority.certificate(**made)) as server, pytest.raises(ImapError) as caught:
        connect(server, authority)
    assert caught.value.fault is Fault.TLS
    assert words in caught.value.detail
    assert server.read == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_of_tls_are_refused(authority: Authority, version: ssl.TLSVersion) -> None:
    """S08: nothing below TLS 1.2."""
    files = authority.certificate(names=["localhost"])
    # Given a server that speaks no later one, to which a client without scruples can connect
    with TlsServer(files, version) as server:
        lenient = ssl.create_default_context(cafile=str(authority.ca_file))
        lenient.minimum_version = ssl.TLSVersion.TLSv1
        lenient.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection((HOST, server.port)) as sock,
            lenient.wrap_socket(sock, server_hostname="localhost") as secured,
        ):
            assert secured.version() == {"TLSv1": "TLSv1", "TLSv1_1": "TLSv1.1"}[version.name]
    # Then mailpoll does not
    with TlsServer(files, version) as server, pytest.raises(ImapError) as caught:
        connect(server, authority)
    assert caught.value.fault is Fault.TLS
    assert server.read == []


def test_a_context_checks_names_and_certificates() -> None:
    """S07: there is one context for all connections, and it is strict."""
    context = connection.tls_context(None)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_login_hides_its_secret() -> None:
    """S38: also where it is shown by accident."""
    assert "hunter2" not in repr(Login("h", 993, "tls", "u", "password", "hunter2"))

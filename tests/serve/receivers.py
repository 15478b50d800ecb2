"""Receivers of webhooks on this computer, with and without TLS, that behave as they are told."""

import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Had", "Receiver", "certificate", "receiving"]


@dataclass(frozen=True)
class Had:
    """A request that a receiver has had; names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Receiver:
    """What a receiver answers, one answer after the other, the last one for ever; and what it has had.

    Attributes:
        answers: a status; "hang" says nothing, "drip" says it a byte at a time for ever, "flood" never ends its body.
        location: of an answer that redirects.
    """

    port: int = 0
    answers: list[int | str] = field(default_factory=lambda: [200])
    location: str = ""
    had: list[Had] = field(default_factory=list)
    connections: int = 0
    sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def ids(self) -> list[str]:
        return [had.headers["webhook-id"] for had in self.had]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver  # pyright: ignore[reportAttributeAccessIssue]
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
        receiver.had.append(Had(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        with contextlib.suppress(OSError):
            if answer == "hang":
                receiver.over.wait()
            elif answer == "drip":
                for byte in b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 1000:
                    self.wfile.write(bytes([byte]))
                    if receiver.over.wait(0.02):
                        return
            elif answer == "flood":
                self.send_response(200)
                self.send_header("content-length", str(1 << 40))
                self.end_headers()
                while not receiver.over.is_set():
                    receiver.sent += self.wfile.write(b"x" * 4096)
            else:
                self.send_response(int(answer))
                self.send_header("content-length", "0")
                if receiver.location:
                    self.send_header("location", receiver.location)
                self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, receiver: Receiver, tls: ssl.SSLContext | None) -> None:
        self.receiver, self._tls = receiver, tls
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple:
        connection, address = self.socket.accept()
        self.receiver.connections += 1
        return connection, address

    def finish_request(self, request: object, client_address: object) -> None:
        if self._tls is not None:
            try:
                request = self._tls.wrap_socket(request, server_side=True)  # pyright: ignore[reportArgumentType]
            except OSError:
                return
        super().finish_request(request, client_address)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def receiving(*answers: int | str, tls: Path | None = None, location: str = "") -> Iterator[Receiver]:
    """A receiver that runs; `tls` is its certificate with its key."""
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
    receiver = Receiver(answers=list(answers) or [200], location=location)
    server = _Server(receiver, context)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def certificate(folder: Path, hosts: Sequence[str]) -> tuple[Path, Path]:
    """A new authority and a certificate of it for hosts -> the authority's file, the certificate's with its key."""
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "receiver")]

    def begun(of: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder().subject_name(names[of]).issuer_name(names[0]).public_key(keys[of].public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=of == 0, path_length=None), critical=True)
        )  # fmt: skip

    def general(host: str) -> x509.GeneralName:
        return x509.DNSName(host) if host[-1].isalpha() else x509.IPAddress(ipaddress.ip_address(host))

    authority = begun(0).sign(keys[0], hashes.SHA256())
    alternatives = x509.SubjectAlternativeName([general(host) for host in hosts])
    leaf = begun(1).add_extension(alternatives, critical=False).sign(keys[0], hashes.SHA256())
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (folder / "receiver.pem").write_bytes(secret + leaf.public_bytes(serialization.Encoding.PEM))
    return folder / "authority.pem", folder / "receiver.pem"

"""A proxy before a service that does harm on order: answers in its place, hangs up, or cuts answers off."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

__all__ = ["Breaking", "Harm", "Seen", "breaking"]


CLOSE = ("connection", "close")  # one request a connection


@dataclass(frozen=True)
class Harm:
    """What is done to one request whose path ends so; each is done once.

    Attributes:
        status: of an answer that the proxy gives itself, with `headers` and `body`.
        forward: whether the service gets the request at all.
        cut: bytes of the answer's body that come through before the connection ends; None is all of it, and with
            neither status nor cut there is no answer.
        damage: whether the first byte of the answer's body is another.
    """

    path: str
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    forward: bool = False
    cut: int | None = None
    damage: bool = False


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Breaking:
    """A proxy that runs.

    Attributes:
        harm: that is still to be done, first to last.
        seen: requests that came.
    """

    address: str
    harm: list[Harm] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def calls(self, ending: str) -> list[Seen]:
        return [one for one in self.seen if one.path.partition("?")[0].endswith(ending)]


@contextmanager
def breaking(service: str) -> Iterator[Breaking]:
    """A proxy before the service of an address."""
    found = Breaking("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            self.close_connection = True
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.seen.append(Seen(self.command, self.path, headers))
            path = self.path.partition("?")[0]
            harm = next((one for one in found.harm if path.endswith(one.path)), None)
            if harm is not None:
                found.harm.remove(harm)
            if harm is not None and harm.status is not None:
                self.send_response(harm.status)
                for name, value in (*harm.headers, ("content-length", str(len(harm.body))), CLOSE):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(harm.body)
            elif harm is None or harm.forward:
                self.forward(body, headers, harm)

        def forward(self, body: bytes, headers: dict[str, str], harm: Harm | None) -> None:
            left = 1 << 60 if harm is None or harm.damage else harm.cut
            damage = harm is not None and harm.damage
            with httpx.stream(self.command, service + self.path, headers=headers, content=body, timeout=30) as answer:
                if left is None:
                    answer.read()
                    return
                self.send_response(answer.status_code)
                for name, value in (*answer.headers.items(), CLOSE):
                    self.send_header(name, value)
                self.end_headers()
                chunked = "content-length" not in answer.headers
                for piece in answer.iter_raw():
                    part = (bytes([piece[0] ^ 1]) + piece[1:] if damage else piece)[:left]
                    left, damage = left - len(part), False
                    if part:  # a chunk of nothing would be the end
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
                    if left <= 0:
                        return
                if chunked:
                    self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="proxy")
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

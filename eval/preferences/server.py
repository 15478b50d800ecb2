"""The page's server: on this machine alone, for one rater, behind a token in the address.

    GET  /TOKEN/                     the page; /TOKEN/page.js, /TOKEN/style.css
    GET  /TOKEN/session              {"rater", "choices": what was said of each pair, or null}
    GET  /TOKEN/pairs/N              {"prompt"}
    GET  /TOKEN/pairs/N/image        the first frame
    GET  /TOKEN/pairs/N/left, right  the clips
    POST /TOKEN/pairs/N              {"choice", "seconds"}: kept when it is answered

No answer tells a method or the name of a clip's file, and nothing in a request is a path: a pair is a number.
"""

import hmac
import json
import secrets
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from eval.preferences.pairs import Pair
from eval.preferences.votes import CHOICES, Vote, VoteLog, read_votes
from eval.run_files import RunFiles
from p2e.errors import InputError, P2EError

__all__ = ["PreferenceServer", "Session"]

PAGE = Path(__file__).with_name("page")
FILES = {
    "": ("index.html", "text/html; charset=utf-8"), "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
}  # fmt: skip
IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_BODY = 4096
DAY = 86_400.0


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


class Session:
    """A rater, the pairs, and what was said of them, as threads may use it.

    Args:
        log: takes the answers; answers of an earlier session that still hold are taken up.
    """

    def __init__(self, files: RunFiles, rater: str, pairs: Sequence[Pair], log: VoteLog) -> None:
        self.files, self.rater, self.pairs, self._log = files, rater, tuple(pairs), log
        self._lock = threading.Lock()
        said = {vote.cell: vote for vote in read_votes(files) if vote.rater == rater}
        self._choices = [_said(pair, said.get(pair.cell)) for pair in self.pairs]

    @property
    def choices(self) -> list[str | None]:
        with self._lock:
            return list(self._choices)

    @property
    def answered(self) -> int:
        return sum(choice is not None for choice in self.choices)

    def answer(self, number: int, choice: Any, seconds: float) -> None:
        """Keeps an answer.

        Raises:
            OutputError: it cannot be written, and does not hold.
        """
        pair = self.pairs[number]
        vote = Vote(
            rater=self.rater, effect=pair.left.effect, scene=pair.left.scene, left=pair.left.method,
            right=pair.right.method, left_clip=pair.left.clip or "", right_clip=pair.right.clip or "", choice=choice,
            seconds=seconds,
        )  # fmt: skip
        with self._lock:
            self._log.keep(vote)
            self._choices[number] = choice

    def file(self, number: int, name: str) -> tuple[bytes, str]:
        """Bytes and media type of what a pair shows: "image", "left" or "right".

        Raises:
            Refused: there is no such file, or it lies outside the run.
        """
        pair = self.pairs[number]
        place = pair.left.image if name == "image" else (pair.left if name == "left" else pair.right).video
        folder = Path(self.files.folder).resolve()
        path = (folder / str(place)).resolve()
        kind = IMAGES.get(path.suffix.lower()) if name == "image" else "video/mp4"
        # Rows come from a file that others may have made.
        if not path.is_relative_to(folder) or kind is None:
            raise Refused(HTTPStatus.NOT_FOUND, "the run has no such file")
        try:
            return path.read_bytes(), kind
        except OSError:
            raise Refused(HTTPStatus.NOT_FOUND, "the run has no such file") from None


def _said(pair: Pair, vote: Vote | None) -> str | None:
    """The choice as this page shows the pair, if it was of these clips."""
    if vote is None:
        return None
    seen = {vote.left: vote.left_clip, vote.right: vote.right_clip}
    if any(seen[row.method] != row.clip for row in (pair.left, pair.right)):
        return None
    turned = vote.left != pair.left.method and vote.choice in ("left", "right")
    return {"left": "right", "right": "left"}[vote.choice] if turned else vote.choice


class PreferenceServer(ThreadingHTTPServer):
    """Serves a session on 127.0.0.1.

    Args:
        port: 0 takes any that is free.

    Raises:
        InputError: the port is taken, or may not be used.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session, self.token = session, secrets.token_urlsafe(16)
        self.page = {name: ((PAGE / file).read_bytes(), kind) for name, (file, kind) in FILES.items()}
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise InputError(f"--port {port}: cannot be used ({error.strerror or error}); leave it out") from None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: PreferenceServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "p2e", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is for the rater."""

    def _answer(self, made: Any) -> None:
        try:
            status, (data, kind) = HTTPStatus.OK, made(self._path())
        except (Refused, P2EError) as error:
            status = error.status if isinstance(error, Refused) else HTTPStatus.INSUFFICIENT_STORAGE
            data, kind = _json({"error": " ".join(str(error).split())})
            self.close_connection = True  # a body may be left unread
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _path(self) -> list[str]:
        """The parts of the address after the token."""
        _, token, *parts = [*self.path.partition("?")[0].split("/"), "", ""][:6]
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            raise Refused(HTTPStatus.NOT_FOUND, "nothing is here; open the address that the terminal shows")
        return [part for part in parts if part]

    def _pair(self, number: str) -> int:
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise Refused(HTTPStatus.NOT_FOUND, "no such pair")
        if int(number) >= len(self.server.session.pairs):
            raise Refused(HTTPStatus.NOT_FOUND, "no such pair")
        return int(number)

    def _get(self, parts: list[str]) -> tuple[bytes, str]:
        session = self.server.session
        match parts:
            case []:
                return self.server.page[""]
            case ["session"]:
                return _json({"rater": session.rater, "choices": session.choices})
            case ["pairs", number]:
                return _json({"prompt": session.pairs[self._pair(number)].prompt})
            case ["pairs", number, "image" | "left" | "right" as name]:
                return session.file(self._pair(number), name)
            case [name] if name in self.server.page:
                return self.server.page[name]
        raise Refused(HTTPStatus.NOT_FOUND, "nothing is here")

    def _post(self, parts: list[str]) -> tuple[bytes, str]:
        match parts:
            case ["pairs", number]:
                place = self._pair(number)
            case _:
                raise Refused(HTTPStatus.NOT_FOUND, "nothing is here")
        value = self._body()
        choice, seconds = value.get("choice"), value.get("seconds", 0.0)
        if choice not in CHOICES:
            raise Refused(HTTPStatus.BAD_REQUEST, f"choice is one of {', '.join(CHOICES)}")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < float("inf"):
            raise Refused(HTTPStatus.BAD_REQUEST, "seconds is a number from 0 on")
        self.server.session.answer(place, choice, round(min(float(seconds), DAY), 1))
        return _json({"choices": self.server.session.choices})

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "say how long the body is")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{MAX_BODY} bytes at most")
        try:
            value = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON object")
        return value


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value).encode(), "application/json"

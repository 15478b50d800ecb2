"""The page at /: a client of the API in the browser, as plain files, and the pictures and clips that it shows.

It keeps nothing on the server but what every client of the API does, so that each of its requests may meet another
replica. A browser is told to load nothing from elsewhere, and to run no script that is not one of these files.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.content import byte_range
from serve.errors import NotFound
from serve.gallery import Gallery
from serve.services import GatewaySettings

__all__ = ["HEADERS", "page_routes"]

FOLDER = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ASK_AGAIN = "no-cache"  # kept, but asked for again with its tag: a new version is seen at once
A_DAY = "public, max-age=86400"


@dataclass(frozen=True)
class _File:
    data: bytes
    media_type: str

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'


def page_routes(settings: GatewaySettings) -> APIRouter:
    """The routes of the page; its files are read now, so that a name in a request opens none."""
    routes = APIRouter(include_in_schema=False)
    files = {
        path.name: _File(path.read_bytes(), TYPES[path.suffix]) for path in FOLDER.iterdir() if path.suffix in TYPES
    }
    gallery = Gallery() if settings.gallery == "world" else None

    def drawn() -> Gallery:
        if gallery is None:
            raise NotFound("no gallery")
        return gallery

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return _answer(request, files["index.html"], ASK_AGAIN)

    @routes.get("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise NotFound("no such file")
        return _answer(request, files[name], ASK_AGAIN)

    @routes.get("/gallery.json")
    async def table() -> JSONResponse:
        found = {"effects": [], "pictures": []} if gallery is None else await gallery.table()
        return JSONResponse(found, headers=HEADERS | {"cache-control": ASK_AGAIN})

    @routes.get("/gallery/clips/{name}.mp4")
    async def clip(name: str, request: Request) -> Response:
        return _answer(request, _File(await drawn().clip(name), "video/mp4"), A_DAY)

    @routes.get("/gallery/pictures/{number:int}.png")
    async def picture(number: int, request: Request) -> Response:
        return _answer(request, _File(await drawn().picture(number), "image/png"), A_DAY)

    return routes


def _answer(request: Request, file: _File, cache: str) -> Response:
    """A file, a range of it (some browsers play no video without), or 304 to whom has it."""
    headers = HEADERS | {"etag": file.tag, "cache-control": cache, "accept-ranges": "bytes"}
    known = [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known:
        return Response(status_code=304, headers=headers)
    size = len(file.data)
    try:
        part = byte_range(request.headers.get("range"), size)
    except ValueError:
        return Response(status_code=416, headers=headers | {"content-range": f"bytes */{size}"})
    if part is None:
        return Response(file.data, headers=headers, media_type=file.media_type)
    start, stop = part
    headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(file.data[start:stop], 206, headers, file.media_type)

"""Files as answers: whole or a range of bytes, and not again to whom has them (RFC 9110, sections 13 and 14)."""

import re
from collections.abc import Mapping

from starlette.responses import Response, StreamingResponse

from serve.artefacts import ArtefactStore

__all__ = ["byte_range", "content_response"]

RANGE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last that a Range header asks for; None is all of them.

    Several ranges, and what is not understood, are answered with the whole, as is allowed.

    Raises:
        ValueError: none of the bytes is there.
    """
    match = RANGE.fullmatch(header or "")
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last so many
        start, stop = max(0, size - int(match[2])), size
    else:
        start = int(match[1])
        stop = size if not match[2] else min(size, int(match[2]) + 1)
        if match[2] and int(match[2]) < start:
            return None  # not valid, hence as if it were not there
    if start >= stop:
        raise ValueError("no byte of the range is there")
    return start, stop


def content_response(
    headers: Mapping[str, str], store: ArtefactStore, name: str, *, etag: str, media_type: str, filename: str
) -> Response:
    """The answer to a GET of a file.

    Args:
        headers: of the request, whose names are in lower case.
        etag: of the content, without quotes: what is named by it never changes.
        filename: that a browser saves it under; made by the server.

    Raises:
        NotFound: the file is not there.
    """
    size, tag = store.size(name), f'"{etag}"'
    common = {"etag": tag, "accept-ranges": "bytes", "cache-control": "private, max-age=31536000, immutable"}
    known = [part.strip().removeprefix("W/") for part in headers.get("if-none-match", "").split(",")]
    if tag in known or known == ["*"]:
        return Response(status_code=304, headers=common)
    asked = headers.get("range")
    if headers.get("if-range", tag) != tag:
        asked = None  # the part that the client has is of something else
    try:
        part = byte_range(asked, size)
    except ValueError:
        return Response(status_code=416, headers=common | {"content-range": f"bytes */{size}"})
    start, stop = part or (0, size)
    common |= {
        "content-length": str(stop - start),
        "content-disposition": f'attachment; filename="{filename}"',
        "x-content-type-options": "nosniff",
    }
    if part is not None:
        common["content-range"] = f"bytes {start}-{stop - 1}/{size}"
    body = store.read(name, start, stop)
    return StreamingResponse(body, 200 if part is None else 206, headers=common, media_type=media_type)

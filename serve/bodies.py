"""Bodies of requests: JSON objects, and forms with one picture."""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from serve.errors import ApiError
from serve.pictures import WrongPicture
from serve.schemas import Unprocessable, VideoRequest, parsed

__all__ = ["Malformed", "UnsupportedBody", "VideoBody", "json_body", "video_body"]

FORM_FIELDS = 32
PICTURE = "input_reference"


class Malformed(ApiError):
    """A body that is not what it says it is."""

    status, code = 400, "malformed_body"


class UnsupportedBody(ApiError):
    """A body of a type that is not taken here."""

    status, code = 415, "unsupported_media_type"


@dataclass(frozen=True)
class VideoBody:
    """A request for a video, its picture's bytes, and a plain form of both to tell one request from another."""

    request: VideoRequest
    picture: bytes
    plain: dict[str, Any]


def kind_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        UnsupportedBody, Malformed, Unprocessable: it is not one.
    """
    if kind_of(request) != "application/json":
        raise UnsupportedBody("send application/json")
    try:
        values = json.loads((await request.body()).decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Malformed("the body is not valid JSON") from None
    if not isinstance(values, dict):
        raise Unprocessable("the body must be a JSON object")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


async def video_body(request: Request) -> VideoBody:
    """The request for a video, from JSON or from a form.

    Raises:
        UnsupportedBody, Malformed, Unprocessable, WrongPicture: it is not one.
    """
    if kind_of(request) == "application/json":
        found = parsed(VideoRequest, await json_body(request))
        if found.input_reference is None:
            raise Unprocessable("input_reference: give a picture to begin with", param=PICTURE)
        try:
            picture = base64.b64decode(found.input_reference.image_url.partition(",")[2], validate=True)
        except ValueError:  # wrong letters or length; letters that are not ASCII are no binascii.Error
            raise WrongPicture("input_reference: not valid base64", param=PICTURE) from None
    elif kind_of(request) == "multipart/form-data":
        found, picture = await _form(request)
    else:
        raise UnsupportedBody("send application/json or multipart/form-data")
    plain = found.model_dump(mode="json", exclude={"input_reference"})
    return VideoBody(found, picture, plain | {PICTURE: hashlib.sha256(picture).hexdigest()})


async def _form(request: Request) -> tuple[VideoRequest, bytes]:
    try:
        async with request.form(max_files=1, max_fields=FORM_FIELDS) as form:
            return await _form_fields(form)
    except HTTPException:
        raise Malformed("the form cannot be read; send one picture and a few fields") from None


async def _form_fields(form: FormData) -> tuple[VideoRequest, bytes]:
    items = form.multi_items()
    fields = {name: value for name, value in items if isinstance(value, str)}
    pictures = [value for name, value in items if isinstance(value, UploadFile) and name == PICTURE]
    if len(fields) + len(pictures) != len(items):
        raise Malformed("a field came twice, or a file under another name than input_reference")
    found = parsed(VideoRequest, fields, form=True)
    if not pictures:
        raise Unprocessable("input_reference: give a picture to begin with", param=PICTURE)
    return found, await pictures[0].read()

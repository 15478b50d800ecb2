"""The document of the API (OpenAPI 3.1, at /openapi.json and /docs): what routes say of themselves beside their code.

Routes read bodies by hand and answer with plain values, so that FastAPI knows neither: `documented` gives a route what
it does not see, and `describe` puts the requests' schemas in.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

from serve.answers import ErrorAnswer
from serve.edge import BodyTooLarge, BodyTooSlow
from serve.errors import ApiError, Internal
from serve.keys import Unauthorised
from serve.schemas import CONTROL, EffectRequest, VideoRequest

__all__ = [
    "BODY_ERRORS", "EFFECT_BODY", "FILE_PARAMETERS", "LOCATION", "VIDEO_BODY", "describe", "documented", "event_stream",
    "file_answers",
]  # fmt: skip

Schema = dict[str, Any]
REFERENCE = "#/components/schemas/{model}"
BODY_ERRORS = (BodyTooSlow, BodyTooLarge)
FORM = "VideoForm"
PICTURE = "input_reference"
FILE = {"type": "string", "contentMediaType": "application/octet-stream"}  # bytes as they are
TEXT = CONTROL.pattern[1:-1]  # the characters that no text may have
SAYS_SOMETHING = rf"^[^{TEXT}]*[^\s\x85{TEXT}][^{TEXT}]*$"


def header(description: str, *, required: bool = True, kind: str = "string") -> Schema:
    return {"description": description, "required": required, "schema": {"type": kind}}


LOCATION = {"Location": header("path of what was made")}
HEADERS = {
    401: {"WWW-Authenticate": header("Bearer")},
    405: {"Allow": header("the methods that there are")},
    429: {"Retry-After": header("seconds to wait", kind="integer")},
    503: {"Retry-After": header("seconds to wait", required=False, kind="integer")},
    504: {"Retry-After": header("seconds to wait", kind="integer")},
    507: {"Retry-After": header("seconds to wait", kind="integer")},
}
STANDING = {
    "ETag": header("of the content, which never changes"),
    "Accept-Ranges": header("bytes"),
    "Cache-Control": header("for how long it may be kept"),
}
SAVED = {
    "Content-Disposition": header("the name to save it under"),
    "Content-Length": header("bytes", kind="integer"),
}


def documented(
    summary: str,
    answer: type[BaseModel] | None = None,
    *,
    status: int = 200,
    headers: Schema | None = None,
    answers: dict[int, Schema] | None = None,
    errors: Iterable[type[ApiError]] = (),
    body: Schema | None = None,
    parameters: Sequence[Schema] = (),
    public: bool = False,
) -> dict[str, Any]:
    """Arguments of a route for its part of the document.

    Args:
        answer: what it is answered with, in JSON; `status` and `headers` are that answer's.
        answers: others, by status: `file_answers`, `event_stream`.
        errors: besides those of every route.
        body: `EFFECT_BODY` or `VIDEO_BODY`.
        parameters: that the code reads from the request itself.
        public: no key is asked for.
    """
    found: dict[int | str, Schema] = {}
    if answer is not None:
        found[status] = {"model": answer, "description": _about(answer), "headers": headers or {}}
    found |= answers or {}
    for error in (Internal, *errors) if public else (Unauthorised, Internal, *errors):
        known = found.setdefault(
            error.status, {"model": ErrorAnswer, "description": "", "headers": HEADERS.get(error.status, {})}
        )
        line = f"`{error.code}`: {_about(error)}"
        known["description"] = f"{known['description']}\n\n{line}".strip()
    extra: Schema = {}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": body}
    if parameters:
        extra["parameters"] = list(parameters)
    # What the route returns is answered as it is. Where that is a file, no other JSON is promised than the errors'.
    plain = {} if answer is not None else {"response_class": Response}
    return {"summary": summary, "response_model": None, "responses": found, "openapi_extra": extra} | plain


def _about(kind: type) -> str:
    return (kind.__doc__ or "").strip()


def file_answers(media_type: str, about: str) -> dict[int, Schema]:
    """The answers of `content_response`."""
    content = {media_type: {"schema": FILE}}
    part = {"Content-Range": header("the bytes that it is, of how many")}
    return {
        200: {"description": about, "content": content, "headers": STANDING | SAVED},
        206: {"description": "The bytes asked for.", "content": content, "headers": STANDING | SAVED | part},
        304: {"description": "The caller has it.", "headers": STANDING},
        416: {"description": "None of the bytes asked for is there.", "headers": STANDING | part},
    }


def event_stream(about: str, names: Sequence[str], data: type[BaseModel]) -> dict[int, Schema]:
    """The answer of a route of server-sent events. OpenAPI 3.1 has no word for one event of a stream; as its tools read
    it, the schema is of each.

    Args:
        names: of events.
        data: of each, as JSON; a model that some route answers with.
    """
    content = {"type": "string", "contentMediaType": "application/json",
               "contentSchema": {"$ref": REFERENCE.format(model=data.__name__)}}  # fmt: skip
    event = {
        "type": "object",
        "properties": {"event": {"enum": list(names)}, "data": content},
        "required": ["event", "data"],
        "additionalProperties": False,
    }
    headers = {"Cache-Control": header("no-store")}
    return {200: {"description": about, "content": {"text/event-stream": {"schema": event}}, "headers": headers}}


def _request_header(name: str, about: str) -> Schema:
    return {"name": name, "in": "header", "required": False, "description": about, "schema": {"type": "string"}}


FILE_PARAMETERS = (
    _request_header("Range", "bytes=FIRST-LAST: a part of it; several parts are answered with the whole"),
    _request_header("If-None-Match", "an ETag: answered with 304 where it is still that"),
    _request_header("If-Range", "an ETag: with Range, the whole where it is another"),
)


def _body(name: str) -> Schema:
    return {"schema": {"$ref": REFERENCE.format(model=name)}}


EFFECT_BODY = {"application/json": _body(EffectRequest.__name__)}
VIDEO_BODY = {"application/json": _body(VideoRequest.__name__), "multipart/form-data": _body(FORM)}


def describe(app: FastAPI) -> None:
    """Makes the document complete: with the schemas of bodies, and without FastAPI's own form of errors."""
    plain: Callable[[], Schema] = app.openapi

    def openapi() -> Schema:
        if app.openapi_schema is None:
            found = plain()
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for operations in found["paths"].values():
                for operation in operations.values():
                    if _of_fastapi(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas |= _requests()
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi


def _of_fastapi(answer: Schema | None) -> bool:
    """Whether it is what FastAPI says of every route with a parameter, though text in a path is never wrong."""
    return answer is not None and answer["description"] == "Validation Error"


def _requests() -> dict[str, Schema]:
    """The schemas of bodies, with what their validators add."""
    effect = EffectRequest.model_json_schema(ref_template=REFERENCE)
    video = VideoRequest.model_json_schema(ref_template=REFERENCE)
    found = effect.pop("$defs") | video.pop("$defs")
    for schema in (effect, video):
        for name in ("prompt", "effect_prompt"):
            _string_of(schema["properties"].get(name, {}))["pattern"] = SAYS_SOMETHING
    _string_of(video["properties"]["negative_prompt"])["pattern"] = rf"^[^{TEXT}]*$"
    effect["oneOf"] = [_given("prompt"), _given("blend")]
    video["allOf"] = [{"not": _given("effect_id", "effect_prompt")}, {"not": _given("seconds", "num_frames")}]
    form = video | {"title": FORM, "properties": {n: _not_null(p) for n, p in video["properties"].items()}}
    form["properties"][PICTURE] = FILE | {"description": "a PNG, JPEG or WebP"}
    video["properties"][PICTURE] = {"$ref": REFERENCE.format(model="ImageReference")}
    for schema in (video, form):
        schema["required"] = ["prompt", PICTURE]
    return found | {effect["title"]: effect, video["title"]: video, FORM: form}


def _string_of(schema: Schema) -> Schema:
    return next((part for part in schema.get("anyOf", ()) if part["type"] == "string"), schema)


def _not_null(schema: Schema) -> Schema:
    """A property in a form, which has no null: it is left out instead."""
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    if "default" in schema and schema["default"] is not None:
        rest["default"] = schema["default"]
    return rest | next((part for part in schema.get("anyOf", ()) if part.get("type") != "null"), {})


def _given(*names: str) -> Schema:
    """Holds where fields are there and not null."""
    return {"required": list(names), "properties": {name: {"not": {"type": "null"}} for name in names}}

"""A client of the HTTP endpoint.

    with Client("https://effects.example.com", key) as client:
        effect = client.effects.create("it melts like wax")
        client.effects.download(effect, "melt.safetensors")
        video = client.videos.create("fox.png", "a fox sits", effect_id=effect.id)
        client.videos.download(client.videos.wait(video), "fox.mp4")

Every call raises EndpointError where the endpoint refuses or does not answer, InputError over an argument that cannot
be sent, OutputError over a file that cannot be written. What is safe to send again is sent again: a POST carries an
Idempotency-Key of its own. Beyond httpx this file needs p2e.errors alone, and may be copied with it.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx

from p2e.errors import EndpointError, InputError, OutputError

__all__ = ["KEY_VARIABLE", "Client", "Effect", "EndpointError", "Failure", "Lora", "Video"]

KEY_VARIABLE = "P2E_API_KEY"
LONGEST_WAIT_S = 60.0  # that an endpoint may ask for by Retry-After; if it asks for more, the caller is told
QUIET_S = 30.0  # without an event, after which the video is looked at
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Lora:
    """The file of an effect: its rank, size in bytes, and hex digest."""

    rank: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Effect:
    """An effect; either `prompt` or `blend`, pairs of an id and a weight, says what it is of."""

    id: str
    lora: Lora
    created_at: int
    strength: float = 1.0
    prompt: str | None = None
    blend: tuple[tuple[str, float], ...] | None = None
    model: str | None = None
    status: str = "completed"


@dataclass(frozen=True)
class Failure:
    """Why a video has failed."""

    code: str
    message: str


@dataclass(frozen=True)
class Video:
    """A video as it was when it was read; times in seconds since 1970, `progress` in percent, `size` WIDTHxHEIGHT."""

    id: str
    status: str
    progress: int
    created_at: int
    prompt: str | None = None
    seconds: str | None = None
    size: str | None = None
    seed: int | None = None
    effect_id: str | None = None
    error: Failure | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    attempt: int | None = None
    model: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


def _known(kind: type[T], values: Mapping[str, Any]) -> T:
    """A record from an object; fields that a newer server may add are left out. TypeError where one lacks."""
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})  # pyright: ignore


def _effect(values: Mapping[str, Any]) -> Effect:
    blend = values.get("blend") and tuple((name, weight) for name, weight in values["blend"])
    return _known(Effect, {**values, "lora": _known(Lora, values["lora"]), "blend": blend})


def _video(values: Mapping[str, Any]) -> Video:
    error = values.get("error") and _known(Failure, values["error"])
    return _known(Video, {**values, "error": error})


class Client:
    """A client, and a context manager that closes its connections.

    Args:
        endpoint: the address, with or without /v1.
        key: API key; the environment variable P2E_API_KEY if left out, and none if that is not set.
        timeout: seconds to wait for an answer, or for the next bytes of one.
        retries: how often a call is made again after an error that may pass.

    Raises:
        InputError: the endpoint is no address, or the key has characters that no key has.
    """

    def __init__(self, endpoint: str, key: str | None = None, timeout: float = 180.0, retries: int = 3) -> None:
        self.endpoint = _address(endpoint)
        key = key or os.environ.get(KEY_VARIABLE) or None
        if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,256}", key):
            raise InputError(f"the API key has characters that no key has; check {KEY_VARIABLE}")
        self._key, self._retries, headers = key, retries, {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)))
        self.effects, self.videos = Effects(self), Videos(self)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Names of the models that are served."""
        return self.read("GET", "/v1/models", lambda values: [str(model["id"]) for model in values["data"]])

    def ready(self) -> bool:
        """Whether the endpoint answers and has loaded its weights; asked once."""
        try:
            with self.stream("GET", "/readyz"):
                return True
        except EndpointError as error:
            if error.passing:
                return False
            raise

    def read(self, method: str, path: str, make: Callable[[Any], R], **request: Any) -> R:
        """What is made of the JSON that a call is answered with."""
        if method == "POST":
            request["headers"] = {"idempotency-key": uuid.uuid4().hex}  # the same for every try

        def once() -> R:
            with self.stream(method, path, **request) as response:
                response.read()
                return self.made(make, response.text)

        return self.again(once)

    def made(self, make: Callable[[Any], R], text: str) -> R:
        """What is made of JSON text."""
        try:
            return make(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            message = f"{self.endpoint}: the answer is not one of a p2e endpoint; check the address"
            raise EndpointError(message, 200, "strange_answer") from None

    @contextlib.contextmanager
    def stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """An answer whose body is yet to be read."""
        try:
            prepared = self._http.build_request(method, self.endpoint + path, **request)
        except (ValueError, TypeError) as error:  # a number that is not finite, text that is not Unicode
            reason = "not valid Unicode" if isinstance(error, UnicodeError) else str(error)
            raise InputError(f"the request cannot be sent ({reason}); mend the values given") from None
        try:
            with contextlib.closing(self._http.send(prepared, stream=True)) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(response)
                yield response
        except httpx.HTTPError as error:
            reason = self.clean(str(error)) or type(error).__name__
            message = f"{self.endpoint}: cannot be reached ({reason}); check the address and that the endpoint runs"
            code = "timeout" if isinstance(error, httpx.ReadTimeout) else "unreachable"
            raise EndpointError(message, code=code) from None

    def again(self, call: Callable[[], R]) -> R:
        """A call, made again after an error that may pass."""
        for tries in count():
            try:
                return call()
            except EndpointError as error:
                asked = error.retry_after_s
                if not error.passing or tries >= self._retries or (asked or 0) > LONGEST_WAIT_S:
                    raise
            time.sleep(min(8.0, 0.5 * 2**tries) * random.uniform(0.75, 1.25) if asked is None else asked)
        raise AssertionError("count() has no end")

    def _refusal(self, response: httpx.Response) -> EndpointError:
        try:
            values = response.json()["error"]
            message, code, param = (values.get(name) and str(values[name]) for name in ("message", "code", "param"))
        except (ValueError, TypeError, KeyError, AttributeError):
            message = code = param = None
        message = self.clean(message or f"HTTP {response.status_code}; check the address")
        if response.status_code == 401:
            message += f"; give a valid key in {KEY_VARIABLE}" if self._key else f"; set {KEY_VARIABLE}"
        after = response.headers.get("retry-after", "")
        seconds = float(after) if re.fullmatch(r"[0-9]{1,6}", after) else None
        return EndpointError(f"{self.endpoint}: {message}", response.status_code, code, param, seconds)

    def clean(self, text: str) -> str:
        """Text of another, fit to be shown: one line, not endless, nothing that steers a terminal, not the key."""
        text = text.replace(self._key, "***") if self._key else text
        return "".join(char if char.isprintable() else " " for char in text)[:500].strip()

    def download(self, path: str, target: str | Path, sha256: str | None = None) -> Path:
        """Content to a file, which has its name once it is whole; for `effects` and `videos`."""
        place = Path(target)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.part")

        def once() -> None:
            digest = hashlib.sha256()
            with self.stream("GET", path) as response, temporary.open("wb") as file:
                for piece in response.iter_bytes():
                    digest.update(piece)
                    file.write(piece)
            if sha256 is not None and digest.hexdigest() != sha256:
                message = f"{self.endpoint}: {place.name} came with other bytes than were made; fetch it again"
                raise EndpointError(message, 200, "wrong_digest")

        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self.again(once)
            temporary.replace(place)
        except OSError as error:
            raise OutputError(f"{place}: cannot be written ({error.strerror or error}); choose another place") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return place


def _address(endpoint: str) -> str:
    text = endpoint.strip()
    try:
        url = httpx.URL(text)
        good = re.fullmatch(r"https?://[^\s?#@]+", text) and url.host and 0 < (url.port or 1) < 1 << 16
    except httpx.InvalidURL:
        good = False
    if not good:
        shown = "the endpoint" if "@" in text else text  # what stands before an @ may be a password
        raise InputError(f"{shown}: not an address of one; give it as http://127.0.0.1:8000, the key in {KEY_VARIABLE}")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


class Things(Generic[T]):
    """What the API has for effects and videos alike."""

    _path: str
    _make: Callable[[Any], T]

    def __init__(self, client: Client) -> None:
        self._client = client

    def _of(self, thing: Any) -> str:
        """The path of a thing, given itself or its id."""
        name = thing if isinstance(thing, str) else thing.id
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", name):
            raise InputError(f"{name!r}: not an id; give one that the endpoint has given")
        return f"{self._path}/{name}"

    def get(self, name: str) -> T:
        """The one of an id."""
        return self._client.read("GET", self._of(name), type(self)._make)

    def list(self, *, order: str = "desc", page: int = 100) -> Iterator[T]:
        """All of the key's, newest first, or oldest first with "asc"; fetched page by page."""
        make, query, more = type(self)._make, {"limit": str(page), "order": order}, True
        while more:
            items, more, last = self._client.read(
                "GET", self._path, lambda v: (list(map(make, v["data"])), v["has_more"], v["last_id"]), params=query
            )
            yield from items
            more, query = more and last != query.get("after"), query | {"after": last}

    def delete(self, thing: T | str) -> None:
        """Deletes it, and what the endpoint keeps of it."""
        path, tries = self._of(thing), count()

        def once() -> None:
            first = next(tries) == 0
            try:
                with self._client.stream("DELETE", path):
                    pass
            except EndpointError as error:
                if error.status != 404 or first:  # else an earlier try did it, and its answer was lost
                    raise

        self._client.again(once)


class Effects(Things[Effect]):
    """/v1/effects"""

    _path, _make = "/v1/effects", staticmethod(_effect)

    def create(
        self, prompt: str | None = None, *, blend: Sequence[tuple[str, float]] | None = None, strength: float = 1.0
    ) -> Effect:
        """The effect of a prompt, or of a blend of effects: pairs of an id and a weight. The same again is the same."""
        parts = blend and [{"effect_id": name, "weight": weight} for name, weight in blend]
        body = {"prompt": prompt, "blend": parts, "strength": strength}
        return self._client.read("POST", self._path, _effect, json=body)

    def download(self, effect: Effect | str, path: str | Path) -> Path:
        """The LoRA to a file, checked against its digest; nothing half-written is left behind, whatever happens."""
        whole = self.get(effect) if isinstance(effect, str) else effect
        return self._client.download(f"{self._of(whole)}/content", path, whole.lora.sha256)


class Videos(Things[Video]):
    """/v1/videos"""

    _path, _make = "/v1/videos", staticmethod(_video)

    def create(
        self, picture: str | Path | bytes, prompt: str, *, effect_id: str | None = None,
        effect_prompt: str | None = None, strength: float | None = None, seed: int | None = None,
        size: str | None = None, num_frames: int | None = None, seconds: str | float | None = None,
        steps: int | None = None, guidance: float | None = None, negative_prompt: str | None = None,
        webhook_url: str | None = None,
    ) -> Video:  # fmt: skip
        """Queues a video; what is left out is the endpoint's choice.

        Args:
            picture: to begin with: a file, or the bytes of one (PNG, JPEG or WebP).
            effect_id, effect_prompt, strength: the effect, by its id or in words, and how much of it.
            num_frames, seconds: length, in one or the other.
        """
        try:
            data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        except OSError as error:
            raise InputError(f"{picture}: cannot be read ({error.strerror or error}); check the path") from None
        values = {
            "prompt": prompt, "effect_id": effect_id, "effect_prompt": effect_prompt, "strength": strength,
            "seed": seed, "size": size, "num_frames": num_frames, "seconds": seconds, "num_inference_steps": steps,
            "guidance_scale": guidance, "negative_prompt": negative_prompt, "webhook_url": webhook_url,
        }  # fmt: skip
        form = {name: str(value) for name, value in values.items() if value is not None}
        return self._client.read("POST", self._path, _video, data=form, files={"input_reference": ("picture", data)})

    def cancel(self, video: Video | str) -> Video:
        """Ends a video that waits, or has one under way stop within a step."""
        return self._client.read("POST", f"{self._of(video)}/cancel", _video)

    def wait(
        self, video: Video | str, progress: Callable[[Video], object] | None = None, *, poll_s: float = 1.0,
        patience_s: float = 120.0,
    ) -> Video:  # fmt: skip
        """The video once it has ended: completed, failed or cancelled, as its status says; `progress` is told of every
        change. Where the stream of events breaks off, the video is looked at every `poll_s` seconds; an endpoint that
        does not answer for `patience_s` seconds is given up, and the error names the video."""
        name, path, last, streams = video if isinstance(video, str) else video.id, self._of(video), None, True
        heard = time.monotonic()
        while True:
            try:
                for now in self._events(path) if streams else [self.get(name)]:
                    heard = time.monotonic()
                    if now != last and progress is not None:
                        progress(now)
                    if (last := now).ended:
                        return now
            except EndpointError as error:
                if error.status in (401, 403, 404):
                    raise
                if not (streams or error.passing) or time.monotonic() - heard > patience_s:
                    message = f"{error}; {name} may go on there: wait for it again by this id, or cancel it"
                    raise EndpointError(message, error.status, error.code) from None
                streams = error.code == "timeout"  # nothing has changed for long: no reason to do without
            time.sleep(poll_s)

    def _events(self, path: str) -> Iterator[Video]:
        with self._client.stream("GET", f"{path}/events", timeout=QUIET_S) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield self._client.made(_video, line.removeprefix("data:"))

    def download(self, video: Video | str, path: str | Path) -> Path:
        """The video to an mp4 file; nothing half-written is left behind."""
        return self._client.download(f"{self._of(video)}/content", path)

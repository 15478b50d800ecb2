"""What may be asked for, and what it is answered with: effects as p2e has them, videos as the OpenAI API has them.

Requests are strict: no unknown field, no number in quotes (but in forms, where everything is text), no NaN, every value
bounded. Videos have more fields than OpenAI's: the effect, its strength, the seed, frames and steps.
"""

import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from p2e.config import RenderConfig, Settings
from serve.errors import ApiError
from serve.job import Job

__all__ = [
    "Blended", "EffectRequest", "RequestLimits", "Unprocessable", "VideoRequest", "clip_settings", "parsed",
    "video_object",
]  # fmt: skip

EFFECT_ID = r"^eff_[0-9a-f]{32}$"  # pydantic's patterns are Rust's, whose $ is the very end
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
R = TypeVar("R", bound="Request")


class Unprocessable(ApiError):
    """A request whose values cannot be used; `param` names the first."""

    status, code = 422, "invalid_value"


def _text(value: str) -> str:
    """Text that can be encoded and shown: UTF-8 has no lone surrogates, and a prompt no control characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode") from None
    if CONTROL.search(value):
        raise ValueError("has control characters in it")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("says nothing")
    return value.strip()


Prompt = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_text), AfterValidator(_said)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Strength = Annotated[float, Field(ge=-4, le=4)]


class Request(BaseModel):
    """Of all requests."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Blended(Request):
    """One effect of a blend."""

    effect_id: str = Field(pattern=EFFECT_ID)
    weight: Strength


class EffectRequest(Request):
    """POST /v1/effects: a prompt, or a blend of effects that are there."""

    prompt: Prompt | None = None
    blend: list[Blended] | None = Field(default=None, min_length=1, max_length=8)
    model: str | None = Field(default=None, max_length=128)
    strength: Strength = 1.0

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.blend is None):
            raise ValueError("give either a prompt or a blend")
        if self.blend and len({part.effect_id for part in self.blend}) < len(self.blend):
            raise ValueError("give each effect of a blend once")
        return self


class ImageReference(Request):
    """A picture in JSON: a data URL. Other URLs are never opened."""

    image_url: str = Field(max_length=20 << 20, pattern=r"^data:image/(png|jpeg|webp);base64,")


class VideoRequest(Request):
    """POST /v1/videos. In a form, `input_reference` is a file and not among these fields."""

    prompt: Prompt
    model: str | None = Field(default=None, max_length=128)
    input_reference: ImageReference | None = None
    seconds: str | None = Field(default=None, pattern=r"^[0-9]{1,3}(\.[0-9]{1,3})?$")
    size: str | None = Field(default=None, pattern=r"^[0-9]{2,4}x[0-9]{2,4}$")
    effect_id: str | None = Field(default=None, pattern=EFFECT_ID)
    effect_prompt: Prompt | None = None
    strength: Strength = 1.0
    seed: Seed = 0
    num_frames: int | None = Field(default=None, ge=1, le=1001)
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    negative_prompt: Annotated[str, Field(max_length=2000), AfterValidator(_text)] | None = None
    webhook_url: str | None = Field(default=None, max_length=2048)

    @model_validator(mode="after")
    def _at_most_one_of(self) -> Self:
        if self.effect_id is not None and self.effect_prompt is not None:
            raise ValueError("give either an effect_id or an effect_prompt")
        if self.seconds is not None and self.num_frames is not None:
            raise ValueError("give either seconds or num_frames")
        return self


class RequestLimits(Settings):
    """What one video may cost.

    Attributes:
        frames, steps: at most.
        pixels: of a frame, at most.
        multiple: of which height and width must be.
        factor: frames are 1 plus a multiple of it.
    """

    frames: int = Field(default=121, ge=1)
    steps: int = Field(default=60, ge=1)
    pixels: int = Field(default=1280 * 720, ge=256)
    multiple: int = Field(default=16, ge=1)
    factor: int = Field(default=4, ge=1)


def parsed(kind: type[R], values: Any, *, form: bool = False) -> R:
    """A request from JSON values, or from the text fields of a form.

    Raises:
        Unprocessable: with the name of the first field at fault. What was sent is not repeated.
    """
    try:
        return kind.model_validate_strings(values) if form else kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        raise Unprocessable(f"{place}: {message}" if place else message, param=place) from None


def clip_settings(request: VideoRequest, base: RenderConfig, limits: RequestLimits) -> RenderConfig:
    """The clip that a request asks for; what it leaves out is the base's.

    Raises:
        Unprocessable: it is more than the limits allow, or of a size that cannot be rendered.
    """
    frames = request.num_frames
    if request.seconds is not None:  # the nearest length that there is
        frames = 1 + limits.factor * round((float(request.seconds) * base.fps - 1) / limits.factor)
        frames = max(1, frames)
    elif frames is not None and frames % limits.factor != 1 % limits.factor:
        below = (frames - 1) // limits.factor * limits.factor + 1
        raise Unprocessable(f"num_frames: give {below} or {below + limits.factor}", param="num_frames")
    width, height = map(int, request.size.split("x")) if request.size else (base.width, base.height)
    steps = request.num_inference_steps or base.steps
    frames = frames or base.frames
    length = "seconds" if request.seconds is not None else "num_frames"
    for name, value, most in ((length, frames, limits.frames), ("num_inference_steps", steps, limits.steps)):
        if value > most:
            unit = f"{most} frames" if name == "seconds" else most
            raise Unprocessable(f"{name}: at most {unit}", param=name)
    if width % limits.multiple or height % limits.multiple or min(width, height) < limits.multiple:
        raise Unprocessable(f"size: give multiples of {limits.multiple}", param="size")
    if width * height > limits.pixels:
        raise Unprocessable(f"size: at most {limits.pixels} pixels", param="size")
    changes: dict[str, Any] = {"frames": frames, "height": height, "width": width, "steps": steps}
    if request.guidance_scale is not None:
        changes["guidance"] = request.guidance_scale
    if request.negative_prompt is not None:
        changes["negative_prompt"] = request.negative_prompt
    return RenderConfig.parse(base.model_dump() | changes, "request")


def video_object(job: Job, model: str) -> dict[str, Any]:
    """A job as OpenAI's video, with the effect and the attempt beside it. `cancelled` is a state that OpenAI's has not.

    The settings of its clip are in the job's request under `clip`.
    """
    clip = job.request["clip"]
    error: dict[str, str] | None = None
    if job.status == "failed":
        error = {"code": job.error_code or "failed", "message": job.error_message or "the video failed"}
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"] = job.status
    return {
        "id": job.id, "object": "video", "model": model, "status": status, "progress": job.progress,
        "created_at": int(job.created_at), "completed_at": _whole(job.ended_at) if job.status == "completed" else None,
        "expires_at": _whole(job.expires_at), "prompt": job.request["prompt"],
        "seconds": f"{clip['frames'] / clip['fps']:g}", "size": f"{clip['width']}x{clip['height']}", "error": error,
        "remixed_from_video_id": None, "effect_id": job.effect_id, "seed": job.request.get("seed", 0),
        "attempt": job.attempt,
    }  # fmt: skip


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)

"""What requests are answered with, for the document of the API and for whoever checks answers against it. The answers
themselves are made elsewhere, as plain values: these models say what those promise.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.job import Status

__all__ = [
    "DeletedEffect", "DeletedVideo", "Effect", "Effects", "ErrorAnswer", "Health", "Lora", "Model", "Models", "Video",
    "Videos",
]  # fmt: skip

EFFECT_ID = r"^eff_[0-9a-f]{32}$"
VIDEO_ID = r"^video_[0-9a-f]{32}$"


class Answer(BaseModel):
    """Of all answers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(Answer):
    """What went wrong."""

    message: str = Field(description="for people; says what to do")
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="the field of the request at fault")
    code: str = Field(description="for programs")


class ErrorAnswer(Answer):
    """The envelope of every error."""

    error: ErrorBody


class Lora(Answer):
    """The LoRA file of an effect."""

    rank: int = Field(ge=1, description="the largest of its matrices")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Effect(Answer):
    """An effect; it has a prompt or a blend."""

    id: str = Field(pattern=EFFECT_ID, description="of the prompt or blend, the strength and the weights they meet")
    object: Literal["effect"]
    status: Literal["completed"]
    model: str
    created_at: int = Field(description="seconds since 1970")
    prompt: str = Field(default="", description="only where it was made of one")
    blend: list[tuple[str, float]] = Field(default=[], description="effects and their weights, only where it is one")
    strength: float
    lora: Lora
    seconds: float = Field(ge=0, description="of the pass that made it")


class VideoError(Answer):
    """Why a video failed."""

    code: str
    message: str


class Video(Answer):
    """A video, whether it is there yet or not."""

    id: str = Field(pattern=VIDEO_ID)
    object: Literal["video"]
    model: str
    status: Status
    progress: int = Field(ge=0, le=100, description="percent; 100 only when it is completed")
    created_at: int = Field(description="seconds since 1970")
    completed_at: int | None
    expires_at: int | None = Field(description="when its content goes; null until it has ended")
    prompt: str
    seconds: str = Field(description="length of the clip")
    size: str = Field(pattern=r"^[0-9]+x[0-9]+$", description="width x height, in pixels")
    error: VideoError | None = Field(description="only where it has failed")
    remixed_from_video_id: None
    effect_id: str | None
    seed: int
    attempt: int = Field(ge=0, description="how often it was begun")


class Page(Answer):
    """Some things of a list."""

    object: Literal["list"]
    has_more: bool = Field(description="whether there are more after last_id")
    first_id: str | None
    last_id: str | None = Field(description="give it as `after` for the next ones")


class Effects(Page):
    """Effects of the caller."""

    data: list[Effect]


class Videos(Page):
    """Videos of the caller."""

    data: list[Video]


class DeletedEffect(Answer):
    """An effect that the caller has no more."""

    id: str
    object: Literal["effect.deleted"]
    deleted: Literal[True]


class DeletedVideo(Answer):
    """A video that is no more."""

    id: str
    object: Literal["video.deleted"]
    deleted: Literal[True]


class Model(Answer):
    """What is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Answer):
    """All that is served."""

    object: Literal["list"]
    data: list[Model]


class Health(Answer):
    """That it is well."""

    status: Literal["ok", "ready"]

"""Settings of the judge: the field `judge` of a suite."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from eval.judge.verdict import Verdict
from p2e.adapt.cache import digest_of
from p2e.config import Settings

__all__ = ["Example", "JudgeSettings"]


class Example(Settings):
    """A clip with the verdict that it should get, shown before every question.

    Attributes:
        video, image: local or fsspec URLs.
        prompt: of the effect.
    """

    video: str
    image: str
    prompt: str
    verdict: Verdict


class JudgeSettings(Settings):
    """Settings of the judge.

    Attributes:
        backend: "openai" asks a server at `url`, such as vLLM's; "ray" starts engines of vLLM on the cluster; "local"
            runs the model in this process.
        model: its name at the server, or the model's folder; not at a server, `tiny` is the one that ships with p2e.
        revision: of it, where it has any.
        url: of the server, with /v1; key_env: names the environment variable that holds its key.
        concurrency: requests, or clips of a batch, at once.
        engines: at most, on the cluster; gpus: of each; engine: vLLM's own arguments, such as max_model_len.
        retries: how often a request is repeated after 408, 429, 5xx or a lost connection; backoff_s: the first wait,
            which doubles, up to 30 s.
        timeout_s: of one request.
        repeat_share, repeats: that share of the clips is judged so many times in all, with other seeds, to publish the
            judge's own noise.
        coverage: share of clips with a verdict below which no headline number is given.
        temperature, max_tokens, seed: of the sampler.
        frames: taken evenly from a clip; side: of longer ones the longer side is brought down to it, pixels.
        examples: shown before every question; none is the default.
    """

    backend: Literal["openai", "ray", "local"] = "openai"
    model: str = Field(default="Qwen/Qwen3-VL-8B-Instruct", min_length=1)
    revision: str = ""
    url: str = Field(default="http://127.0.0.1:8000/v1", pattern=r"^https?://\S+$")
    key_env: str | None = None
    concurrency: int = Field(default=16, ge=1, le=1024)
    engines: int = Field(default=1, ge=1)
    gpus: float = Field(default=1.0, ge=0)
    engine: dict[str, Any] = Field(default_factory=dict)
    retries: int = Field(default=6, ge=0, le=100)
    backoff_s: float = Field(default=1.0, ge=0)
    timeout_s: float = Field(default=300.0, gt=0)
    repeat_share: float = Field(default=0.05, ge=0, le=1)
    repeats: int = Field(default=3, ge=1, le=20)
    coverage: float = Field(default=0.95, ge=0, le=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_tokens: int = Field(default=512, ge=64)
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    frames: int = Field(default=16, ge=2, le=256, multiple_of=2)
    side: int = Field(default=768, ge=32)
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.repeats == 1 and self.repeat_share > 0:
            raise ValueError("repeats: 1 repeats nothing; give 2 or more, or repeat_share: 0")
        return self

    @property
    def recipe(self) -> str:
        """Name, version and a digest of all that changes a verdict: rubric, model, sampler, frames and examples. Not
        where or how fast it runs."""
        from eval.judge.rubric import RUBRIC_HASH, VERSION

        parts = (self.revision, self.temperature, self.max_tokens, self.seed, self.frames, self.side)
        shown = [example.model_dump_json() for example in self.examples]
        if self.engine:
            shown.append(digest_of("engine", *(f"{key}={self.engine[key]!r}" for key in sorted(self.engine))))
        if self.backend != "openai":
            from eval.judge.local_backend import weights_digest

            shown.append(weights_digest(self.model))
        rest = digest_of(self.model, *parts, *shown)[:12]
        return f"judge/{VERSION} rubric {RUBRIC_HASH[:12]} model {self.model} settings {rest}"

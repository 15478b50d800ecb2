"""An item as a question to a chat model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from eval.judge.base import JudgeItem
from eval.judge.frames import Frames, chosen_frames, picture, png_url
from eval.judge.rubric import SYSTEM, effect_text
from eval.judge.settings import JudgeSettings
from eval.judge.verdict import SCHEMA
from eval.metrics.base import Unscorable
from eval.metrics.reading import read_clip

__all__ = ["PROCESSOR", "Question", "Shown", "chat_request", "chat_text", "structure"]

# Held fast, for a later transformers will change it, and with it scores and costs.
PROCESSOR = {"cap_pixels_per_frame": False}


@dataclass(frozen=True)
class Shown:
    """What the judge is shown of one clip; no name of a method, an effect or a file is in here.

    Attributes:
        answer: of an example, the verdict as JSON; "" of the clip in question.
    """

    image: Image.Image
    frames: Frames
    prompt: str
    answer: str = ""


@dataclass(frozen=True)
class Question:
    """Opens items for a judge with these settings."""

    settings: JudgeSettings

    def shown(self, item: JudgeItem) -> list[Shown]:
        """The examples, then the clip.

        Raises:
            Unscorable: the clip or the picture cannot be read, or "example_differs": vLLM takes the times of frames
                once for all videos of a request, so examples have the length and rate of the clips.
        """
        clip = self._opened(item.video, item.image, item.prompt, "")
        for example in self._examples:
            of_clip, of_example = ((one.frames.total, one.frames.fps) for one in (clip, example))
            if of_clip != of_example:
                words = "{} frames at {:g} a second".format
                raise Unscorable(
                    "example_differs", f"an example has {words(*of_example)}, the clip {words(*of_clip)}; use its like"
                )
        return [*self._examples, clip]

    @cached_property
    def _examples(self) -> list[Shown]:
        found = self.settings.examples
        return [self._opened(one.video, one.image, one.prompt, one.verdict.model_dump_json()) for one in found]

    def _opened(self, video: str, image: str, prompt: str, answer: str) -> Shown:
        side = self.settings.side
        frames = chosen_frames(read_clip(video), self.settings.frames, side)
        return Shown(picture(image, side), frames, prompt, answer)


def chat_request(settings: JudgeSettings, shown: list[Shown], seed: int, max_tokens: int) -> dict[str, Any]:
    """The body of POST /chat/completions. What OpenAI's own schema lacks is vLLM's: `structured_outputs`,
    `media_io_kwargs`, `mm_processor_kwargs`. Without `--trust-request-mm-kwargs` vLLM refuses the last two (400), and
    without them it takes the frames for one a second and their size from whatever transformers does by default."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for one in shown:
        parts = [
            {"type": "image_url", "image_url": {"url": png_url(one.image)}},
            {"type": "video_url", "video_url": {"url": one.frames.url}},
            {"type": "text", "text": effect_text(one.prompt)},
        ]
        messages.append({"role": "user", "content": parts})
        if one.answer:
            messages.append({"role": "assistant", "content": one.answer})
    return {
        "model": settings.model, "messages": messages, "temperature": settings.temperature, "max_tokens": max_tokens,
        "seed": seed, "structured_outputs": structure(), "media_io_kwargs": {"video": shown[-1].frames.metadata},
        "mm_processor_kwargs": dict(PROCESSOR),
    }  # fmt: skip


def chat_text(processor: Any, shown: Sequence[Shown]) -> str:
    """The prompt that a server makes of the same messages, with the model's own template."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for one in shown:
        parts = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": effect_text(one.prompt)}]
        messages.append({"role": "user", "content": parts})
        if one.answer:
            messages.append({"role": "assistant", "content": one.answer})
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def structure() -> dict[str, Any]:
    """What holds an answer to the schema. vLLM 0.32 does not read the second field: a model may write blanks until its
    tokens run out, unless the server was started with `--structured-outputs-config '{"backend": "xgrammar",
    "disable_any_whitespace": true}'`."""
    return {"json": SCHEMA, "disable_any_whitespace": True}

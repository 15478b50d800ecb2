"""What is judged, what comes back, and what both backends have in common."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from eval.judge.verdict import Verdict

__all__ = ["Answer", "Judge", "JudgeItem"]


@dataclass(frozen=True)
class JudgeItem:
    """A clip to judge. The judge is shown the two pictures and the prompt, and nothing else that is in here.

    Attributes:
        key: by which the caller knows it.
        clip: the key of the clip's file, which stands for its bytes.
        video, image: the clip and the picture that it began with, local or fsspec URLs.
        prompt: of the effect.
        effect: its name.
        image_digest: of the picture's bytes, where the caller knows it; "" where the clip's key covers it.
        seed: of the sampler.
    """

    key: str
    clip: str
    video: str
    image: str
    prompt: str
    effect: str = ""
    image_digest: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """A verdict, or "code: words" for why there is none; never both.

    Attributes:
        attempts: how often it was asked.
        prompt_tokens: as the server counted them; 0 where it does not say.
    """

    verdict: Verdict | None
    error: str = ""
    attempts: int = 1
    prompt_tokens: int = 0


class Judge(Protocol):
    """A backend."""

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Answer]]:
        """An answer for each item, as they come; whatever is wrong with one is its answer's error."""
        ...

"""What a metric is."""

from dataclasses import dataclass
from typing import Any, Protocol

from p2e.errors import InputError
from p2e.render.video import Clip

__all__ = ["Context", "Metric", "Unscorable"]


class Unscorable(InputError):
    """A clip that a metric has no number for; the line begins with the `code`, a word that programs may rely on."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(code, words)
        self.code, self.words = code, words

    def __str__(self) -> str:
        return f"{self.code}: {self.words}"


@dataclass(frozen=True)
class Context:
    """What a clip should show.

    Attributes:
        prompt: of the effect.
        image: the picture that the clip was to begin with, local or an fsspec URL.
        effect: its name; the oracle knows the world's.
        scene: "world:N" where the picture is the N-th evaluation scene of the embedded world.
    """

    prompt: str
    image: str = ""
    effect: str = ""
    scene: str = ""


class Metric(Protocol):
    """A function of a clip.

    Attributes:
        name: of its column.
        recipe: name, version, and all else that changes a number: frames, sizes, digests of weights, plug-ins.
    """

    name: str
    recipe: str

    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        """The number, and what else is to be known of it.

        Raises:
            Unscorable: there is none for this clip.
            P2EError: something that it needs cannot be read.
        """
        ...

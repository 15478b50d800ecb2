"""What an effect is, and short forms to write tables of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

__all__ = ["UNSEEN", "Category", "EffectSpec", "Split", "colour", "effect"]

UNSEEN = 2  # so many of an effect's prompts, the last ones, are kept from training

Split = Literal["train", "heldout", "ood"]
Category = Literal["mood", "style", "camera", "motion", "warp", "visitor", "transformation", "particles", "composed"]


@dataclass(frozen=True)
class EffectSpec:
    """An effect: the words people ask for it with, and its point in the parameter space.

    Attributes:
        prompts: twelve paraphrases for training (24 or 48 where the hypernetwork trains on them), and two that it never
            shows.
        parameters: end values by name (`p2e.world.parameters`); sprites by name; the rest is zero.
    """

    name: str
    split: Split
    category: Category
    prompts: tuple[str, ...]
    parameters: Mapping[str, float | str]

    @property
    def train_prompts(self) -> tuple[str, ...]:
        return self.prompts[:-UNSEEN]

    @property
    def unseen_prompts(self) -> tuple[str, ...]:
        return self.prompts[-UNSEEN:]


@cache
def _prompts() -> dict[str, dict[str, list[str]]]:
    return json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))


def effect(split: Split, name: str, category: Category, **parameters: float | str) -> EffectSpec:
    """An effect with the usual defaults: oscillations twice a clip, visitors of two fifths of the frame. Its prompts
    stand in prompts.json under its name."""
    if any(key in parameters for key in ("sway", "bounce", "wobble", "jelly", "daynight", "first_bob", "second_bob")):
        parameters.setdefault("rate", 2.0)
    for slot in ("first", "second"):
        if f"{slot}_sprite" in parameters or f"{slot}_twin" in parameters:
            parameters[f"{slot}_visitor"] = 1.0
            parameters.setdefault(f"{slot}_size", 0.42)
    words = _prompts()[name]
    return EffectSpec(name, split, category, (*words["train"], *words["unseen"]), parameters)


def colour(prefix: str, red: float, green: float, blue: float) -> dict[str, float]:
    """The three parameters of a colour: tint, paint, backdrop, paper, line or grain."""
    return {f"{prefix}_r": red, f"{prefix}_g": green, f"{prefix}_b": blue}

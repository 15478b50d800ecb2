"""Clips whose order is beyond dispute: what a judge must get right before it is believed about others.

On scenes of the embedded world: the true effect; another effect, of which the description says nothing; the starting
picture, held still; and noise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from eval.metrics.base import Context
from eval.metrics.oracle import true_clip
from eval.metrics.scoring import Item
from eval.run_files import Score
from p2e.errors import InputError
from p2e.render.video import Clip, write_mp4

__all__ = ["KINDS", "ORDERS", "Order", "calibration_clips", "held_orders", "write_calibration"]

KINDS = ("truth", "wrong", "still", "noise")
ORDERS = (("truth", "wrong"), ("truth", "still"), ("truth", "noise"))
FAILING = ("still", "noise")
ENLARGED = 2  # 96 pixels lose much of their colour in H.264; twice as many keep it


@dataclass(frozen=True)
class Order:
    """Whether one order holds: over how many pairs of clips, and in which share of them."""

    name: str
    share: float
    pairs: int

    def holds(self, share: float = 1.0) -> bool:
        """In at least that share of the pairs, of which there is at least one."""
        return self.pairs > 0 and self.share >= share


def calibration_clips(effect: str, other: str, scene: int, seed: int = 0) -> Mapping[str, Clip]:
    """A clip of each of `KINDS`.

    Raises:
        InputError: the world has no such effect or scene, or both effects are one.
    """
    if effect == other:
        raise InputError(f"the wrong effect cannot be {effect} itself; name another")
    truth, wrong = (true_clip(name, scene).permute(0, 2, 3, 1).numpy() for name in (effect, other))
    still = np.repeat(truth[:1], len(truth), 0)
    noisy = np.random.default_rng(seed).integers(0, 256, truth.shape, dtype=np.uint8)
    clips = zip(KINDS, (truth, wrong, still, noisy), strict=True)
    return {kind: Clip(np.ascontiguousarray(frames)).enlarged(ENLARGED) for kind, frames in clips}


def write_calibration(folder: Path, cases: Sequence[tuple[str, str, int]], prompts: Mapping[str, str]) -> list[Item]:
    """Files of the clips and their first frames, as items to score, whose keys are "effect/scene/kind".

    Args:
        cases: effect, wrong effect, scene.
        prompts: of each effect.
    """
    found = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (effect, other, scene) in enumerate(cases):
        clips = calibration_clips(effect, other, scene, number)
        image = folder / f"{number}.png"
        Image.fromarray(clips["still"].frames[0]).save(image)
        for kind, clip in clips.items():
            # Numbers alone: not even a server's log should tell the judge what it sees.
            path = folder / f"{number}-{KINDS.index(kind)}.mp4"
            write_mp4(path, clip)
            context = Context(prompts[effect], str(image), effect, f"world:{scene}")
            found.append(Item(f"{effect}/{scene}/{kind}", str(path), context))
    return found


def held_orders(scores: Iterable[Score]) -> list[Order]:
    """Which orders hold among scores of `write_calibration`'s items: the truth above the rest, strictly, and what
    must fail hard does. A clip without a verdict holds none of its orders."""
    values = {(score.clip, score.metric): score.value for score in scores}
    cases = sorted({clip.rpartition("/")[0] for clip, metric in values if metric == "judge"})

    def total(case: str, kind: str) -> float | None:
        return values.get((f"{case}/{kind}", "judge"))

    found = []
    for better, worse in ORDERS:
        held = [_above(total(case, better), total(case, worse)) for case in cases]
        found.append(_order(f"{better} > {worse}", held))
    for kind in FAILING:
        held = [values.get((f"{case}/{kind}", "judge.hard_fail")) == 1 for case in cases]
        found.append(_order(f"{kind} fails hard", held))
    return found


def _above(better: float | None, worse: float | None) -> bool:
    return better is not None and worse is not None and better > worse


def _order(name: str, held: list[bool]) -> Order:
    return Order(name, sum(held) / len(held) if held else 0.0, len(held))

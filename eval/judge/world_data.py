"""Clips of the embedded world with the verdict that they deserve, drawn without end: what a tiny judge learns from.

The truth of a clip is known, so its verdict is computed (f is fidelity, every error a mean over pixels in 0..1):
    effect    60 f, of f held to 0..1
    context   20 (1 - e / 0.1), e the error where the true effect leaves the still picture alone (by 0.03 or less)
    temporal  20 (1 - d / 0.1), d the error of the changes from frame to frame
    hard_fail where f < 0.1, or the error of the whole clip is above 0.25, which corruption alone reaches
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eval.judge.verdict import Verdict
from p2e.world.draw import draw_clips
from p2e.world.effects import EFFECTS, sample_params
from p2e.world.oracle import fidelity
from p2e.world.scenes import Scenes, evaluation_scenes, sample_scenes
from p2e.world.sprites import load_atlas
from p2e.world.table.spec import EffectSpec

__all__ = ["KINDS", "Example", "draw_examples", "true_verdict"]

# How a clip departs from the truth, and how often. Blur stands for the softness of rendered clips.
KINDS = {"truth": 0.25, "partial": 0.25, "wrong": 0.2, "still": 0.1, "blurred": 0.1, "noisy": 0.05, "noise": 0.05}
QUIET, SCALE, CORRUPT, NOTHING = 0.03, 0.1, 0.25, 0.1


@dataclass(frozen=True)
class Example:
    """Attributes:
    clip: uint8 [F, 3, H, W]; its first frame is not always the picture that it began with, `image` [3, H, W].
    fidelity: the oracle's, -1..1.
    """

    clip: Tensor
    image: Tensor
    prompt: str
    verdict: Verdict
    fidelity: float
    kind: str


def draw_examples(seed: int, count: int, *, unseen: bool = False, kinds: Sequence[str] = tuple(KINDS)) -> list[Example]:
    """`count` clips, the same for the same seed.

    Args:
        unseen: effects and wordings that training never shows, on evaluation scenes; otherwise training effects, in
            training's wordings, on drawn scenes.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(size: int) -> int:
        return int(torch.randint(size, (), generator=generator))

    pool = [spec for spec in EFFECTS if (spec.split != "train") == unseen]
    weights = torch.tensor([KINDS[kind] for kind in kinds])
    atlas, found = load_atlas("cpu"), []
    for _ in range(count):
        spec, kind = pool[pick(len(pool))], kinds[int(torch.multinomial(weights, 1, generator=generator))]
        if unseen:
            every = evaluation_scenes()
            index = pick(len(every))
            scene = every.select(slice(index, index + 1))
        else:
            scene = sample_scenes(1, generator)
        scene = replace(scene, drift=torch.zeros_like(scene.drift))  # what stands still without the effect is the still
        truth = _drawn(spec, scene, generator, atlas)
        other = pool[pick(len(pool) - 1)]
        other = pool[-1] if other is spec else other
        clip = _departed(
            kind, truth, lambda other=other, scene=scene: _drawn(other, scene, generator, atlas), generator
        )
        verdict, value = true_verdict(clip, truth)
        wordings = spec.unseen_prompts if unseen else spec.train_prompts
        found.append(Example(clip, truth[0], wordings[pick(len(wordings))], verdict, value, kind))
    return found


def true_verdict(clip: Tensor, truth: Tensor) -> tuple[Verdict, float]:
    """The verdict on a clip, and its fidelity; both uint8 [F, 3, H, W], the truth's first frame is the picture."""
    value = float(fidelity(clip[None], truth[None], truth[None, 0], clamp=True)[0])
    value = 0.0 if value != value else value
    seen, true = clip.float() / 255, truth.float() / 255
    error = (seen - true).abs()
    quiet = (true - true[:1]).abs() <= QUIET
    around = float(error[quiet].mean()) if quiet.any() else float(error.mean())
    jumps = float((seen.diff(dim=0) - true.diff(dim=0)).abs().mean())
    failed = value < NOTHING or float(error.mean()) > CORRUPT
    words = "The effect is carried out." if value >= 0.7 else "The effect is only partly there."
    verdict = Verdict(
        reason="The effect does not happen." if failed else words, effect=round(60 * min(max(value, 0.0), 1.0)),
        context=_points(around), temporal=_points(jumps), hard_fail=failed,
    )  # fmt: skip
    return verdict, value


def _points(error: float) -> int:
    return round(20 * max(0.0, 1 - error / SCALE))


def _drawn(spec: EffectSpec, scene: Scenes, generator: torch.Generator, atlas: object) -> Tensor:
    return draw_clips(scene, sample_params(spec, 1, generator), atlas)[0]  # pyright: ignore[reportArgumentType]


def _departed(kind: str, truth: Tensor, wrong: object, generator: torch.Generator) -> Tensor:
    if kind == "truth":
        return truth
    if kind == "wrong":
        return wrong()  # pyright: ignore[reportCallIssue]
    still = truth[:1].expand_as(truth).clone()
    if kind == "still":
        return still
    if kind == "noise":
        return torch.randint(0, 256, truth.shape, generator=generator, dtype=torch.uint8)
    share = float(torch.rand((), generator=generator))
    if kind == "partial":
        return torch.lerp(still.float(), truth.float(), share).round().byte()
    if kind == "noisy":
        added = torch.randn(truth.shape, generator=generator) * (10 + 60 * share)
        return (truth + added).round().clamp(0, 255).byte()
    small = torch.nn.functional.interpolate(truth.float(), scale_factor=0.5, mode="area")
    return torch.nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear").round().byte()

"""Clips of the embedded world with the verdict that they deserve, drawn without end: what a tiny judge learns from.

The truth of a clip is known, so its verdict is computed (f is fidelity, every error a mean over pixels in 0..1):
    effect    60 f, of f held to 0..1
    context   20 (1 - e / 0.1), e the error where the true effect leaves the still picture alone (by 0.03 or less)
    temporal  20 (1 - d / 0.1), d the error of the changes from frame to frame
    hard_fail where f < 0.1, or the error of the whole clip is above 0.25, which corruption alone reaches
    reason    what is seen and what was asked, in the words of `world_words`

Shapes: B clips, F frames, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from eval.judge.verdict import Verdict
from eval.judge.world_words import WORDS, phrase
from p2e.world.draw import draw_clips
from p2e.world.effects import EFFECTS, sample_params
from p2e.world.oracle import fidelity
from p2e.world.parameters import PARAMETERS, EffectParams
from p2e.world.scenes import Scenes, evaluation_scenes, sample_scenes
from p2e.world.sprites import load_atlas
from p2e.world.table.spec import EffectSpec
from p2e.world.vae import decode_clip, encode_clip

__all__ = ["KINDS", "SOURCES", "Example", "Source", "draw_examples", "verdicts"]

# How a clip departs from the truth, and how often: "weak" has the effect's sizes and amounts scaled down, "partial" is
# a cross-fade with the still. Any of them may have gone through the autoencoder, as rendered clips have.
KINDS = {
    "truth": 0.2, "weak": 0.15, "partial": 0.15, "wrong": 0.25, "still": 0.08, "soft": 0.07, "noisy": 0.05,
    "noise": 0.05,
}  # fmt: skip
QUIET, SCALE, CORRUPT, NOTHING = 0.03, 0.1, 0.25, 0.1
COMPOSED = 0.25  # so many training clips show two effects at once, asked for in two sentences
RENDERED = 0.3  # so many go through the autoencoder, if there is one
ALIKE = 0.5  # so many wrong effects are of the right one's category
FAINT = 0.6  # below this share of the effect a verdict calls it faint

# What clips are of: effects, wordings and scenes of training; training's effects in wordings and on scenes that it
# never shows; effects that it never shows, likewise.
Source = Literal["training", "unseen clips", "unseen effects"]
SOURCES: tuple[Source, ...] = ("training", "unseen clips", "unseen effects")


@dataclass(frozen=True)
class Example:
    """Attributes:
    clip: uint8 [F, 3, H, W]; its first frame is not always the picture that it began with, `image` [3, H, W].
    prompts: wordings of what was asked, as many as were wanted.
    fidelity: the oracle's, -1..1.
    """

    clip: Tensor
    image: Tensor
    prompts: tuple[str, ...]
    verdict: Verdict
    fidelity: float
    kind: str

    @property
    def prompt(self) -> str:
        return self.prompts[0]


def draw_examples(
    seed: int,
    count: int,
    source: Source = "training",
    *,
    kinds: Sequence[str] = tuple(KINDS),
    wordings: int = 1,
    device: str = "cpu",
    vae: Any = None,
) -> list[Example]:
    """`count` clips, the same for the same seed and device.

    Args:
        wordings: of each prompt.
        vae: the world's, on the device; None leaves the clips as they were drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = [spec for spec in EFFECTS if (spec.split != "train") == (source == "unseen effects")]

    def pick(size: int) -> int:
        return int(torch.randint(size, (), generator=generator))

    def chance(share: float) -> bool:
        return float(torch.rand((), generator=generator)) < share

    asked, shown, prompts = [], [], []
    weights = torch.tensor([KINDS[kind] for kind in kinds])
    kind_of = [kinds[int(i)] for i in torch.multinomial(weights, count, replacement=True, generator=generator)]
    for kind in kind_of:
        spec = pool[pick(len(pool))]
        other = _other(pool, spec, pick, chance)
        words = spec.train_prompts if source == "training" else spec.unseen_prompts
        said = tuple(words[pick(len(words))] for _ in range(wordings))
        if source == "training" and chance(COMPOSED) and (both := _together(spec, other)) is not None:
            said = tuple(f"{one} {other.train_prompts[pick(len(other.train_prompts))]}" for one in said)
            spec, other = both, (spec if chance(0.5) else _other(pool, spec, pick, chance))
        asked.append(spec)
        shown.append(other if kind == "wrong" else spec)
        prompts.append(said)
    scenes = _scenes(source, count, generator)
    atlas = load_atlas(device)
    truth = draw_clips(scenes.to(device), sample_params(asked, None, None).to(device), atlas)
    share = torch.rand(count, generator=generator)
    params = sample_params(shown, None, generator)
    weak = torch.tensor([kind == "weak" for kind in kind_of])
    scaled = torch.tensor([kind in ("size", "amount") for kind in PARAMETERS.values()])
    params = EffectParams(
        torch.where(weak[:, None] & scaled, params.values * share[:, None], params.values), params.times
    )
    clip = draw_clips(scenes.to(device), params.to(device), atlas)
    again = torch.rand(count, generator=generator) < RENDERED
    noise = torch.Generator(device).manual_seed(seed)
    _depart(clip, truth, kind_of, share.to(device), noise)
    if vae is not None:
        _render(clip, again.to(device), vae)
    reasons = [
        f"Seen: {_seen(kind, s, float(x))}. Asked: {phrase(a.parameters)}."
        for kind, a, s, x in zip(kind_of, asked, shown, share, strict=True)
    ]
    told, values = verdicts(clip, truth, reasons)
    return [Example(clip[i], truth[i, 0], prompts[i], told[i], values[i], kind_of[i]) for i in range(count)]


def verdicts(clip: Tensor, truth: Tensor, reasons: Sequence[str]) -> tuple[list[Verdict], list[float]]:
    """The verdicts on clips, and their fidelities; both uint8 [B, F, 3, H, W], the truth's first frame is the
    picture."""
    found, values = [], []
    for start in range(0, len(clip), 256):  # float copies of all would be four times as large
        seen, true = (x[start : start + 256].float() / 255 for x in (clip, truth))
        value = fidelity(seen, true, true[:, 0], clamp=True).nan_to_num(0.0)
        error = (seen - true).abs()
        quiet = ((true - true[:, :1]).abs() <= QUIET).float()
        around = (error * quiet).flatten(1).sum(1) / quiet.flatten(1).sum(1).clamp(min=1)
        jumps = (seen.diff(dim=1) - true.diff(dim=1)).abs().flatten(1).mean(1)
        rows = torch.stack([value.float(), around, jumps, error.flatten(1).mean(1)], 1).tolist()
        for (f, e, d, whole), reason in zip(rows, reasons[start:], strict=False):
            failed = f < NOTHING or whole > CORRUPT
            effect = round(60 * min(max(f, 0.0), 1.0))
            found.append(
                Verdict(reason=reason, effect=effect, context=_points(e), temporal=_points(d), hard_fail=failed)
            )
            values.append(f)
    return found, values


def _points(error: float) -> int:
    return round(20 * max(0.0, 1 - error / SCALE))


def _scenes(source: Source, count: int, generator: torch.Generator) -> Scenes:
    """Of training or evaluation, at rest: what stands still without the effect is the still."""
    if source == "training":
        scenes = sample_scenes(count, generator)
    else:
        every = evaluation_scenes()
        scenes = every.select(torch.randint(len(every), (count,), generator=generator))
    return replace(scenes, drift=torch.zeros_like(scenes.drift))


def _other(pool: Sequence[EffectSpec], spec: EffectSpec, pick: Any, chance: Any) -> EffectSpec:
    """Another effect; often one of the same category."""
    rest = [one for one in pool if one is not spec]
    near = [one for one in rest if one.category == spec.category]
    chosen = near if near and chance(ALIKE) else rest
    return chosen[pick(len(chosen))]


def _together(one: EffectSpec, two: EffectSpec) -> EffectSpec | None:
    """Both effects at once, unless they meet in a parameter."""
    if (one.parameters.keys() & two.parameters.keys()) - {"rate"}:
        return None
    return replace(one, category="composed", parameters={**one.parameters, **two.parameters})


def _seen(kind: str, shown: EffectSpec, share: float) -> str:
    if kind in ("still", "noise"):
        return WORDS[kind]
    words = phrase(shown.parameters)
    if kind in ("weak", "partial"):
        return f"{WORDS['faint']} {words}" if share < FAINT else words
    return f"{WORDS[kind]} {words}" if kind in WORDS else words


def _depart(clip: Tensor, truth: Tensor, kinds: Sequence[str], share: Tensor, generator: torch.Generator) -> None:
    """Changes clips in place, each after its kind."""

    def rows(kind: str) -> list[int]:
        return [i for i, name in enumerate(kinds) if name == kind]

    def column(of: list[int]) -> Tensor:
        return share[of].view(-1, 1, 1, 1, 1)

    if where := rows("still"):
        clip[where] = truth[where, :1].expand_as(truth[where])
    if where := rows("noise"):
        shape = clip[where].shape
        clip[where] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device=clip.device)
    if where := rows("partial"):
        clip[where] = torch.lerp(truth[where, :1].float(), clip[where].float(), column(where)).round().byte()
    if where := rows("noisy"):
        added = torch.randn(clip[where].shape, generator=generator, device=clip.device) * (10 + 60 * column(where))
        clip[where] = (clip[where] + added).round().clamp(0, 255).byte()
    if where := rows("soft"):
        small = torch.nn.functional.avg_pool2d(clip[where].flatten(0, 1).float(), 2)
        large = torch.nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear")
        clip[where] = large.round().byte().view_as(clip[where])


@torch.no_grad()
def _render(clip: Tensor, chosen: Tensor, vae: Any) -> None:
    """Sends chosen clips through the autoencoder, in place."""
    for where in chosen.nonzero()[:, 0].split(64):
        video = clip[where].transpose(1, 2).to(vae.dtype) / 127.5 - 1
        mean, _ = encode_clip(vae, video)
        again = decode_clip(vae, mean).float().clamp(-1, 1)
        clip[where] = ((again + 1) * 127.5).round().byte().transpose(1, 2)

"""Two effects at once, by half of each one's update: the twin of the paper's figure 5, with how much of each shows.

Shapes: S scenes, F frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from p2e.lora.compose import blend
from p2e.text import TextStates
from p2e.world.columns import Column, ColumnLoras, World
from p2e.world.config import WorldLibraryConfig
from p2e.world.effects import EFFECTS, effect_index
from p2e.world.evaluate import draw_evaluation, measure

__all__ = ["Blended", "blend_effects", "joined_text", "presence"]


@dataclass(frozen=True)
class Blended:
    """Clips of two effects and of their blend.

    Attributes:
        clips: uint8 [3, S, F, 3, H, W], the first effect, the second, the blend.
        truth: uint8 [2, S, F, 3, H, W].
        presence: [3, 2], how much of each effect shows in each clip, the mean over scenes.
    """

    clips: Tensor
    truth: Tensor
    presence: Tensor


def presence(video: Tensor, truth: Tensor) -> Tensor:
    """How much of each true effect is in a video: the coefficients w that bring sum_i w_i (truth_i - still) nearest to
    video - still, where still is the first frame of the truth. A true clip has 1 of itself and 0 of the other; half a
    colour change counts as half.

    Args:
        video: uint8 [S, F, 3, H, W]; truth: uint8 [N, S, F, 3, H, W], effects on the same scenes.

    Returns:
        float64 [S, N].
    """
    still = truth[:1, :, :1].float()
    change = (truth.float() - still).flatten(2).double()  # [N, S, pixels]
    seen = (video.float() - still[0]).flatten(1).double()
    gram = torch.einsum("nsp,msp->snm", change, change)
    return torch.linalg.lstsq(gram, torch.einsum("nsp,sp->sn", change, seen)[..., None], driver="gelsd").solution[
        ..., 0
    ]


def joined_text(one: TextStates, two: TextStates) -> Tensor:
    """Token states [T, D] of one prompt followed by the other's, cut at T; each is one prompt, [T, D] with mask [T]."""
    tokens = torch.cat([one.states[one.mask], two.states[two.mask]])[: len(one.mask)]
    return torch.nn.functional.pad(tokens, (0, 0, 0, len(one.mask) - len(tokens)))


def blend_effects(
    world: World, first: str, second: str, *, column: str = "zero", scenes: int = 2, seed: int = 0, steps: int = 10
) -> Blended:
    """Renders two effects and 0.5 dW_first + 0.5 dW_second, by LoRAs of a column ("zero", "lora"), prompts unseen.

    Raises:
        InputError: there is no such effect or column.
    """
    indices = [effect_index(first), effect_index(second)]
    specs = [EFFECTS[i] for i in indices]
    one, two = ColumnLoras(world, WorldLibraryConfig()).of(Column.parse(column), specs, specs, -1)
    both = blend([(one, 0.5), (two, 0.5)]).lora
    texts = [world.states[spec.name][-1] for spec in specs]
    text = torch.stack([*(t.states for t in texts), joined_text(*texts)])
    # The third is the blend's: on the same scenes, with the first effect's truth, which nothing is held to.
    data = draw_evaluation([*indices, indices[0]], scenes, world.vae, world.worker.device)
    clips = measure(
        data, text, [one, two, both], world.base, world.transformer, world.vae, world.scheduler, steps=steps, seed=seed
    )[1]
    truth = data.truth[:2].cpu()
    clips = clips.cpu()
    return Blended(clips, truth, torch.stack([presence(clip, truth).mean(0) for clip in clips]))

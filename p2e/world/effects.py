"""The table of effects, and clips' parameters drawn from it.

Names follow the paper's list (appendix B.3) wherever a procedural twin exists. Training effects show the single things;
held-out effects recombine them; out-of-distribution ones compose two, or bring in a sprite that no training effect
shows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from p2e.errors import InputError
from p2e.world.parameters import INDEX, PARAMETERS, EffectParams, parameter_vector
from p2e.world.table.composed import COMPOSED
from p2e.world.table.moods import MOODS
from p2e.world.table.motions import MOTIONS
from p2e.world.table.spec import EffectSpec
from p2e.world.table.styles import STYLES
from p2e.world.table.transformations import TRANSFORMATIONS
from p2e.world.table.unseen import HELD_OUT, NEWCOMERS
from p2e.world.table.visitors import VISITORS

__all__ = ["EFFECTS", "EffectSpec", "effect_index", "effect_table", "sample_params"]

EFFECTS: tuple[EffectSpec, ...] = (
    *MOODS,
    *STYLES,
    *MOTIONS,
    *VISITORS,
    *TRANSFORMATIONS,
    *HELD_OUT,
    *COMPOSED,
    *NEWCOMERS,
)

# Wider spreads put the sampling of the clip, not the LoRA, in the way: at 2.5 times these a true clip of a visitor
# has fidelity 0.64 to the middle one, at these 0.84.
STRENGTH = 0.06  # clips of an effect differ by so much in strength, either way
COLOUR_JITTER = 0.02
PLACE_JITTER = 0.02  # half frames
START, END, EASE = 0.0, 0.92, 0.6  # the middle clip's times
START_SPREAD, END_SPREAD, EASE_SPREAD = 0.04, 0.03, 0.16


def effect_index(name: str) -> int:
    """The index of an effect in `EFFECTS`.

    Raises:
        InputError: there is no such effect.
    """
    for i, spec in enumerate(EFFECTS):
        if spec.name == name:
            return i
    raise InputError(f"no effect is called {name!r}; `p2e world show` draws them all with their names")


def effect_table(device: torch.device | str = "cpu") -> Tensor:
    """The parameters of every effect, [E, P]."""
    return torch.stack([parameter_vector(spec.parameters) for spec in EFFECTS]).to(device)


def sample_params(
    effects: EffectSpec | int | Sequence[EffectSpec | int] | Tensor,
    n: int | None,
    generator: torch.Generator | None,
    device: torch.device | str = "cpu",
    variation: float = 1.0,
) -> EffectParams:
    """Parameters of clips of given effects, each clip a little different.

    Args:
        effects: one effect for all clips, or one for each: specs, or indices into `EFFECTS` ([n] if a tensor).
        n: how many clips; None takes the length of `effects`.
        generator: every number comes from it, on its own device; not used at variation 0.
        variation: how much clips differ; 0 gives the middle clip, which evaluation takes for the truth.

    Raises:
        InputError: `n` does not fit the number of effects.
    """
    where = generator.device if generator is not None else torch.device(device)
    base = _vectors(effects, where)
    if len(base) == 1 and n is not None:
        base = base.expand(n, -1)
    if n is not None and len(base) != n:
        raise InputError(f"{len(base)} effects were given for {n} clips; give one, or one for each clip")
    n = len(base)

    def spread(*shape: int) -> Tensor:
        """Uniform in -1..1, times the variation."""
        if generator is None or variation == 0:
            return torch.zeros(*shape, device=where)
        return (2 * torch.rand(*shape, generator=generator, device=where) - 1) * variation

    kinds = list(PARAMETERS.values())

    def of_kind(*names: str) -> Tensor:
        return torch.tensor([kind in names for kind in kinds], device=where)

    scaled = base * (1 + STRENGTH * spread(n, 1))
    values = torch.where(of_kind("size", "amount"), scaled, base)
    jitter = spread(n, len(kinds))
    # Zeros stay: what an effect does not use must not appear.
    values = torch.where(of_kind("colour") & _coloured(base), base + COLOUR_JITTER * jitter, values)
    values = torch.where(of_kind("place") & (base != 0), base + PLACE_JITTER * jitter, values)
    values = torch.where(of_kind("amount", "colour"), values.clamp(0, 1), values)
    times = torch.stack(
        [
            START + START_SPREAD * spread(n).abs(),
            END + END_SPREAD * spread(n),
            (EASE + EASE_SPREAD * spread(n)).clamp(0, 1),
        ],
        dim=1,
    )
    return EffectParams(values, times).to(device)


def _vectors(effects: EffectSpec | int | Sequence[EffectSpec | int] | Tensor, device: torch.device) -> Tensor:
    if isinstance(effects, Tensor):
        return effect_table(device)[effects.to(device)]
    listed = [effects] if isinstance(effects, EffectSpec | int) else list(effects)
    specs = [EFFECTS[item] if isinstance(item, int) else item for item in listed]
    return torch.stack([parameter_vector(spec.parameters) for spec in specs]).to(device)


def _coloured(values: Tensor) -> Tensor:
    """Which colour channels belong to a colour in use, [B, P]: those whose three channels are not all zero."""
    used = torch.zeros_like(values, dtype=torch.bool)
    for prefix in ("tint", "paint", "backdrop", "paper", "line", "grain"):
        channels = [INDEX[f"{prefix}_{c}"] for c in "rgb"]
        used[:, channels] = (values[:, channels] != 0).any(1, keepdim=True)
    return used

"""How learning rates and moving averages change over a run."""

import math

__all__ = ["average_decay", "warm_cosine"]


def warm_cosine(step: int, warmup: int, done: float, final: float) -> float:
    """The share of the peak rate at a step: a linear warm-up, then half a cosine down to a share of the peak.

    Args:
        step: counted from 0; step + 1 of `warmup` steps gives that share, so the first step is not lost.
        done: share of the run that lies behind, by steps or by the clock; past 1 it stays at the end.
        final: share of the peak at the end; 1 is a constant rate.
    """
    level = final + (1 - final) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    return level * min(1.0, (step + 1) / max(1, warmup))


def average_decay(decay: float, step: int) -> float:
    """What a moving average of the weights keeps of itself at a step, counted from 0: a tenth at first, `decay` once as
    many steps lie behind as it looks back on. Without that a short run would measure little but its start."""
    return min(decay, (1 + step) / (10 + step))

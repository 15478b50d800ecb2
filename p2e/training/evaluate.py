"""Errors of a hypernetwork on effects it may or may not have seen, over every trained site."""

import torch
from torch import nn

from p2e.config import LossConfig
from p2e.hypernet.losses import combine, site_errors
from p2e.hypernet.variants import Predictor
from p2e.training.data import Source

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    model: Predictor,
    source: Source,
    effects: list[int],
    *,
    dtype: torch.dtype,
    sites: int = 8,
    effects_at_once: int = 16,
) -> dict[str, float]:
    """Mean errors over the trained sites that `effects` cover, each effect by its first prompt.

    Args:
        effects: indices in the library.
        dtype: type of the matrix products.
        sites, effects_at_once: how many are predicted together, which bounds the memory.

    Returns:
        factor_error, update_error and norm_ratio, as in `Losses`.
    """
    assert isinstance(model, nn.Module)
    errors, weights, config = [], [], LossConfig.parse({})
    for start in range(0, len(effects), effects_at_once):
        chosen = effects[start : start + effects_at_once]
        prompts = torch.tensor([source.prompts[i][0] for i in chosen], device=source.device)
        text, mask = source.text[prompts], source.text_mask[prompts]
        for targets in source.chunks(torch.tensor(chosen), sites):
            with torch.autocast(source.device.type, dtype, dtype != torch.float32):
                predicted = model.predict_sites([t.sites for t in targets], text, mask)
            for (a_hat, b_hat), t in zip(predicted, targets, strict=True):
                errors.append(site_errors(a_hat, b_hat, t.a, t.b, config.epsilon))
                weights.append((t.weight > 0).float())  # a plain mean: an effect's weight is for training
    losses = combine(errors, weights, config)
    return {name: float(getattr(losses, name)) for name in ("factor_error", "update_error", "norm_ratio")}

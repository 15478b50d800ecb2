"""Floating-point operations of the hypernetwork's matrix products, counted from its equations.

A product of [m, k] and [k, n] counts 2 m k n; everything else (norms, softmax, losses) is left out, as is usual for
model FLOP utilisation. Counted is what the model needs: work done twice (activation checkpointing) counts once.
"""

from collections.abc import Sequence

from p2e.config import HypernetConfig

__all__ = [
    "Shapes", "attention_flops", "backbone_flops", "binding_flops", "forward_flops", "mixing_flops",
    "prompt_flops", "training_flops",
]  # fmt: skip


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Scores and weighted sum of one sequence."""
    return 4 * queries * keys * width


Shapes = Sequence[tuple[int, int, int]]  # (number of sites, d_out, d_in) of each group


def forward_flops(config: HypernetConfig, shapes: Shapes, effects: int, tokens: int, text_width: int) -> int:
    """One forward pass over some sites, each with the same effects; the weight tokens of a site are made once.

    Args:
        effects: E.
        tokens: T, token states a prompt.
        text_width: of a token state.

    Raises:
        ValueError: the configuration is a baseline or an ablation, whose products are others.
    """
    fold = len(shapes) * 2 * 2 * config.width**2 * config.rank  # of the heads, once a group
    return binding_flops(config, shapes) + fold + prompt_flops(config, shapes, effects, tokens, text_width)


def binding_flops(config: HypernetConfig, shapes: Shapes) -> int:
    """What no prompt changes: weight tokens, compression, the decompressor's queries, the heads on weight tokens.

    Raises:
        ValueError: as for `forward_flops`.
    """
    if config.architecture != "prompt2effect" or config.weights in ("none", "truncated_svd"):
        raise ValueError(f"no count for architecture {config.architecture} with weights {config.weights}")
    d, n, r = config.width, config.latents, config.rank
    total = len(shapes) * 2 * n * d * d  # queries of the compression: the learned latents, projected once a group
    for count, d_out, d_in in shapes:
        rows = d_out + d_in
        site = 2 * 2 * d_out * d_in * d  # W0 P_B and W0^T P_A
        site += 2 * 2 * rows * d * d + attention_flops(n, rows, d) + 2 * n * d * d  # compression
        site += 2 * rows * d * d + 2 * rows * d * r  # queries of the decompressor, and the heads on X
        total += count * site
    return total


def prompt_flops(config: HypernetConfig, shapes: Shapes, effects: int, tokens: int, text_width: int) -> int:
    """What is left for E prompts: text, backbone, decompression with folded heads."""
    sites, d = sum(count for count, _, _ in shapes), config.width
    total = 2 * effects * tokens * text_width * d  # the text, once for all sites
    total += backbone_flops(config, sites, effects, tokens)
    for count, d_out, d_in in shapes:
        rows, n = d_out + d_in, config.latents
        pair = 2 * 2 * n * d * d + attention_flops(rows, n, d) + 2 * rows * d * config.rank
        total += count * effects * pair
    return total


def backbone_flops(config: HypernetConfig, sites: int, effects: int, tokens: int) -> int:
    """All layers over the latents of so many sites for E prompts of T tokens."""
    d, n, pairs = config.width, config.latents, sites * effects
    inner = int(config.ffn_ratio * d)
    layer = mixing_flops(config, pairs)
    layer += pairs * (2 * 2 * n * d * d + attention_flops(n, tokens, d)) + effects * 2 * 2 * tokens * d * d
    layer += pairs * 2 * 3 * n * d * inner  # gated feed-forward
    if config.across_sites:
        layer += pairs * 2 * 4 * n * d * d + effects * n * attention_flops(sites, sites, d)
    return config.layers * layer


def mixing_flops(config: HypernetConfig, pairs: int) -> int:
    """Self-attention of one block over the latents of so many (site, effect): in the first block no prompt has entered
    them, so that a binding holds its result."""
    d, n = config.width, config.latents
    return pairs * (2 * 4 * n * d * d + attention_flops(n, n, d))


def training_flops(config: HypernetConfig, shapes: Shapes, effects: int, tokens: int, text_width: int) -> int:
    """Forward and backward: a product of weights and activations costs twice its forward going back, except where the
    input needs no gradient (W0, the prompt): once."""
    d = config.width
    leaves = 2 * effects * tokens * text_width * d + sum(2 * 2 * c * o * i * d for c, o, i in shapes)
    return 3 * forward_flops(config, shapes, effects, tokens, text_width) - leaves

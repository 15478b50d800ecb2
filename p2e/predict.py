"""From prompts to LoRAs: one pass of a trained hypernetwork over every site of its base."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from p2e import __version__
from p2e.bases import WeightReader
from p2e.bases.base import Site
from p2e.errors import InputError
from p2e.hypernet.binding import Binding
from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.reading import check_base, read_sites
from p2e.lora.formats import LoraFormat, write_lora
from p2e.lora.lora import Factors, Lora, Provenance
from p2e.text import TextEncoder, TextStates, check_prompt

__all__ = ["predict_loras", "predict_to_file"]

CHUNK_BYTES = 512 << 20  # of one activation of the decompressor, which bounds the memory beside the weights
EFFECTS_AT_ONCE = 16


def predict_loras(
    checkpoint: Checkpoint,
    weights: WeightReader,
    prompts: Sequence[str],
    encoder: TextEncoder,
    *,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
    binding: Binding | None = None,
    device: str | torch.device | None = None,
) -> list[Lora]:
    """Predicts the LoRA of each prompt, at every site that the hypernetwork was trained on.

    Args:
        checkpoint: the hypernetwork; its device and the type of its parameters are used.
        weights: reads W0 of the base.
        encoder: the base's text encoder.
        strength: factor of the update.
        dtype: type of the returned factors.
        binding: of this checkpoint to these weights, for whoever predicts more than once.
        device: where the factors are returned, the CPU if left out; on the checkpoint's own they never leave the GPU on
            their way to a renderer's slot.

    Returns:
        One LoRA a prompt, in the order of `prompts`: of the hypernetwork's rank, or, for a prompt that asks for several
        effects (`TextConfig.components`), of that rank for each.

    Raises:
        InputError: a prompt is empty or too long, the strength is not finite, or the weights are of another base than
            the checkpoint's.
    """
    texts = [check_prompt(prompt) for prompt in prompts]
    check_base(checkpoint, weights)
    if not math.isfinite(strength):
        raise InputError(f"strength {strength} is not finite; give a number such as 1.0")
    if not texts:
        return []
    asked = checkpoint.model.text_input.components(encoder.encode(texts).to(checkpoint.device))
    wanted = asked.strength.flatten().nonzero()[:, 0]  # what is not asked for is not predicted
    whose, shares = (wanted // asked.strength.shape[1]).tolist(), asked.strength.flatten()[wanted]
    rows_of = [[row for row, owner in enumerate(whose) if owner == effect] for effect in range(len(texts))]
    factors: list[dict[str, Factors]] = [{} for _ in texts]
    target = torch.device("cpu" if device is None else device)
    for sites, a, b in predict_factors(checkpoint, weights, asked.text[wanted], binding):
        scales = torch.tensor([checkpoint.scales[site.key] for site in sites], device=a.device)[..., None, None, None]
        a = (a.float() * scales[:, 0]).to(dtype).to(target)
        b = (b.float() * (scales[:, 1] * strength) * shares[:, None, None]).to(dtype).to(target)
        for effect, rows in enumerate(rows_of):
            for i, site in enumerate(sites):
                parts = [(a[i, row], b[i, row]) for row in rows]
                factors[effect][site.key] = (
                    Factors(*parts[0])
                    if len(parts) == 1
                    else Factors(torch.cat([part[0] for part in parts], 0), torch.cat([part[1] for part in parts], 1))
                )
    order = [site.key for site in checkpoint.base.sites if site.key in checkpoint.scales]
    return [
        Lora(
            checkpoint.base.name,
            {key: found[key] for key in order},
            provenance=Provenance(source=checkpoint.folder, metadata=describe(checkpoint, text, strength)),
        )
        for found, text in zip(factors, texts, strict=True)
    ]


def predict_to_file(
    checkpoint: Checkpoint,
    weights: WeightReader,
    prompt: str,
    encoder: TextEncoder,
    path: str | Path,
    *,
    strength: float = 1.0,
    fmt: LoraFormat = "wan",
    dtype: torch.dtype = torch.bfloat16,
    binding: Binding | None = None,
) -> list[Path]:
    """Predicts one LoRA and writes it, by default in original names (`diffusion_model.*.lora_{A,B}.weight`).

    The header holds the prompt, the base, the checkpoint's digest, the strength and the version of p2e.

    Returns:
        The files: one, or one an expert where the base has several.

    Raises:
        InputError: as for `predict_loras`.
        OutputError: `path` cannot be written; nothing is left there.
    """
    lora = predict_loras(
        checkpoint, weights, [prompt], encoder, strength=strength, binding=binding, device=checkpoint.device
    )[0]
    return write_lora(path, lora, checkpoint.base, fmt, dtype, lora.provenance.metadata)


def describe(checkpoint: Checkpoint, prompt: str, strength: float) -> dict[str, str]:
    return {
        "prompt": prompt, "base": checkpoint.base.name, "checkpoint": checkpoint.hash, "strength": f"{strength:g}",
        "p2e_version": __version__,
    }  # fmt: skip


@torch.no_grad()
def predict_factors(
    checkpoint: Checkpoint, weights: WeightReader, states: TextStates, binding: Binding | None = None
) -> Iterator[tuple[list[Site], Tensor, Tensor]]:
    """Predictions by chunks of sites of one shape, in the units of the training targets.

    Yields:
        sites, A^ [S, E, r, d_in], B^ [S, E, d_out, r], for all E effects of `states`.
    """
    if binding is not None:
        yield from binding.predict(states)
        return
    for chunk in site_chunks(checkpoint, min(len(states.mask), EFFECTS_AT_ONCE)):
        groups = [read_sites(checkpoint, weights, sites) for sites in chunk]
        parts = []
        for start in range(0, len(states.mask), EFFECTS_AT_ONCE):
            some = states[start : start + EFFECTS_AT_ONCE]
            parts.append(checkpoint.model.predict_sites(groups, some.states.to(checkpoint.dtype), some.mask))
        for sites, *found in zip(chunk, *parts, strict=True):
            yield sites, torch.cat([a for a, _ in found], dim=1), torch.cat([b for _, b in found], dim=1)


def site_chunks(checkpoint: Checkpoint, effects: int) -> Iterator[list[list[Site]]]:
    """Trained sites in the portions that are predicted together, a list entry a shape."""
    shapes = [[s for s in sites if s.key in checkpoint.scales] for sites in checkpoint.base.shapes.values()]
    shapes = [sites for sites in shapes if sites]
    if checkpoint.config.across_sites:  # the sites attend to each other
        yield shapes
        return
    for sites in shapes:
        tokens = sites[0].d_out + sites[0].d_in
        size = effects * tokens * checkpoint.config.width * checkpoint.dtype.itemsize
        count = max(1, CHUNK_BYTES // size)
        for start in range(0, len(sites), count):
            yield [sites[start : start + count]]

"""From prompts to LoRAs: one pass of a trained hypernetwork over every site of its base."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from p2e import __version__
from p2e.bases import WeightReader
from p2e.bases.base import Site
from p2e.errors import InputError
from p2e.hypernet.binding import Binding
from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.reading import check_base, read_sites
from p2e.lora.formats import LoraFormat
from p2e.lora.lora import Factors, Lora, Provenance
from p2e.lora.write import write_lora_parts
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
    asked = _asked(checkpoint, weights, prompts, encoder, strength)
    factors: list[dict[str, Factors]] = [{} for _ in asked.prompts]
    target = torch.device("cpu" if device is None else device)
    for found in _parts(checkpoint, weights, asked, strength, dtype, target, binding):
        for whole, part in zip(factors, found, strict=True):
            whole.update(part)
    order = [site.key for site in checkpoint.base.sites if site.key in checkpoint.scales]
    return [
        Lora(
            checkpoint.base.name,
            {key: found[key] for key in order},
            provenance=Provenance(source=checkpoint.folder, metadata=describe(checkpoint, text, strength)),
        )
        for found, text in zip(factors, asked.prompts, strict=True)
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

    Some sites are written while the next are computed. The header holds the prompt, the base, the checkpoint's digest,
    the strength and the version of p2e.

    Returns:
        The files: one, or one an expert where the base has several.

    Raises:
        InputError: as for `predict_loras`.
        OutputError: `path` cannot be written; nothing is left there.
    """
    asked = _asked(checkpoint, weights, [prompt], encoder, strength)
    base, rank = checkpoint.base, checkpoint.config.rank * len(asked.rows[0])
    shapes = {
        site.key: Factors(
            torch.empty(rank, site.d_in, device="meta", dtype=dtype),
            torch.empty(site.d_out, rank, device="meta", dtype=dtype),
        )
        for site in base.sites
        if site.key in checkpoint.scales
    }
    found = _parts(checkpoint, weights, asked, strength, dtype, checkpoint.device, binding)
    parts = (Lora(base.name, part) for (part,) in found)
    metadata = describe(checkpoint, asked.prompts[0], strength)
    return write_lora_parts(path, Lora(base.name, shapes), parts, base, fmt, dtype, metadata)


class _Asked(NamedTuple):
    """Prompts as the network is asked them: `text` of E effects, those of prompt i being `rows[i]`, and the share of
    each that is added, `shares` [E]."""

    prompts: list[str]
    text: TextStates
    shares: Tensor
    rows: list[list[int]]


def _asked(
    checkpoint: Checkpoint, weights: WeightReader, prompts: Sequence[str], encoder: TextEncoder, strength: float
) -> _Asked:
    texts = [check_prompt(prompt) for prompt in prompts]
    check_base(checkpoint, weights)
    if not math.isfinite(strength):
        raise InputError(f"strength {strength} is not finite; give a number such as 1.0")
    if not texts:
        return _Asked([], TextStates(torch.empty(0, 1, 1), torch.empty(0, 1).bool()), torch.empty(0), [])
    found = checkpoint.model.text_input.components(encoder.encode(texts).to(checkpoint.device))
    wanted = found.strength.flatten().nonzero()[:, 0]  # what is not asked for is not predicted
    whose, shares = (wanted // found.strength.shape[1]).tolist(), found.strength.flatten()[wanted]
    rows = [[row for row, owner in enumerate(whose) if owner == effect] for effect in range(len(texts))]
    return _Asked(texts, found.text[wanted], shares, rows)


@torch.no_grad()
def _parts(
    checkpoint: Checkpoint,
    weights: WeightReader,
    asked: _Asked,
    strength: float,
    dtype: torch.dtype,
    target: torch.device,
    binding: Binding | None,
) -> Iterator[list[dict[str, Factors]]]:
    """Some sites' factors of every prompt at a time. Nothing here makes the host wait for a GPU, so that whoever takes
    the parts to a file is one part behind it."""
    if not asked.prompts:
        return
    for sites, a, b in predict_factors(checkpoint, weights, asked.text, binding):
        scales = _on(a.device, torch.tensor([checkpoint.scales[site.key] for site in sites]))[..., None, None, None]
        a = (a.float() * scales[:, 0]).to(dtype).to(target)
        b = (b.float() * (scales[:, 1] * strength) * asked.shares[:, None, None]).to(dtype).to(target)
        yield [
            {site.key: _joined([(a[i, row], b[i, row]) for row in rows]) for i, site in enumerate(sites)}
            for rows in asked.rows
        ]


def _on(device: torch.device, x: Tensor) -> Tensor:
    """x on a device; a GPU's queue is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> Factors:
    """The sum of updates as one pair of factors."""
    if len(parts) == 1:
        return Factors(*parts[0])
    return Factors(torch.cat([a for a, _ in parts], 0), torch.cat([b for _, b in parts], 1))


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

"""Measures denoising at full size: seconds a step beside plain diffusers in the same process, one JSON line a case.

    python -m eval.speed.render --out render.jsonl        # Wan2.1-I2V-14B with random weights, 81 frames of 480 x 832
    python -m eval.speed.render --out render.jsonl --backends native --profile
    python -m eval.speed.render --plan tiny --device cpu

Plain diffusers is the transformer as it comes: eager, PyTorch's choice of attention. Float8 comes last, with the first
backend of PyTorch's choice. The floor is the counted products
of a step over the matrix rate of the same run. What a first frame costs, once for all prompts, LoRAs and seeds, is the
encoding of a clip that begins with it.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eval.speed.kernels import kernel_rows, kernel_times
from eval.speed.lines import emit, lines, options, rate_line, timed
from eval.speed.rates import matrix_rate
from eval.speed.transformer import PLANS, Plan, compiled, denoiser, random_transformer
from p2e.errors import InputError
from p2e.render.transformer import use_attention, use_float8_blocks
from p2e.training.setup import pick_device

__all__ = ["BACKENDS", "main", "step_flops", "table"]

BACKENDS = ("native", "_native_cudnn", "_native_flash", "_native_efficient", "_native_math")
FLOAT8 = "native, float8"
VAE_FACTORS = (4, 8, 8)


def step_flops(plan: Plan, config: Mapping[str, Any]) -> int:
    """Of the matrix products and attentions of all blocks of a transformer with this configuration, in one step of one
    clip."""
    patch, (frames, height, width) = config["patch_size"], plan.latent
    n = (frames // patch[0]) * (height // patch[1]) * (width // patch[2])
    d, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
    context = plan.tokens + (257 if config.get("image_dim") else 0)
    block = 2 * n * d * (4 * d + 2 * d + 2 * config["ffn_dim"]) + 4 * n * n * d  # self-attention, queries, feed-forward
    block += 4 * context * d * d + 4 * n * context * d  # keys and values of text and image, attention to them
    return layers * block


def run(plan: Plan, device: torch.device, out: Path, backends: Sequence[str], *, profile: bool = False) -> None:
    rate = matrix_rate(device, plan.square, plan.square, plan.square, plan.dtype)
    emit(out, rate_line(device, matrix=rate))
    model = random_transformer(plan, device)
    floor = step_flops(plan, model.config) / rate
    step = denoiser(model, plan, device)
    plain = measured(step, plan, device, profile=profile)
    known = step(0)
    emit(out, {"kind": "render", "name": "plain diffusers", "floor": floor, "share": 1.0, **plain})
    for name in [*backends, FLOAT8]:
        try:
            if name == FLOAT8:
                use_attention(model, "native")
                use_float8_blocks(model, device)
            else:
                use_attention(model, name)
            compiled(model, plan)
            found = measured(step, plan, device, profile=profile)
            error = float((step(0) - known).float().norm() / known.float().norm())
        except (InputError, RuntimeError) as problem:  # not every GPU has every backend
            emit(out, {"kind": "failure", "name": name, "error": str(problem)[:300]})
            continue
        share = found["seconds"] / plain["seconds"]
        emit(out, {"kind": "render", "name": f"blocks compiled, {name}", "floor": floor, "share": share,
                   "difference": error, **found})  # fmt: skip
    del model, step
    emit(out, {"kind": "render", "name": "encoding a first frame", **first_frame(plan, device)})


def measured(step: Callable[[int], object], plan: Plan, device: torch.device, *, profile: bool) -> dict[str, Any]:
    found = timed(step, device, plan.repeats)
    return found | kernel_times(lambda: step(0), device) if profile else found


def first_frame(plan: Plan, device: torch.device) -> dict[str, Any]:
    """The autoencoder of Wan 2.1 (random weights) on a clip that begins with a picture."""
    from diffusers import AutoencoderKLWan

    with device:
        vae: Any = AutoencoderKLWan() if plan.tokens > 8 else AutoencoderKLWan(base_dim=4, num_res_blocks=1)
    vae = vae.eval().requires_grad_(False)
    frames, height, width = (n * f for n, f in zip(plan.latent, VAE_FACTORS, strict=True))
    clip = torch.zeros(1, 3, frames - VAE_FACTORS[0] + 1, height, width, device=device)
    clip[:, :, 0].uniform_(-1, 1)
    return timed(lambda _: vae.encode(clip), device, plan.repeats)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    rows = ["| case | seconds (least to most) | of plain diffusers | of the floor's rate |", "|---|---|---|---|"]
    for line in found:
        if line["kind"] == "render":
            share = f"{line['share']:.2f}" if "share" in line else ""
            rate = f"{line['floor'] / line['seconds']:.0%}" if "floor" in line else ""
            spread = f"{line['seconds']:.3f} ({line['least']:.3f} to {line['most']:.3f})"
            rows.append(f"| {line['name']} | {spread} | {share} | {rate} |")
        elif line["kind"] == "failure":
            rows.append(f"| {line['name']} | not to be had: {line['error'][:80]} | | |")
    return "\n".join(rows + kernel_rows(found))


def main(given: Sequence[str] | None = None) -> int:
    parser = options("eval.speed.render", __doc__, PLANS)
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS[:-1]), choices=BACKENDS)
    parser.add_argument("--profile", action="store_true", help="of every case, on a GPU: its longest kernels")
    arguments = parser.parse_args(given)
    device = pick_device(arguments.device)
    profile = arguments.profile and device.type == "cuda"
    run(PLANS[arguments.plan], device, arguments.out, arguments.backends, profile=profile)
    print(table(lines(arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

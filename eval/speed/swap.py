"""Measures the LoRA slot on a whole transformer: one JSON line a case, then a table.

    python -m eval.speed.swap --out swap.jsonl            # Wan2.1-I2V-14B with random weights, 81 frames of 480 x 832
    python -m eval.speed.swap --plan tiny --device cpu

A denoising step without a slot and with one of rank 32, both compiled block by block in the same process; swaps of
LoRAs that lie on the same device, single and mixed, and changes of strength, with the graphs counted that they make
torch.compile build; and a checksum of the base's weights before and after. The floor of a swap is what copying the
factors takes at the copy bandwidth.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.speed.lines import emit, lines, options, rate_line, timed
from eval.speed.rates import copy_bandwidth
from eval.speed.transformer import PLANS, Plan, compiled, denoiser, random_transformer
from p2e.bases.base import Base
from p2e.lora.lora import Factors, Lora
from p2e.render.slot import LoraSlot
from p2e.training.setup import pick_device

__all__ = ["checksum", "main", "random_lora", "table"]


def random_lora(base: Base, rank: int, device: torch.device, dtype: torch.dtype, seed: int) -> Lora:
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).mul_(0.01).to(dtype)

    return Lora(base.name, {s.key: Factors(draw(rank, s.d_in), draw(s.d_out, rank)) for s in base.sites})


def checksum(model: nn.Module) -> int:
    """Of all parameters, bit for bit and in order."""
    total = 0
    for value in model.parameters():
        bits = value.detach().contiguous().view(torch.uint8).flatten()
        for part in bits.split(1 << 26):
            places = torch.arange(part.numel(), device=part.device) % 65521 + 1
            total = (total * 31 + int((part.long() * places).sum())) % (1 << 61)
    return total


def built() -> int:
    """Graphs that torch.compile has built so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def run(plan: Plan, device: torch.device, out: Path) -> None:
    model = random_transformer(plan, device)
    step = denoiser(model, plan, device)
    compiled(model, plan)
    without = timed(step, device, plan.repeats)
    emit(out, {"kind": "step", "name": "a step, no slot", **without})
    before = checksum(model)
    slot = LoraSlot(model, plan.base, plan.rank)
    compiled(model, plan)
    empty = step(0)
    loras = [random_lora(plan.base, rank, device, plan.dtype, seed) for seed, rank in enumerate([plan.rank] * 2)]
    halves = [random_lora(plan.base, plan.rank // 2, device, plan.dtype, 9 + seed) for seed in range(2)]
    slot.load(loras[0])
    size = sum(2 * f.numel() * f.itemsize for factors in loras[0].factors.values() for f in factors)
    bandwidth = copy_bandwidth(device, plan.copy_bytes)
    graphs = built()
    found = timed(step, device, plan.repeats)
    cost = found["seconds"] / without["seconds"] - 1
    emit(out, {"kind": "step", "name": f"a step, slot of rank {plan.rank}", "cost": cost, **found})
    swaps: dict[str, Callable[[int], object]] = {
        "swap": lambda i: slot.load(loras[i % 2]),
        "mix of two": lambda i: slot.load_mixed([(halves[i % 2], 0.7), (halves[1 - i % 2], 0.4)]),
        "strength": lambda i: slot.set_strength(0.1 * i),
    }
    outputs = []
    for name, swap in swaps.items():
        floor = 0.0 if name == "strength" else size / bandwidth
        emit(out, {"kind": "swap", "name": name, "floor": floor, **timed(swap, device, 10 * plan.repeats)})
        outputs.append(step(0))
    slot.clear()
    same = torch.equal(step(0), empty)
    emit(out, {
        "kind": "base", "same_weights": checksum(model) == before, "same_output_when_cleared": same,
        "outputs_differ": not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], empty),
        "recompilations": built() - graphs,
    })  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    rows = ["| case | seconds (least to most) | floor | note |", "|---|---|---|---|"]
    for line in found:
        if line["kind"] in ("step", "swap"):
            note = f"{line['cost']:+.1%} of a step without" if "cost" in line else ""
            floor = f"{line['floor']:.4f}" if line.get("floor") else ""
            spread = f"{line['seconds']:.4f} ({line['least']:.4f} to {line['most']:.4f})"
            rows.append(f"| {line['name']} | {spread} | {floor} | {note} |")
        elif line["kind"] == "base":
            rows.append(f"| base bit-identical | {line['same_weights']} | | {line['recompilations']} recompilations |")
    return "\n".join(rows)


def main(given: Sequence[str] | None = None) -> int:
    parser = options("eval.speed.swap", __doc__, PLANS)
    arguments = parser.parse_args(given)
    device = pick_device(arguments.device)
    emit(arguments.out, rate_line(device))
    run(PLANS[arguments.plan], device, arguments.out)
    print(table(lines(arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

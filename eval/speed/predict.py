"""Measures prediction at the paper's size: from a prompt to all LoRA factors, one JSON line a case, then a table.

    python -m eval.speed.predict --out predict.jsonl                      # random weights in Wan2.1-I2V-14B's shapes
    python -m eval.speed.predict --out predict.jsonl --cases one "one fp8" --profile
    python -m eval.speed.predict --out predict.jsonl --cases --try '{"latent_tokens": 20000}'     # one prompt, so bound
    python -m eval.speed.predict --plan tiny --device cpu

Every time stands beside a floor: the products counted from the equations over the matrix rate measured in the same run,
or the bytes that must be copied over the bandwidth measured in the same run, whichever is longer.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.speed.inputs import RandomEncoder, Size, speed_base
from eval.speed.kernels import kernel_rows, kernel_times
from eval.speed.lines import emit, lines, options, peak_gb, rate_line, reset_peak, timed
from eval.speed.rates import copy_bandwidth, float8_rate, host_bandwidth, matrix_rate
from p2e.bases.base import Base, Site
from p2e.bases.wan import WAN_BASES
from p2e.config import BindingConfig, HypernetConfig
from p2e.hypernet.binding import Binding, bind
from p2e.hypernet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from p2e.hypernet.flops import backbone_flops, binding_flops, mixing_flops, prompt_flops
from p2e.hypernet.model import Hypernet
from p2e.hypernet.pieces import piece_sites, query_bytes
from p2e.hypernet.reading import read_sites
from p2e.predict import predict_to_file
from p2e.text import TextStates
from p2e.training.setup import pick_device

__all__ = ["CASES", "PLANS", "HostWeights", "Plan", "main", "table", "trained_errors"]

PROMPT = "prompt number {}"


@dataclass(frozen=True)
class Plan:
    """A measurement.

    Attributes:
        size: of the random text states, and of the base where it is a small one.
        hypernet: settings of the network.
        precision: of the network.
        repeats: timed runs of a case, after one that is not.
        square: side of the matrix product that gives the matrix rate.
        distinct: blocks with weights of their own in host memory; the others share them.
    """

    size: Size
    base: Base
    hypernet: HypernetConfig
    precision: torch.dtype = torch.bfloat16
    repeats: int = 7
    square: int = 8192
    copy_bytes: int = 4 << 30
    distinct: int = 8
    binding: dict[str, Any] = field(default_factory=dict)


SMALL = Size(blocks=2, heads=2, head_dim=16, ffn=48, rank=4, text_width=24, tokens=128, words=(2, 6))
PLANS = {
    "paper": Plan(Size(), WAN_BASES["wan2.1-i2v-14b"], HypernetConfig()),
    "tiny": Plan(
        SMALL, speed_base(SMALL), HypernetConfig(width=32, layers=2, heads=4, latents=4, rank=4, ffn_ratio=2),
        torch.float32, repeats=2, square=256, copy_bytes=1 << 16, distinct=1, binding={"piece_tokens": 200},
    ),
}  # fmt: skip


class HostWeights:
    """Stands in for a `WeightReader` whose base is in host memory, pinned where there is a GPU."""

    hash = "random"

    def __init__(self, base: Base, distinct: int, *, pinned: bool) -> None:
        self.base, self.distinct = base, distinct
        self._held = {
            (site.block, site.module): held(torch.randn(site.d_out, site.d_in).mul_(0.02).bfloat16(), pinned)
            for site in base.sites
            if site.block < distinct
        }

    def read(self, site: Site) -> Tensor:
        return self._held[site.block % self.distinct, site.module]


def held(x: Tensor, pinned: bool) -> Tensor:
    return x.pin_memory() if pinned else x


@dataclass
class Bench:
    """What the cases share: a checkpoint of random weights on the device, a base in host memory, prompts, rates."""

    plan: Plan
    checkpoint: Checkpoint
    weights: Any
    encoder: RandomEncoder
    rates: dict[str, float]
    folder: Path
    profile: bool = False

    @property
    def device(self) -> torch.device:
        return self.checkpoint.device

    def text(self, count: int, first: int = 0) -> TextStates:
        prompts = [PROMPT.format(first + i) for i in range(count)]
        return self.checkpoint.model.text_input(self.encoder.encode(prompts).to(self.device))

    def bound(self, **changes: Any) -> Binding:
        return bind(self.checkpoint, self.weights, BindingConfig.parse(self.plan.binding | changes))

    def shapes(self) -> list[tuple[int, int, int]]:
        return [(len(sites), *shape) for shape, sites in self.plan.base.shapes.items()]

    def mixing(self) -> int:
        """Operations of the first block that a binding holds."""
        return mixing_flops(self.plan.hypernet, len(self.plan.base.sites))

    def flops(self, effects: int) -> tuple[int, int]:
        """Of the backbone behind a binding, of all else that a prompt costs."""
        config, tokens = self.plan.hypernet, self.text(1).without_padding().mask.shape[1]
        whole = prompt_flops(config, self.shapes(), effects, tokens, self.plan.size.text_width)
        backbone = backbone_flops(config, len(self.plan.base.sites), effects, tokens)
        return backbone - effects * self.mixing(), whole - backbone

    def timed(self, function: Callable[[int], object]) -> dict[str, Any]:
        """Runs with the prompt of another number each; once more under the profiler where it is asked for."""
        found = timed(function, self.device, self.plan.repeats)
        return found | kernel_times(lambda: function(0), self.device) if self.profile else found


def plain(bench: Bench) -> dict[str, Any]:
    """The network as the paper writes it, everything anew, with the base's weights on the device."""
    checkpoint, model = bench.checkpoint, bench.checkpoint.model
    assert isinstance(model, Hypernet)
    plan = list(piece_sites(checkpoint, BindingConfig.parse(bench.plan.binding).piece_tokens))
    groups = [read_sites(checkpoint, bench.weights, sites) for sites in plan]

    @torch.no_grad()
    def run(index: int) -> object:
        text = bench.text(1, index).without_padding()
        states = text.states.to(checkpoint.dtype)
        return [model.predict_sites([group], states, text.mask) for group in groups]

    floor = sum(bench.flops(1)) + bench.mixing() + binding_flops(bench.plan.hypernet, bench.shapes())
    return bench.timed(run) | {"floor": floor / bench.rates["matrix"], "effects": 1}


def binding(bench: Bench) -> dict[str, Any]:
    """Binding a base that is in host memory, the queries kept on the device."""
    size = sum(2 * site.d_out * site.d_in for site in bench.plan.base.sites)
    compute = (binding_flops(bench.plan.hypernet, bench.shapes()) + bench.mixing()) / bench.rates["matrix"]
    return bench.timed(lambda _: bench.bound()) | {"floor": max(compute, size / bench.rates["host"]), "effects": 0}


def bound_case(effects: int, *, compiled: bool = True, **changes: Any) -> Callable[[Bench], dict[str, Any]]:
    """Prompts to all factors on the device, with a binding; compiled on a GPU alone."""

    def case(bench: Bench) -> dict[str, Any]:
        reset_peak(bench.device)
        found = bench.bound(effects_at_once=effects, compile=compiled and bench.device.type == "cuda", **changes)
        bind_gb = peak_gb(bench.device)
        backbone, rest = bench.flops(effects)
        fast = bench.rates.get("float8", bench.rates["matrix"]) if changes.get("fp8") else bench.rates["matrix"]
        floor = backbone / fast + rest / bench.rates["matrix"]
        if changes.get("device_gb") == 0:
            queries = sum(query_bytes(bench.checkpoint, piece.sites) for piece in found.pieces)
            floor = max(floor, queries / bench.rates["host"])
        run = bench.timed(lambda index: list(found.predict(bench.text(effects, index))))
        return run | {"floor": floor, "effects": effects, "bind_gb": bind_gb}

    return case


def to_file(bench: Bench) -> dict[str, Any]:
    """A prompt to a LoRA file on the local disk; the file is compared with the prediction."""
    found = bench.bound(compile=bench.device.type == "cuda")
    path = bench.folder / "effect.safetensors"

    def run(index: int) -> object:
        return predict_to_file(
            bench.checkpoint, bench.weights, PROMPT.format(index), bench.encoder, path, binding=found
        )

    size = sum(2 * bench.plan.hypernet.rank * (site.d_out + site.d_in) for site in bench.plan.base.sites)
    floor = sum(bench.flops(1)) / bench.rates["matrix"] + size / bench.rates["host"]
    return bench.timed(run) | {"floor": floor, "effects": 1, "file_bytes": path.stat().st_size}


def trained_errors(device: torch.device, effects: int = 12, every: int = 1) -> dict[str, Any]:
    """Relative errors of the updates that the world's trained network predicts for some of the effects it knows,
    against its plain float32 self on the CPU: the mean over effects, and the worst effect.

    Args:
        every: of how many sites one is predicted.
    """
    from p2e.bases import WeightReader, get_base, world_base_folder

    folder, base = world_base_folder(), get_base("world")
    weights = WeightReader(base, folder)

    def updates(found: Binding) -> dict[str, Tensor]:
        centres = found.checkpoint.model.text_input.centres[:effects].float()
        text = TextStates(F.rms_norm(centres, centres.shape[-1:])[:, None], centres.new_ones(effects, 1).bool())
        return {
            site.key: (b[i].double() @ a[i].double()).cpu()
            for sites, a, b in found.predict(text)
            for i, site in enumerate(sites)
        }

    def network(place: torch.device, dtype: torch.dtype) -> Checkpoint:
        found = load_checkpoint(folder.parent / "checkpoint", place, dtype=dtype)
        return dataclasses.replace(found, scales=dict(list(found.scales.items())[::every]))

    low = bind(network(device, torch.bfloat16), weights)
    float8 = Binding(low.checkpoint, weights, low.pieces, BindingConfig(fp8=True))
    true = updates(bind(network(torch.device("cpu"), torch.float32), weights))
    errors = {}
    for name, binding in {"bfloat16": low, "float8": float8}.items():
        found = updates(binding)
        squares = [((found[k] - true[k]).square().sum((1, 2)), true[k].square().sum((1, 2))) for k in true]
        error, size = (torch.stack(part).sum(0) for part in zip(*squares, strict=True))
        whole = (error / size).sqrt()
        errors[name] = {"mean": float(whole.mean()), "worst": float(whole.max())}
    return {"kind": "errors", "effects": effects, **errors}


CASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "plain": plain,
    "binding": binding,
    "one eager": bound_case(1, compiled=False),
    "one": bound_case(1),
    "one fp8": bound_case(1, fp8=True),
    "eight": bound_case(8),
    "eight fp8": bound_case(8, fp8=True),
    "one, queries in host memory": bound_case(1, device_gb=0),
    "file": to_file,
}


def opened(plan: Plan, device: torch.device, folder: Path, *, profile: bool = False) -> Bench:
    """Rates, random weights, and a checkpoint that was written and read."""
    rates = {
        "matrix": matrix_rate(device, plan.square, plan.square, plan.square, plan.precision),
        "copy": copy_bandwidth(device, plan.copy_bytes),
        "host": host_bandwidth(device, plan.copy_bytes // 4),
    }
    if device.type == "cuda":
        rates["float8"] = float8_rate(device, plan.square)
    torch.manual_seed(0)
    with device:
        model = Hypernet(plan.hypernet, plan.base)
    scales = {site.key: (1e-3, 1e-3) for site in plan.base.sites}
    save_checkpoint(
        folder / "checkpoint", model, base=plan.base, config=plan.hypernet, scales=scales, base_hash="random",
        library_hash="random", dtype=plan.precision,
    )  # fmt: skip
    del model
    checkpoint = load_checkpoint(folder / "checkpoint", device, base=plan.base, dtype=plan.precision)
    weights = HostWeights(plan.base, plan.distinct, pinned=device.type == "cuda")
    return Bench(plan, checkpoint, weights, RandomEncoder(plan.size), rates, folder, profile)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    rows = ["| case | seconds (least to most) | floor | of the floor's rate | effects/s | peak memory, GB "
            "| in binding |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for line in found:
        if line["kind"] == "predict":
            effects = f"{line['effects'] / line['seconds']:.2f}" if line["effects"] else ""
            memory, bind = ("" if line.get(name) is None else f"{line[name]:.1f}" for name in ("memory_gb", "bind_gb"))
            rows.append(
                f"| {line['name']} | {line['seconds']:.3f} ({line['least']:.3f} to {line['most']:.3f}) | "
                f"{line['floor']:.3f} | {line['floor'] / line['seconds']:.0%} | {effects} | {memory} | {bind} |"
            )
        elif line["kind"] == "failure":
            rows.append(f"| {line['name']} | failed: {line['error'][:200]} | | | | | |")
    rows += [
        f"\nerror on trained weights, {name}: {line[name]['mean']:.2%}, at worst {line[name]['worst']:.2%}"
        for line in found
        if line["kind"] == "errors"
        for name in ("bfloat16", "float8")
    ]
    return "\n".join(rows + kernel_rows(found))


def main(given: Sequence[str] | None = None) -> int:
    parser = options("eval.speed.predict", __doc__, PLANS)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), help="all where none is given")
    parser.add_argument(
        "--errors", action="store_true", help="of the world's trained network in bfloat16 and float8, too"
    )
    parser.add_argument("--try", nargs="*", default=[], dest="tried", metavar="JSON",
                        help="settings of a binding: one prompt with each")  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="of every case, on a GPU: its longest kernels")
    arguments = parser.parse_args(given)
    device = pick_device(arguments.device)
    cases = {name: CASES[name] for name in arguments.cases}
    cases |= {f"one {text}": bound_case(1, **json.loads(text)) for text in arguments.tried}
    with tempfile.TemporaryDirectory() as folder:
        profile = arguments.profile and device.type == "cuda"
        bench = opened(PLANS[arguments.plan], device, Path(folder), profile=profile)
        emit(arguments.out, rate_line(device, **bench.rates))
        for name, case in cases.items():
            try:
                emit(arguments.out, {"kind": "predict", "name": name, **case(bench)})
            except RuntimeError as error:  # out of memory, or a compiler's: the others still count
                emit(arguments.out, {"kind": "failure", "name": name, "error": str(error)[:300]})
                if device.type != "cuda":
                    raise
            torch._dynamo.reset()
    if arguments.errors:
        emit(arguments.out, trained_errors(device))
    print(table(lines(arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

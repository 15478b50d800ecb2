"""Makes the world from nothing, stage by stage: `torchrun --nproc-per-node N -m p2e.world.rebuild STAGE ... --out DIR`.

Stages, in order: text (token states of all prompts; needs no GPU), vae, base, library, measure. Each writes into DIR and
reads what the stages before it wrote there, so they can run in one call or in several.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from p2e.bases.wan import WAN_BASES
from p2e.text import TextStates
from p2e.world.config import WorldBaseConfig, WorldLibraryConfig, WorldVaeConfig
from p2e.world.effects import EFFECTS
from p2e.world.motion import CAPTIONS
from p2e.world.parallel import Worker, join
from p2e.world.states import kept_states

__all__ = ["STAGES", "main", "run"]

WORLD = WAN_BASES["world"]
SHARD = "14MB"
SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}


def _overrides(pairs: Sequence[str], stage: str) -> dict[str, Any]:
    """{"max_seconds": 60} of ["vae.max_seconds=60"] for the stage "vae"; nested keys by further dots."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        name, *path = key.split(".")
        if name == stage:
            target = values
            for step in path[:-1]:
                target = target.setdefault(step, {})
            target[path[-1]] = json.loads(value)
    return values


def open_vae(out: Path, device: torch.device) -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(out / "base" / "vae").to(device, torch.float32).requires_grad_(False)


def open_transformer(out: Path, device: torch.device) -> Any:
    from diffusers import WanTransformer3DModel

    model: Any = WanTransformer3DModel.from_pretrained(out / "base" / "transformer")
    return model.to(device, torch.float32).requires_grad_(False).eval()


def effect_states(out: Path) -> dict[str, TextStates]:
    """Token states of every effect's prompts, in the order of its table: training paraphrases, then unseen ones."""
    prompts = [prompt for spec in EFFECTS for prompt in spec.prompts]
    states, table, start = kept_states(prompts, out / "text"), {}, 0
    for spec in EFFECTS:
        table[spec.name] = states[start : start + len(spec.prompts)]
        start += len(spec.prompts)
    return table


def stage_text(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    if worker.is_first:
        effect_states(out), kept_states(CAPTIONS, out / "text")


def stage_vae(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    from p2e.world.train_vae import train_vae

    train_vae(WorldVaeConfig.parse(_overrides(pairs, "vae")), out / "base" / "vae", worker)


def stage_base(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    from diffusers import UniPCMultistepScheduler

    from p2e.world.train_base import train_base

    config = WorldBaseConfig.parse(_overrides(pairs, "base"))
    vae = open_vae(out, worker.device)
    train_base(config, vae, kept_states(CAPTIONS, out / "text"), out / "base" / "transformer", worker)
    if worker.is_first:
        UniPCMultistepScheduler(**SCHEDULER).save_pretrained(out / "base" / "scheduler")


def stage_library(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    from p2e.world.library import train_effects, write_library

    config = WorldLibraryConfig.parse(_overrides(pairs, "library"))
    text = {name: states[: len(states.mask) - 2] for name, states in effect_states(out).items()}
    transformer, vae = open_transformer(out, worker.device), open_vae(out, worker.device)
    specs = EFFECTS[: config.effects]
    started = time.perf_counter()
    loras, losses = train_effects(range(len(specs)), WORLD, transformer, vae, text, worker, config)
    if worker.is_first:
        seconds = time.perf_counter() - started
        metadata = {
            "trained_by": "p2e.world.rebuild library", "steps": str(config.adapt.steps), "seconds": f"{seconds:.0f}",
            "workers": str(worker.size), "loss": f"{losses.mean():.4f}",
        }  # fmt: skip
        write_library(specs, loras, WORLD, out / "library", metadata)
        print("library", metadata, flush=True)


def stage_measure(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    """Fidelity of the base, of the library's LoRAs, and the decoder's cap, an effect a row: out/measure.json."""
    from diffusers import UniPCMultistepScheduler

    from p2e.lora.formats import read_lora
    from p2e.world.evaluate import decoder_cap, draw_evaluation, measure

    settings = _overrides(pairs, "measure")
    scenes, specs = settings.get("scenes", 8), EFFECTS[: settings.get("effects")]
    transformer, vae = open_transformer(out, worker.device), open_vae(out, worker.device)
    scheduler = UniPCMultistepScheduler.from_pretrained(out / "base" / "scheduler")
    mine = list(range(worker.rank, len(specs), worker.size))
    data = draw_evaluation(mine, scenes, vae, worker.device)
    states = effect_states(out)
    text = torch.stack([states[EFFECTS[i].name].states[-1] for i in mine])  # a paraphrase that training never saw
    loras = [read_lora(out / "library" / "loras" / f"{EFFECTS[i].name}.safetensors", WORLD) for i in mine]
    rows = {}
    base, _ = measure(data, text, None, WORLD, transformer, vae, scheduler)
    lora, _ = measure(data, text, loras, WORLD, transformer, vae, scheduler)
    cap = decoder_cap(data, vae)
    for i, index in enumerate(mine):
        rows[EFFECTS[index].name] = {"base": base[i].mean().item(), "lora": lora[i].mean().item(),
                                     "cap": cap[i].mean().item()}  # fmt: skip
    (out / f"measure-{worker.rank}.json").write_text(json.dumps(rows))
    worker.mean(torch.zeros(1, device=worker.device))  # wait for the others
    if worker.is_first:
        everything = {}
        for rank in range(worker.size):
            part = out / f"measure-{rank}.json"
            everything |= json.loads(part.read_text())
            part.unlink()
        ordered = {spec.name: everything[spec.name] | {"split": spec.split, "category": spec.category}
                   for spec in specs}  # fmt: skip
        (out / "measure.json").write_text(json.dumps(ordered, indent=1))
        for split in ("train", "heldout", "ood"):
            chosen = [row for row in ordered.values() if row["split"] == split]
            if not chosen:
                continue
            means = {k: round(sum(row[k] for row in chosen) / len(chosen), 3) for k in ("base", "lora", "cap")}
            print("measure", split, len(chosen), means, flush=True)


STAGES = {
    "text": stage_text, "vae": stage_vae, "base": stage_base, "library": stage_library, "measure": stage_measure,
}  # fmt: skip


def run(stages: Sequence[str], out: Path, pairs: Sequence[str] = ()) -> None:
    """Runs stages in the order given. `pairs` are overrides of their settings: "vae.max_seconds=60"."""
    worker = join()
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        started = time.perf_counter()
        STAGES[stage](out, worker, pairs)
        if worker.size > 1:
            torch.distributed.barrier()
        if worker.is_first:
            print(f"stage {stage}: {time.perf_counter() - started:.1f} s on {worker.size} workers", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="pairs", metavar="STAGE.KEY=JSON")
    arguments = parser.parse_args()
    run(arguments.stages, arguments.out, arguments.pairs)


if __name__ == "__main__":
    main()

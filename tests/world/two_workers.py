"""Measures a tiny world as one of several workers: `python two_workers.py FOLDER`, rank and size in the environment."""

import sys
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler
from tiny import tiny_base, tiny_lora, tiny_states, tiny_transformer, tiny_vae

from p2e.lora.formats import write_lora
from p2e.world.columns import World
from p2e.world.config import WorldLibraryConfig, WorldMeasureConfig
from p2e.world.effects import EFFECTS
from p2e.world.fidelity import measure_columns
from p2e.world.measurement import Measurement
from p2e.world.parallel import Worker, join

COUNT = 3


def write_library(out: Path) -> None:
    base = tiny_base()
    for i, spec in enumerate(EFFECTS[:COUNT]):
        write_lora(out / "library" / "loras" / f"{spec.name}.safetensors", tiny_lora(base, seed=i), base)


def measured(out: Path, path: Path, worker: Worker) -> Measurement:
    """Untrained models of the world's form: what is measured means nothing, but must be the same however it is shared.

    Args:
        out: a folder with the library.
        path: the measure file.
    """
    base = tiny_base()
    states = {spec.name: tiny_states(len(spec.prompts), seed=i) for i, spec in enumerate(EFFECTS[:COUNT])}
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)
    world = World(out, base, tiny_transformer(base), tiny_vae(), scheduler, states, worker)
    recipe = WorldLibraryConfig().adapt.model_copy(update={"batch": 1, "precision": "float32"})
    config = WorldMeasureConfig(
        columns=("still", "cap", "lora", "lora:1"), effects=COUNT, scenes=1, steps=1, seeds=(0, 1),
        prompts="unseen", library=WorldLibraryConfig(clips=1, adapt=recipe),
    )  # fmt: skip
    return measure_columns(config, world, path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    measured(folder, folder / "shared.json", join())

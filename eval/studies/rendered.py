"""What studies that render have in common: their options, a world with a checkpoint, the fidelity of some LoRAs."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from eval.world.run import open_world
from p2e.hypernet.checkpoint import Checkpoint, load_checkpoint
from p2e.lora.lora import Lora
from p2e.text import TextStates
from p2e.world.columns import World
from p2e.world.effects import EFFECTS, EffectSpec, effect_index
from p2e.world.evaluate import draw_evaluation, measure

__all__ = ["Renders", "joined", "open_study", "study_parser"]


def study_parser(description: str | None, scenes: int = 2) -> argparse.ArgumentParser:
    """--world, --checkpoint, --scenes and --out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="WORLD/checkpoint")
    parser.add_argument("--scenes", type=int, default=scenes)
    parser.add_argument("--out", type=Path)
    return parser


def open_study(given: argparse.Namespace) -> tuple[World, Checkpoint]:
    """The world with the token states of all effects, and the checkpoint, on the CPU."""
    world = open_world(given.world, [spec.name for spec in EFFECTS], given.world / "text")
    return world, load_checkpoint(given.checkpoint or given.world / "checkpoint")


def joined(states: Mapping[str, TextStates], rows: Sequence[tuple[str, int]]) -> TextStates:
    """The prompts (effect, number of the wording) as one batch."""
    return TextStates(
        torch.stack([states[n].states[i] for n, i in rows]), torch.stack([states[n].mask[i] for n, i in rows])
    )


class Renders:
    """Fidelity of LoRAs on the first scenes of a world."""

    def __init__(self, world: World, scenes: int) -> None:
        self.world, self.scenes = world, scenes

    def __call__(self, specs: Sequence[EffectSpec], loras: Sequence[Lora], wording: int = -1) -> list[float]:
        """One mean over the scenes for each effect, asked for by its prompt number `wording`."""
        world = self.world
        data = draw_evaluation([effect_index(s.name) for s in specs], self.scenes, world.vae, world.worker.device)
        text = joined(world.states, [(spec.name, wording) for spec in specs]).states
        scores, _ = measure(data, text, loras, world.base, world.transformer, world.vae, world.scheduler)
        return scores.mean(1).tolist()

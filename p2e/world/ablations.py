"""Arms of the hypernetwork on the world's library, each a change of its settings: the paper's ablations and baseline,
and a study of what makes it learn.

`full` is the network itself, for as many steps as the others have, so that they compare.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from p2e.bases.base import Base
from p2e.config import Settings
from p2e.errors import InputError
from p2e.lora.library import Manifest, prepare_library
from p2e.text import TextStates
from p2e.training.loop import STATE
from p2e.world.hypernet import train_hypernet, world_hypernet
from p2e.world.parallel import Worker
from p2e.world.pause import Pause

__all__ = ["ABLATIONS", "ARMS", "RAW", "STUDY", "AblationsConfig", "train_ablations"]

RAW_RANK = 8  # raw factors cannot be cut to a lower rank, and some LoRAs of the library have this one

# name -> changes; the twins of table 3 (ensemble, noise), of table 8 (no weights, truncated SVD), of table 4 (raw
# factors), of the number of latents n, and the baseline of tables 1 and 2
ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    # Which members a step needs is settled on the host: no graph holds it, and each new split would be compiled anew.
    "ensemble": {"hypernet": {"ensemble": True}, "cuda_graph": False, "compile": False},
    "noise": {"hypernet": {"weights": "noise"}},
    "no_weights": {"hypernet": {"weights": "none"}},
    "truncated_svd": {"hypernet": {"weights": "truncated_svd"}},
    "raw": {"hypernet": {"rank": RAW_RANK}},
    "latents_half": {"hypernet": {"latents": 16}},
    "latents_double": {"hypernet": {"latents": 64}},
    "hyperdreambooth": {"hypernet": {"architecture": "hyperdreambooth", "rank": RAW_RANK}, "metric": None},
}
RAW = ("raw", "hyperdreambooth")

# What makes the network learn: each changes one setting of the full network.
STUDY: dict[str, dict[str, Any]] = {
    "loss_factors": {"loss": {"update": 0.0}},
    "loss_update": {"loss": {"update": 1.0}},
    "tokens": {"hypernet": {"text": {"form": "tokens"}}},
    "no_anchors": {"hypernet": {"text": {"form": "sentence", "whiten": "centre"}}},
    "frobenius": {"metric": None},
    "curvature": {"metric": {"power": 1.0}},
    "no_noise": {"augment": {"noise": 0.0}},
    "blend_mean": {"augment": {"noise": 0.5, "blend": 0.3}},
    "blend_sum": {"augment": {"noise": 0.5, "blend": 0.3}, "loss": {"update": 0.5, "blend": "sum"}},
    "no_residual": {"hypernet": {"residual": False}},
    "no_ema": {"ema": None},
    "rate_half": {"learning_rate": 5e-4},
    "rate_double": {"learning_rate": 2e-3},
    "fewer_sites": {"sites_per_step": 10},
    "wordings_4": {},
    "wordings_12": {},
    "seed": {"seed": 1},  # by how much two runs differ that differ in nothing
}
WORDINGS = {"wordings_4": 4, "wordings_12": 12}  # arms that are shown the first so many paraphrases of an effect
ARMS = ABLATIONS | STUDY


class AblationsConfig(Settings):
    """Which arms, for how long."""

    arms: tuple[str, ...] = Field(default=tuple(ABLATIONS), description="of ARMS; the default is the paper's tables")
    steps: int = Field(default=5000, ge=1)
    changes: dict[str, Any] = Field(default={}, description="of the hypernetwork's settings, for all arms")


def reworded(manifest: Manifest, count: int | None) -> Manifest:
    """The manifest with the first `count` prompts of every effect; None is all."""
    entries = tuple(entry.model_copy(update={"prompts": entry.prompts[:count]}) for entry in manifest.entries)
    return manifest.model_copy(update={"entries": entries})


def train_ablations(
    config: AblationsConfig, out: Path, base: Base, text: Mapping[str, TextStates], worker: Worker, state: Path,
    made: Path,
) -> None:  # fmt: skip
    """Trains every arm into made/ablations/NAME, worker w the arms number w, w + size, ...

    Raises:
        InputError: an arm has no such name.
    """
    for name in config.arms:
        if name not in ARMS:
            raise InputError(f"no ablation is named {name!r}; they are {', '.join(ARMS)}")
    for name in config.arms[worker.rank :: worker.size]:
        targets = "raw" if name in RAW else "canonical"
        settings = {"steps": config.steps, **config.changes, **ARMS[name]}
        shared, own = config.changes.get("hypernet", {}), ARMS[name].get("hypernet", {})
        resolved = world_hypernet(settings | {"hypernet": {**shared, **own}})
        prepared = state / f"prepared-{name}"
        if not prepared.exists():
            manifest = reworded(Manifest.load(out / "library" / "manifest.yaml"), WORDINGS.get(name))
            prepare_library(
                manifest, prepared, base=base, rank=resolved.hypernet.rank, targets=targets, device=str(worker.device)
            )
        run = state / name
        train_hypernet(out, base, text, resolved, run, Pause(worker), library=prepared)
        shutil.copytree(run, made / "ablations" / name, ignore=shutil.ignore_patterns(STATE))
        if worker.is_first:
            print(f"ablation {name}: done", flush=True)

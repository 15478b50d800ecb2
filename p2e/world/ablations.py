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
from p2e.config import Settings, TrainConfig
from p2e.errors import InputError
from p2e.lora.library import Manifest, prepare_library
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextStates
from p2e.training.loop import STATE
from p2e.world.ensemble import join_members, member_config, member_library
from p2e.world.hypernet import train_hypernet, world_hypernet
from p2e.world.parallel import Worker
from p2e.world.pause import Pause

__all__ = ["ABLATIONS", "ARMS", "RAW", "STUDY", "AblationsConfig", "train_ablations"]

RAW_RANK = 8  # raw factors cannot be cut to a lower rank, and some LoRAs of the library have this one

# name -> changes; the twins of table 3 (ensemble, noise), of table 8 (no weights, truncated SVD), of table 4 (raw
# factors), of the number of latents n, and the baseline of tables 1 and 2
ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "ensemble": {"compile": False},  # its members' runs are short; see `MEMBERS`
    "noise": {"hypernet": {"weights": "noise"}},
    "no_weights": {"hypernet": {"weights": "none"}},
    "truncated_svd": {"hypernet": {"weights": "truncated_svd"}},
    "raw": {"hypernet": {"rank": RAW_RANK}},
    "latents_half": {"hypernet": {"latents": 16}},
    "latents_double": {"hypernet": {"latents": 64}},
    "hyperdreambooth": {"hypernet": {"architecture": "hyperdreambooth", "rank": RAW_RANK}, "metric": None},
}
RAW = ("raw", "hyperdreambooth")
MEMBERS = ("ensemble",)  # arms of one network a block of the base, each trained as a run of its own

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
    """Trains every arm into made/ablations/NAME, worker w the runs number w, w + size, ...; an ensemble is as many runs
    as it has members.

    Raises:
        InputError: an arm has no such name.
    """
    for name in config.arms:
        if name not in ARMS:
            raise InputError(f"no ablation is named {name!r}; they are {', '.join(ARMS)}")
    blocks = range(base.num_blocks)
    runs = [(name, block) for name in config.arms for block in (blocks if name in MEMBERS else [None])]
    for name, block in runs[worker.rank :: worker.size]:
        run = state / (name if block is None else f"{name}-{block}")
        settings, library = arm_settings(config, name), arm_library(config, name, out, base, state, worker)
        if block is not None:
            settings = member_config(settings, base, library, block)
            library = member_library(library, base, block)
        train_hypernet(out, base, text, settings, run, Pause(worker), library=library)
        if block is None:
            shutil.copytree(run, made / "ablations" / name, ignore=shutil.ignore_patterns(STATE))
        print(f"ablation {run.name}: done", flush=True)
    worker.same_on_all(0.0)  # all members are there
    for name in config.arms if worker.is_first else ():
        if name in MEMBERS:
            library = arm_library(config, name, out, base, state, worker)
            join_members([state / f"{name}-{block}" for block in blocks], base, library, made / "ablations" / name)


def arm_settings(config: AblationsConfig, name: str) -> TrainConfig:
    """The resolved settings of an arm; of an ensemble, those that its members have in common."""
    settings = {"steps": config.steps, **config.changes, **ARMS[name]}
    shared, own = config.changes.get("hypernet", {}), ARMS[name].get("hypernet", {})
    return world_hypernet(settings | {"hypernet": {**shared, **own}})


def arm_library(
    config: AblationsConfig, name: str, out: Path, base: Base, state: Path, worker: Worker
) -> PreparedLibrary:
    """The targets of an arm, prepared once a worker."""
    prepared = state / f"prepared-{name}-{worker.rank}"
    if not prepared.exists():
        manifest = reworded(Manifest.load(out / "library" / "manifest.yaml"), WORDINGS.get(name))
        prepare_library(
            manifest, prepared, base=base, rank=arm_settings(config, name).hypernet.rank,
            targets="raw" if name in RAW else "canonical", device=str(worker.device),
        )  # fmt: skip
    return PreparedLibrary.open(prepared)

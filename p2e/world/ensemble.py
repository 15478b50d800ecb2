"""An ensemble trained member by member.

Members share nothing, so training them together, each step on whatever sites it draws, is training each by itself on
the sites of its block. Apart, every member's step has fixed shapes, which a CUDA graph holds; together it has none.
"""

import json
from pathlib import Path

from p2e.bases.base import Base
from p2e.config import TrainConfig
from p2e.files import write_text
from p2e.hypernet.checkpoint import load_checkpoint, save_checkpoint
from p2e.hypernet.variants import Ensemble
from p2e.lora.prepared import PreparedLibrary

__all__ = ["join_members", "member_config", "member_library"]


def member_config(config: TrainConfig, base: Base, library: PreparedLibrary, block: int) -> TrainConfig:
    """The run of one member: all sites of its block a step, with as many effects as leave it its share of the samples
    that a step of `config` has."""
    own, whole = len(member_library(library, base, block).keys), len(library.keys)
    pairs = config.sites_per_step * config.effects_per_step * own / whole
    return config.model_copy(
        update={
            "hypernet": config.hypernet.model_copy(update={"ensemble": False}),
            "sites_per_step": own,
            "effects_per_step": max(1, round(pairs / own)),
            "seed": config.seed + block,
        }
    )


def member_library(library: PreparedLibrary, base: Base, block: int) -> PreparedLibrary:
    """The library with the sites of one block."""
    sites = tuple(site for site in library.index.sites if base.by_key[site.key].block == block)
    return PreparedLibrary(library.path, library.index.model_copy(update={"sites": sites}))


def join_members(members: list[Path], base: Base, library: PreparedLibrary, into: Path) -> Path:
    """One checkpoint of an ensemble from those of its members, in the order of their blocks.

    The text's map is fitted to the prompts alone, so it is the same for all. The history is the mean of theirs.
    """
    loaded = [load_checkpoint(folder, base=base) for folder in members]
    first = loaded[0]
    config = first.config.model_copy(update={"ensemble": True})
    model = Ensemble(config, base)
    model.text_input.load_state_dict(first.model.text_input.state_dict())
    for member, checkpoint in zip(model.members, loaded, strict=True):
        kept = checkpoint.model.state_dict().items()
        member.load_state_dict({name: value for name, value in kept if not name.startswith("text_input.")})
    save_checkpoint(
        into, model, base=base, config=config,
        scales={key: scale for checkpoint in loaded for key, scale in checkpoint.scales.items()},
        base_hash=first.base_hash, library_hash=library.hash, targets=first.targets,
        training=first.settings["training"],
    )  # fmt: skip
    histories = [json.loads((folder / "history.json").read_text())["history"] for folder in members]
    mean = [
        {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} for rows in zip(*histories, strict=True)
    ]
    write_text(into / "history.json", json.dumps({"history": mean}))
    return into

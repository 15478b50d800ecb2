"""The stages of the world: what each reads, makes and can be set to. `p2e.world.makers` does the work."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from p2e.config import Settings
from p2e.files import sha256
from p2e.world import makers
from p2e.world.ablations import ABLATIONS, AblationsConfig
from p2e.world.config import (
    WorldBaseConfig,
    WorldLibraryConfig,
    WorldMeasureConfig,
    WorldMomentsConfig,
    WorldPrepareConfig,
    WorldTextConfig,
    WorldVaeConfig,
)
from p2e.world.effects import EFFECTS
from p2e.world.motion import CAPTIONS
from p2e.world.sprites import ATLAS_PATH
from p2e.world.stages import Stage

__all__ = ["STAGES"]

Changes = Mapping[str, Any]


def hypernet_settings(changes: Changes) -> Settings:
    from p2e.world.hypernet import world_hypernet

    return world_hypernet(changes)


def finetune_settings(changes: Changes) -> Settings:
    from p2e.world.finetune import FinetuneConfig

    return FinetuneConfig.parse(changes, "finetune")


def ablations_settings(changes: Changes) -> Settings:
    return AblationsConfig.parse(changes, "ablations")


def parsed(model: type[Settings], source: str, **own: Any) -> Callable[[Changes], Settings]:
    """Resolves changes of a stage's settings, whose defaults are the model's but for `own`."""
    return lambda changes: model.parse(own | dict(changes), source)


def effects_data() -> Any:
    return [asdict(spec) | {"parameters": dict(spec.parameters)} for spec in EFFECTS] + [sha256(ATLAS_PATH)]


def prompts_data() -> Any:
    return [[spec.name, spec.prompts] for spec in EFFECTS]


def captions_data() -> Any:
    return CAPTIONS


def motion_data() -> Any:
    return [CAPTIONS, sha256(ATLAS_PATH)]


def fidelity(name: str, columns: tuple[str, ...], *inputs: str) -> Stage:
    """A stage that measures columns into NAME/fidelity.json."""
    return Stage(
        name, parsed(WorldMeasureConfig, name, columns=columns), partial(makers.make_fidelity, folder=name),
        (name,), ("text", "vae", "base", "library", *inputs), data=effects_data,
    )  # fmt: skip


LIBRARY_COLUMNS = ("still", "cap", "base", "lora")
MAIN_COLUMNS = (
    *LIBRARY_COLUMNS, "hdb", "mean", "nearest", "softmax", "random", "zero", "zero:second_stage", "init:50",
    "init:100", "lora:100",
)  # fmt: skip
ABLATION_COLUMNS = ("base", "lora", *(f"zero:ablations/{name}" for name in ABLATIONS))

TABLE = (
    Stage("text", parsed(WorldTextConfig, "text"), makers.make_text, ("text",), data=prompts_data),
    Stage("captions", parsed(WorldTextConfig, "captions"), makers.make_captions, ("captions",), data=captions_data),
    Stage("vae", parsed(WorldVaeConfig, "vae"), makers.make_vae, ("base/vae",), data=motion_data, saves=True),
    Stage(
        "base", parsed(WorldBaseConfig, "base"), makers.make_base,
        ("base/transformer", "base/scheduler", "base/model_index.json"), ("captions", "vae"),
        data=motion_data, saves=True,
    ),
    Stage(
        "library", parsed(WorldLibraryConfig, "library"), makers.make_library, ("library",),
        ("text", "vae", "base"), data=effects_data, saves=True,
    ),
    fidelity("measure", LIBRARY_COLUMNS),
    Stage("prepare", parsed(WorldPrepareConfig, "prepare"), makers.make_prepared, ("prepared",), ("library",)),
    Stage(
        "moments", parsed(WorldMomentsConfig, "moments"), makers.make_moments, ("moments",),
        ("text", "vae", "base", "library"), data=effects_data,
    ),
    Stage(
        "hypernet", hypernet_settings, makers.make_hypernet, ("checkpoint",),
        ("text", "base", "prepare", "moments"), saves=True,
    ),
    Stage(
        "finetune", finetune_settings, makers.make_finetuned, ("second_stage",),
        ("text", "vae", "base", "prepare", "hypernet"), data=effects_data, saves=True,
    ),
    Stage("ablations", ablations_settings, makers.make_ablations, ("ablations",),
          ("text", "base", "library", "moments")),
    fidelity("main_table", MAIN_COLUMNS, "hypernet", "finetune", "ablations"),
    fidelity("ablation_table", ABLATION_COLUMNS, "ablations"),
)  # fmt: skip
STAGES = {stage.name: stage for stage in TABLE}

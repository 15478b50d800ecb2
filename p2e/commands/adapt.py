"""`p2e adapt`: videos to a LoRA."""

from typing import Annotated, Any, Literal

import typer

from p2e.commands.options import BaseFolder, Device, Output, check_output, pick_device, progress_bar, quiet_libraries
from p2e.errors import InputError

__all__ = ["adapt", "parse_bucket"]

EXPERTS = {"high": "high_noise", "low": "low_noise"}
DATA, RECIPE, MACHINE = "Clips", "Recipe", "Memory and disk"


def parse_bucket(text: str) -> tuple[int, int, int]:
    """(frames, height, width) of "81x480x832".

    Raises:
        InputError: it is not three whole numbers.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise InputError(f"--bucket {text}: expected FRAMESxHEIGHTxWIDTH, such as 81x480x832")
    frames, height, width = map(int, parts)
    return frames, height, width


def adapt(
    clips: Annotated[str, typer.Argument(metavar="CLIPS", help="Folder of NAME.mp4 and NAME.txt, or a clips.jsonl.")],
    output: Output,
    base: BaseFolder = "world",
    init: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="LoRA to begin from, of any rank; one for each expert.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML or JSON of the settings; options overrule it.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; 1000.", rich_help_panel=RECIPE)] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA; 32.", rich_help_panel=RECIPE)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak rate, of which a tenth is left at the end; 1e-4.", rich_help_panel=RECIPE)
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips in a batch; 1.", rich_help_panel=RECIPE)] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Batches in a step; 1.", rich_help_panel=RECIPE)
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to adapt, such as '*attn.*' or 're:blocks.[0-9].'; all of them.",
                     rich_help_panel=RECIPE),
    ] = None,
    expert: Annotated[
        str | None, typer.Option(metavar="high|low|both", help="Of a base of two transformers; both.",
                                 rich_help_panel=RECIPE),
    ] = None,
    sampling: Annotated[
        Literal["logit_normal", "uniform"] | None,
        typer.Option(help="How times are drawn; as the base was trained.", rich_help_panel=RECIPE),
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="Moves times to noise; the base's scheduler's.", rich_help_panel=RECIPE)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of all that is random; 0.", rich_help_panel=RECIPE)
    ] = None,
    bucket: Annotated[
        list[str] | None,
        typer.Option(metavar="FxHxW", help="Frames, height and width that clips are cut to; found from the clips.",
                     rich_help_panel=DATA),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Longest length of buckets that are found.", rich_help_panel=DATA)
    ] = None,
    pixels: Annotated[
        int | None, typer.Option(min=256, help="Height x width of buckets that are found.", rich_help_panel=DATA)
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second clips are resampled to; the base's.", rich_help_panel=DATA)
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option("--checkpointing/--no-checkpointing", help="Recompute activations; for large bases.",
                     rich_help_panel=MACHINE),
    ] = None,
    weights: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        typer.Option(help="Type of the frozen base; auto.", rich_help_panel=MACHINE),
    ] = None,
    tiling: Annotated[
        bool | None,
        typer.Option("--tiling/--no-tiling", help="Encode clips in tiles, in less memory.", rich_help_panel=MACHINE),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where encoded clips are kept; the user's cache.", rich_help_panel=MACHINE),
    ] = None,
    device: Device = None,
) -> None:  # fmt: skip
    """Train a LoRA on clips, for any base: from scratch or from a given LoRA.

    A run that was cut off goes on when the same command is given again. NAME.json beside the LoRA holds the settings
    in full; --config takes it.
    """
    from p2e.adapt.config import FineTuneConfig

    given = FineTuneConfig.parse({}) if config is None else FineTuneConfig.load(config)
    asked: dict[str, Any] = {
        "steps": steps, "rank": rank, "learning_rate": learning_rate, "batch": batch, "accumulate": accumulate,
        "sites": sites or None, "expert": EXPERTS.get(expert, expert) if expert else None, "sampling": sampling,
        "shift": shift, "seed": seed, "buckets": [parse_bucket(text) for text in bucket] if bucket else None,
        "frames": frames, "pixels": pixels, "fps": fps, "checkpointing": checkpointing, "weights": weights,
        "cache": cache, "tiling": tiling,
    }  # fmt: skip
    # What is not given stays unset, so that the base can decide it.
    merged = given.model_dump(exclude_unset=True) | {key: value for key, value in asked.items() if value is not None}
    settings = FineTuneConfig.parse(merged, "p2e adapt")
    check_output(output)
    quiet_libraries()
    from p2e.adapt.run import adapt as run
    from p2e.bases import open_base

    where = pick_device(device)
    experts = len(open_base(base)[0].experts) if settings.expert == "both" else 1
    with progress_bar("encoding and training") as update:
        trained = run(
            clips, base, output, settings, init=init or None, device=where, on_encoded=update,
            on_step=lambda step, _: update(step + 1, experts * settings.steps),
        )  # fmt: skip
    print(f"wrote {output}: rank {trained.rank}, {len(trained.factors)} sites of {trained.base}")

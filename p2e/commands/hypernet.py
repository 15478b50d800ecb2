"""`p2e train` and `p2e predict`: a hypernetwork, from a library to the LoRA of a prompt."""

import math
from typing import Annotated

import typer

from p2e.commands.endpoint import Endpoint, predict_at
from p2e.commands.options import (
    BaseFolder,
    Device,
    DtypeOption,
    FormatOption,
    Output,
    check_output,
    on_terminal,
    pick_device,
    quiet_libraries,
    shipped,
)  # fmt: skip
from p2e.errors import InputError


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="YAML or JSON file of a TrainConfig.")],
) -> None:
    """Train a hypernetwork on a prepared library; the same command resumes a run that was cut off."""
    from p2e.config import TrainConfig

    settings = TrainConfig.load(config)
    quiet_libraries(diffusers=False)
    from p2e.training.loop import train as run

    print(f"wrote {run(settings, progress=on_terminal())}")


def predict(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The effect, in words.")],
    output: Output,
    checkpoint: Annotated[str, typer.Option(metavar="DIR|world", help="Trained hypernetwork.")] = "world",
    base: BaseFolder = "world",
    strength: Annotated[float, typer.Option(help="Scale of the update.")] = 1.0,
    to: FormatOption = "wan",
    dtype: DtypeOption = "bfloat16",
    device: Device = None,
    endpoint: Endpoint = None,
) -> None:
    """Write the LoRA of an effect from its prompt, in one forward pass."""
    if endpoint is not None:
        local = {
            "checkpoint": (checkpoint, "world"), "base": (base, "world"), "format": (to, "wan"),
            "dtype": (dtype, "bfloat16"), "device": (device, None),
        }  # fmt: skip
        return predict_at(endpoint, prompt, output, strength, local)

    import torch

    from p2e.bases import open_base
    from p2e.hypernet.checkpoint import load_checkpoint
    from p2e.predict import predict_to_file
    from p2e.text import check_prompt, encoder_for

    text = check_prompt(prompt)
    if not math.isfinite(strength):
        raise InputError(f"--strength {strength}: give a finite number such as 0.8")
    check_output(output)
    quiet_libraries(diffusers=False)
    table, weights = open_base(base)
    if weights is None:
        raise InputError(f"--base {base}: no weights, which prediction reads; give the folder that holds them")
    model = load_checkpoint(shipped(checkpoint, "checkpoint"), pick_device(device), base=table)
    encoder = encoder_for(table, weights.folder)
    for path in predict_to_file(
        model, weights, text, encoder, output, strength=strength, fmt=to, dtype=getattr(torch, dtype)
    ):
        print(f"wrote {path}: rank {model.config.rank}, {len(model.scales)} of {len(table.sites)} sites")

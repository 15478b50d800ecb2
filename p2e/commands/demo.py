"""`p2e demo`: the whole way on the world."""

from typing import Annotated

import typer

from p2e.commands.options import check_folder, quiet_libraries


def demo(
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder for the results.")] = "demo",
    effect: Annotated[str | None, typer.Option(help="An effect of the world that is not in training.")] = None,
    train_seconds: Annotated[float, typer.Option(min=1, help="How long to train for show.")] = 60.0,
) -> None:
    """Check the library, train for a minute, predict a LoRA, render it beside the truth."""
    check_folder(output)
    quiet_libraries()
    from p2e.demo import DEMO_EFFECT
    from p2e.demo import demo as run

    run(output, effect=effect or DEMO_EFFECT, train_seconds=train_seconds)

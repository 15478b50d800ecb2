"""`p2e world`: the embedded world's scenes and effects, to look at and to try things on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from p2e.commands.options import AsJson, Output, check_output, quiet_libraries

app = typer.Typer(help="Look at the embedded world: its scenes and its effects.")

Effect = Annotated[str, typer.Argument(metavar="EFFECT", help="Name of an effect; `p2e world effects` lists them.")]
Scene = Annotated[int, typer.Option(min=0, help="Which of the evaluation scenes.")]
PICTURE = (".png",)


@app.command()
def rebuild(
    stages: Annotated[
        list[str],
        typer.Argument(metavar="STAGE...", help="text, vae, base, library, measure, hypernet, zero; in this order."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the stages write and read.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.KEY=JSON", help="Changes a setting of a stage.")
    ] = None,
) -> None:
    """Make the world from nothing; on several GPUs: torchrun -m p2e.world.rebuild with the same arguments."""
    from p2e.world.rebuild import run

    quiet_libraries()
    run(stages, out, settings or [])


@app.command()
def effects(as_json: AsJson = False) -> None:
    """List the effects with their splits and prompts."""
    from p2e.world.effects import EFFECTS

    if as_json:
        rows = [asdict(spec) for spec in EFFECTS]
        print(json.dumps([{k: row[k] for k in ("name", "split", "category", "prompts")} for row in rows], indent=2))
        return
    width = max(len(spec.name) for spec in EFFECTS)
    for spec in EFFECTS:
        print(f"{spec.name:{width}}  {spec.split:7}  {spec.prompts[0]}")


@app.command()
def show(output: Output, effect: Annotated[str | None, typer.Option(help="Just one, on 8 scenes.")] = None) -> None:
    """Write a contact sheet (PNG) of all effects, or of one."""
    from p2e.world.show import write_clip_sheet, write_contact_sheet

    check_output(output, PICTURE)
    if effect is None:
        write_contact_sheet(output)
    else:
        write_clip_sheet(output, effect)
    print(f"wrote {output}")


@app.command()
def scene(output: Output, scene: Scene = 0) -> None:
    """Write the first frame (PNG) of a scene, for `p2e render` to start from."""
    from PIL import Image

    from p2e.files import atomic_path
    from p2e.world.effects import EFFECTS
    from p2e.world.show import clip

    check_output(output, PICTURE)
    frame = clip(EFFECTS[0].name, scene, frames=2)[0]  # no effect shows in a first frame
    with atomic_path(output) as temporary:
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    print(f"wrote {output}")


@app.command()
def truth(
    effect: Effect,
    output: Output,
    scene: Scene = 0,
    scale: Annotated[int, typer.Option(min=1, max=16, help="Enlarge the video by this whole factor.")] = 1,
) -> None:
    """Write the true video (mp4 or GIF) of an effect on a scene."""
    from p2e.render.video import Clip, write_video
    from p2e.world.show import clip

    check_output(output, (".mp4", ".gif"))
    video = Clip(clip(effect, scene).permute(0, 2, 3, 1).contiguous().numpy())
    write_video(output, video, scale=scale)
    print(f"wrote {output}: {len(video)} frames")

"""`p2e world`: the embedded world's scenes and effects, to look at and to try things on."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from p2e.commands.options import AsJson, Output, check_folder, check_output, quiet_libraries

app = typer.Typer(help="Look at the embedded world: its scenes and its effects.")

Effect = Annotated[str, typer.Argument(metavar="EFFECT", help="Name of an effect; `p2e world effects` lists them.")]
Scene = Annotated[int, typer.Option(min=0, help="Which of the evaluation scenes.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the stages write and read.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=JSON", help="Changes a setting of a stage, such as vae.steps=100."),
]
PICTURE = (".png",)


@app.command()
def rebuild(
    stages: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STAGE]...", help="All, if left out; `p2e world status` lists them in their order."),
    ] = None,
    *,
    out: Out,
    settings: Changes = None,
    force: Annotated[
        list[str] | None, typer.Option("--force", metavar="STAGE", help="Run this stage even if it is done.")
    ] = None,
    adopt: Annotated[
        list[str] | None,
        typer.Option("--adopt", metavar="STAGE", help="Take what was made elsewhere and copied to DIR."),
    ] = None,
    pause_after: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Save the work by then and exit with 75; run it again to go on."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs to use; all, if left out.")] = None,
) -> None:
    """Make the world from nothing: each stage that is not done yet, from where it was paused or cut off.

    SIGTERM pauses as --pause-after does.
    """
    from p2e.world.launch import count_gpus, launch
    from p2e.world.pause import PAUSED, Paused
    from p2e.world.rebuild import check, run

    check(stages or [], settings or [], force or [], adopt or [])
    check_folder(out)
    workers = 1 if "WORLD_SIZE" in os.environ else count_gpus(gpus)
    if workers > 1:
        arguments = [*(stages or []), "--out", str(out)]
        arguments += [word for pair in settings or [] for word in ("--set", pair)]
        arguments += [word for stage in force or [] for word in ("--force", stage)]
        arguments += [word for stage in adopt or [] for word in ("--adopt", stage)]
        arguments += [] if pause_after is None else ["--pause-after", str(pause_after)]
        raise typer.Exit(launch("p2e.world.rebuild", arguments, workers))
    quiet_libraries()
    try:
        run(stages or [], out, settings or [], force=force or [], adopt=adopt or [], pause_after=pause_after)
    except Paused as paused:
        print(paused)
        raise typer.Exit(PAUSED) from None


@app.command()
def status(out: Out, settings: Changes = None, as_json: AsJson = False) -> None:
    """List the stages of a folder: done, stale, paused or missing, and why `rebuild` would run them again."""
    from p2e.world.rebuild import status as judge
    from p2e.world.stages import Ledger

    records = Ledger(out, {}).records
    rows = [
        {"stage": name, "state": verdict.state, "seconds": records[name].seconds if name in records else None,
         "reason": verdict.reason}
        for name, verdict in judge(out, settings or [])
    ]  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'stage':10}{'state':9}{'seconds':>8}  reason")
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        print(f"{row['stage']:10}{row['state']:9}{seconds:>8}  {row['reason']}")


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
def clip(
    effect: Effect,
    output: Output,
    scene: Scene = 0,
    scale: Annotated[int, typer.Option(min=1, max=16, help="Enlarge the video by this whole factor.")] = 1,
) -> None:
    """Write the true video (mp4 or GIF) of an effect on a scene."""
    from p2e.render.video import Clip, write_video
    from p2e.world.show import clip as true_clip

    check_output(output, (".mp4", ".gif"))
    video = Clip(true_clip(effect, scene).permute(0, 2, 3, 1).contiguous().numpy())
    write_video(output, video, scale=scale)
    print(f"wrote {output}: {len(video)} frames")

"""`p2e render`: a LoRA to a video."""

from typing import Annotated

import typer

from p2e.commands.endpoint import Endpoint, check_local, render_at
from p2e.commands.options import (
    BaseFolder,
    Device,
    Output,
    check_output,
    parse_weighted,
    pick_device,
    progress_bar,
    quiet_libraries,
)  # fmt: skip


def render(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="First frame: a PNG, JPEG or WebP file.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What happens, in words.")],
    output: Output,
    base: BaseFolder = "world",
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:STRENGTH]", help="LoRA to apply; several are added up.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; the base's own if left out.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Length; the base's own if left out.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; the base's own if left out.")] = None,
    height: Annotated[int | None, typer.Option(min=16, help="Pixels; the base's own if left out.")] = None,
    width: Annotated[int | None, typer.Option(min=16, help="Pixels; the base's own if left out.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="base, the base's own; or euler, for what was distilled to a few steps.")
    ] = None,
    shift: Annotated[float | None, typer.Option(help="Of the euler schedule; 5.")] = None,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="Quicker in half the memory, less exact: products in float8 (H100, RTX 40).")
    ] = False,
    scale: Annotated[int, typer.Option(min=1, max=16, help="Enlarge the video by this whole factor.")] = 1,
    device: Device = None,
    endpoint: Endpoint = None,
    effect: Annotated[str | None, typer.Option(help="With --endpoint: an effect in words.")] = None,
    effect_id: Annotated[str | None, typer.Option(help="With --endpoint: an effect that it has.")] = None,
    strength: Annotated[float | None, typer.Option(help="With --endpoint: of the effect; 1.")] = None,
) -> None:
    """Render a video from an image and a prompt, with or without LoRAs."""
    if endpoint is not None:
        local = {
            "base": (base, "world"), "lora": (lora or [], []), "schedule": (schedule, None), "shift": (shift, None),
            "fp8": (fp8, False), "scale": (scale, 1), "device": (device, None),
        }  # fmt: skip
        return render_at(
            endpoint, image, prompt, output, height=height, width=width, local=local, seed=seed, steps=steps,
            num_frames=frames, guidance=guidance, effect_prompt=effect, effect_id=effect_id, strength=strength,
        )  # fmt: skip
    check_local(effect=effect, effect_id=effect_id, strength=strength)
    quiet_libraries()
    import torch

    from p2e.lora.formats import read_lora
    from p2e.render.image import load_image
    from p2e.render.pipeline import Renderer
    from p2e.render.video import write_video
    from p2e.text import check_prompt

    text = check_prompt(prompt)
    check_output(output, endings=(".mp4", ".gif"))
    picture = load_image(image)
    where = pick_device(device)
    renderer = Renderer.open(base, where, torch.bfloat16 if where.startswith("cuda") else torch.float32, fp8=fp8)
    loras = [(read_lora(path, renderer.base), weight) for path, weight in map(parse_weighted, lora or [])]
    with progress_bar("denoising") as update:
        clip = renderer.render(
            picture, text, lora=loras, seed=seed, steps=steps, frames=frames, guidance=guidance, height=height,
            width=width, schedule=schedule, shift=shift, callback=update,
        )  # fmt: skip
    write_video(output, clip, scale=scale)
    print(f"wrote {output}: {len(clip)} frames of {clip.size[1]} x {clip.size[0]}, {clip.fps:g} a second")

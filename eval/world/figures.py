"""The paper's figures on the world: `python -m eval.world.figures KIND ...`.

energy   figure 2: energy of updates in the base's singular subspaces
loss     figures 4 and 7: training curves of several checkpoints
blend    figure 5: two effects and their blend
sheet    figures 3 and 8 to 10: frames of some effects under some columns, from the strips that measuring kept
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eval.world.blends import Blended, blend_effects
from eval.world.energy import SHARES, Energies, library_energies
from eval.world.plot import Chart, Line
from eval.world.run import open_world, shipped_effects
from p2e.bases import WeightReader, world_base_folder
from p2e.bases.wan import WAN_BASES
from p2e.errors import InputError
from p2e.files import atomic_path, read_text, write_text
from p2e.lora.formats import read_lora
from p2e.render.video import Clip, contact_sheet

__all__ = ["blend_sheet", "energy_chart", "energy_json", "loss_chart", "main", "strip_sheet"]

BAND_KINDS = {"base": "W0 itself", "both": "updates, both sides", "left": "updates, left", "right": "updates, right"}
GAP, MARGIN = 4, 6


def energy_chart(found: Energies) -> Chart:
    """Cumulative energy against the share of singular directions: W0, updates with one standard deviation, and what
    updates without a preference would have."""
    lines = []
    for number, (kind, label) in enumerate(BAND_KINDS.items()):
        band = found.deviation[kind].tolist() if kind in ("base", "both") else ()
        lines.append(Line(label, SHARES, found.mean[kind].tolist(), band, colour=number))
        if kind in ("both", "left"):
            lines.append(Line(f"random, {kind}", SHARES, found.random[kind].tolist(), dashed=True, colour=number))
    return Chart(
        "Energy in the leading singular directions of W0", "share of directions, k / min(d_out, d_in)",
        f"share of energy ({found.pairs:,} pairs of LoRA and site)", lines, (0.0, 1.0), (0.0, 1.0),
    )  # fmt: skip


def energy_json(found: Energies) -> str:
    """All curves of the figure, and those of each module type."""

    def plain(curves: Mapping[str, Any]) -> dict[str, list[float]]:
        return {kind: [round(x, 5) for x in curve.tolist()] for kind, curve in curves.items()}

    values = {
        "pairs": found.pairs, "shares": SHARES, "mean": plain(found.mean), "deviation": plain(found.deviation),
        "random": plain(found.random), "modules": {name: plain(curves) for name, curves in found.modules.items()},
    }  # fmt: skip
    return json.dumps(values) + "\n"


def loss_chart(checkpoints: Mapping[str, Path], key: str = "update_error") -> Chart:
    """Training curves, label -> checkpoint folder (or history.json); NMSE of the update, or another of its values.

    Raises:
        InputError: a folder has no history, or not that value.
    """
    lines = []
    for label, place in checkpoints.items():
        path = place if place.suffix == ".json" else place / "history.json"
        try:
            history = json.loads(read_text(path))["history"]
            lines.append(Line(label, [float(row["step"]) for row in history], [float(row[key]) for row in history]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: is no training history with {key}; give the folder of a run") from None
    return Chart("Training of the hypernetwork", "step", key.replace("_", " "), lines)


def blend_sheet(found: Mapping[tuple[str, str], Blended]) -> Image.Image:
    """For each pair and scene: the first effect, the second, both; each with how much of either shows."""
    rows: list[tuple[str, Clip]] = []
    for (first, second), blended in found.items():
        names = (first, second, f"{first} + {second}")
        for name, clips, shown in zip(names, blended.clips, blended.presence.tolist(), strict=True):
            label = f"{name}\nshows {shown[0]:.2f} and {shown[1]:.2f}"
            rows += [(label, Clip(clip.permute(0, 2, 3, 1).contiguous().numpy())) for clip in clips]
    return contact_sheet(rows)


def strip_sheet(clips: Path, effects: Sequence[str], columns: Mapping[str, str]) -> Image.Image:
    """Strips of frames that measuring kept (its setting `keep`): a block an effect, a row a column, title -> column.

    Raises:
        InputError: a strip is not there.
    """
    strips: list[tuple[str, Image.Image]] = []
    for effect in effects:
        for title, column in columns.items():
            path = clips / effect / f"{column.replace(':', '-')}.png"
            if not path.exists():
                raise InputError(f"{path}: no such strip; measure {column} with {effect} among the effects to keep")
            with Image.open(path) as picture:
                strips.append((f"{effect}\n{title}", picture.convert("RGB")))
    font = ImageFont.load_default(13)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = int(max(pen.multiline_textbbox((0, 0), label, font)[2] for label, _ in strips)) + 2 * MARGIN
    width = left + max(strip.width for _, strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height + GAP for _, strip in strips)), (255, 255, 255))
    pen, top = ImageDraw.Draw(sheet), 0
    for label, strip in strips:
        pen.multiline_text((MARGIN, top + strip.height // 2), label, (20, 20, 20), font, anchor="lm")
        sheet.paste(strip, (left, top))
        top += strip.height + GAP
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def pairs_of(texts: Sequence[str], example: str) -> dict[str, str]:
    """{"no weights": "none"} of ["no weights=none"]; a text without a title is its own."""
    if not texts:
        raise InputError(f"nothing was named; give at least one, such as {example}")
    split = [text.rpartition("=") for text in texts]
    return {title or value: value for title, _, value in split}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    world = argparse.ArgumentParser(add_help=False)
    world.add_argument("--world", type=Path, default=world_base_folder().parent, help="folder; the shipped one if none")
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("--out", type=Path, required=True, help="the picture (PNG); numbers beside it as JSON")
    kinds.add_parser("energy", parents=[world, out])
    loss = kinds.add_parser("loss", parents=[out])
    loss.add_argument("runs", nargs="+", metavar="TITLE=FOLDER", help="of checkpoints with history.json")
    loss.add_argument("--key", default="update_error", help="update_error, factor_error, loss")
    loss.add_argument("--log", action="store_true", help="logarithmic axis")
    blends = kinds.add_parser("blend", parents=[world, out])
    blends.add_argument("pairs", nargs="+", metavar="EFFECT+EFFECT")
    blends.add_argument("--column", default="zero", help="whose LoRAs are blended: zero, lora, ...")
    blends.add_argument("--scenes", type=int, default=1)
    blends.add_argument("--text", type=Path, help="where token states are kept; WORLD/text if left out")
    sheet = kinds.add_parser("sheet", parents=[out])
    sheet.add_argument("clips", type=Path, help="clips/ beside the measure file")
    sheet.add_argument("--effect", action="append", default=[], required=True)
    sheet.add_argument("--column", action="append", default=[], metavar="TITLE=COLUMN", required=True)
    options = parser.parse_args(arguments)
    {"energy": _energy, "loss": _loss, "blend": _blend, "sheet": _sheet}[options.kind](options)
    print(f"wrote {options.out}")


def _energy(options: argparse.Namespace) -> None:
    base = WAN_BASES["world"]
    specs = [spec for spec in shipped_effects(options.world) if spec.split == "train"]
    loras = [read_lora(options.world / "library" / "loras" / f"{spec.name}.safetensors", base) for spec in specs]
    found = library_energies(WeightReader(base, options.world / "base"), loras)
    energy_chart(found).save(options.out)
    write_text(options.out.with_suffix(".json"), energy_json(found))


def _loss(options: argparse.Namespace) -> None:
    runs = pairs_of(options.runs, "'full weights=checkpoint'")
    chart = loss_chart({title: Path(folder) for title, folder in runs.items()}, options.key)
    chart.log_y = options.log
    chart.save(options.out)


def _blend(options: argparse.Namespace) -> None:
    pairs = []
    for text in options.pairs:
        first, plus, second = text.partition("+")
        if not plus:
            raise InputError(f"{text}: is no pair; write EFFECT+EFFECT, such as red_mood+twist")
        pairs.append((first, second))
    names = [name for pair in pairs for name in pair]
    world = open_world(options.world, names, options.text or options.world / "text")
    found = {pair: blend_effects(world, *pair, column=options.column, scenes=options.scenes) for pair in pairs}
    save_picture(blend_sheet(found), options.out)
    numbers = {
        f"{a}+{b}": dict(zip((a, b, "blend"), np.round(x.presence.numpy(), 4).tolist(), strict=True))
        for (a, b), x in found.items()
    }
    write_text(options.out.with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")


def _sheet(options: argparse.Namespace) -> None:
    columns = pairs_of(options.column, "zero-shot=zero")
    save_picture(strip_sheet(options.clips, options.effect, columns), options.out)


if __name__ == "__main__":
    main()

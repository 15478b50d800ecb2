"""`p2e demo`: the whole way on a laptop, on the embedded world, within five minutes on two cores.

Checks the shipped library, trains a small hypernetwork for a minute to see its loss fall, predicts LoRAs with the
shipped one, for an effect that it never saw and for one that it did, in words that it did not, loads the files into
plain diffusers, and compares with the true effects.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from p2e.bases import WeightReader, open_base, world_base_folder
from p2e.config import HypernetConfig, LossConfig, TrainConfig
from p2e.errors import InputError
from p2e.files import atomic_path, write_text
from p2e.hypernet.checkpoint import load_checkpoint
from p2e.lora.formats import read_lora
from p2e.lora.library import Manifest, check_library, prepare_library
from p2e.lora.prepared import PreparedLibrary
from p2e.predict import predict_to_file
from p2e.render.video import Clip, contact_sheet, side_by_side, write_mp4
from p2e.text import TextEncoder, encoder_for
from p2e.training.loop import Trainer
from p2e.world.draw import draw_clips
from p2e.world.effects import EFFECTS, EffectSpec, effect_index, sample_params
from p2e.world.oracle import fidelity
from p2e.world.scenes import evaluation_scenes
from p2e.world.sprites import load_atlas

__all__ = ["DEMO_EFFECT", "demo"]

DEMO_EFFECT = "pink_cowride"
KNOWN_EFFECT = "morning_coffee"
SCENES = (4, 8)
TRAIN_SECONDS = 60.0
RANK = 4


@dataclass
class Report:
    """What the demo saw, as lines of Markdown."""

    lines: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def add(self, text: str, since: float | None = None) -> None:
        took = "" if since is None else f" ({time.perf_counter() - since:.1f} s)"
        self.lines.append(f"- {text}{took}")
        Console().print(f"[{time.perf_counter() - self.started:5.0f} s] {text}{took}", markup=False, highlight=False)


@dataclass(frozen=True)
class Case:
    """An effect with the prompt that it is asked for by, and the file that the prediction goes to."""

    spec: EffectSpec
    prompt: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.spec.name} ({'known, newly worded' if self.spec.split == 'train' else 'never seen'})"


def demo(folder: str | Path = "demo", *, effect: str = DEMO_EFFECT, train_seconds: float = TRAIN_SECONDS,
         scenes: tuple[int, ...] = SCENES) -> dict[str, dict[str, float]]:  # fmt: skip
    """Runs the demo and writes effect.safetensors, known.safetensors, video.mp4, sheet.png and report.md into `folder`.

    Args:
        effect: a held-out or out-of-distribution effect of the world.
        train_seconds: how long the small hypernetwork is trained.
        scenes: which of the evaluation scenes are rendered.

    Returns:
        Effect -> mean fidelity over the scenes of "base", "predicted" and, where the library has one, "trained".
    """
    out, report = Path(folder), Report()
    unseen, known = _unseen_effect(effect), EFFECTS[effect_index(KNOWN_EFFECT)]
    cases = (
        Case(unseen, unseen.prompts[-1], out / "effect.safetensors"),
        Case(known, known.prompts[-1], out / "known.safetensors"),
    )
    world = world_base_folder().parent
    base, weights = open_base("world")
    if weights is None:
        raise InputError(f"{world}: the world's weights are not there; install p2e with its data files")
    manifest = Manifest.load(world / "library" / "manifest.yaml")

    since = time.perf_counter()
    checked = check_library(manifest, base)
    problems = "no problems" if checked.ok else "with problems: see p2e library check"
    report.add(f"checked the shipped library: {len(checked.entries)} LoRAs, {problems}", since)

    with tempfile.TemporaryDirectory() as temporary:
        since = time.perf_counter()
        library = prepare_library(manifest, Path(temporary) / "prepared", base=base, rank=RANK)
        report.add(f"canonical factors of {len(library.effects)} LoRAs at {len(library.keys)} sites", since)
        _train(base, weights, library, Path(temporary) / "training", train_seconds, report)

    checkpoint, encoder = load_checkpoint(world / "checkpoint", "cpu"), encoder_for(base)
    for case in cases:
        since = time.perf_counter()
        predict_to_file(checkpoint, weights, case.prompt, encoder, case.path)
        size = case.path.stat().st_size / 1e3
        report.add(f'predicted {case.path.name} ({size:.0f} kB) from "{case.prompt}"', since)
    scores = _render(cases, encoder, world, scenes, out, report)
    report.add(f"everything took {time.perf_counter() - report.started:.0f} s on {torch.get_num_threads()} threads")
    write_text(out / "report.md", "# p2e demo\n\n" + "\n".join(report.lines) + "\n")
    return scores


def _unseen_effect(name: str) -> EffectSpec:
    for spec in EFFECTS:
        if spec.name == name and spec.split != "train":
            return spec
    unseen = ", ".join(spec.name for spec in EFFECTS if spec.split != "train")
    raise InputError(f"{name!r} is not an effect that the hypernetwork never saw; choose one of {unseen}")


def _train(
    base: Any, weights: WeightReader, library: PreparedLibrary, out: Path, seconds: float, report: Report
) -> None:
    """A minute of training from scratch, small enough for two cores; its weights are not used further."""
    since = time.perf_counter()
    network = HypernetConfig(width=64, layers=2, heads=4, latents=16, rank=RANK)
    config = TrainConfig(
        library="prepared", output=str(out), hypernet=network,
        loss=LossConfig(update=0.5), steps=10_000, sites_per_step=8, effects_per_step=16, learning_rate=2e-3,
        warmup_fraction=2e-3, tensorboard=False, log_every=25,
    )  # fmt: skip
    trainer = Trainer(config, base, weights, library, encoder_for(base))
    trainer.run(seconds=seconds, progress=True)
    first, last = trainer.history[0], trainer.history[-1]
    report.add(
        f"trained a small hypernetwork for {trainer.step} steps: loss {first['loss']:.3f} -> {last['loss']:.3f}", since
    )


def _render(cases: Sequence[Case], encoder: TextEncoder, world: Path, scenes: tuple[int, ...], out: Path,
            report: Report) -> dict[str, dict[str, float]]:  # fmt: skip
    """Base, prediction, trained LoRA and truth side by side, in plain diffusers, and their fidelity."""
    chosen = evaluation_scenes().select(torch.tensor(scenes))
    atlas, rows, columns, scores = load_atlas("cpu"), [], [], {}
    for case in cases:
        truth = draw_clips(chosen, sample_params(case.spec, len(scenes), None, variation=0), atlas)
        given: dict[str, Path | None] = {"base": None, "predicted": case.path}
        trained = world / "library" / "loras" / f"{case.spec.name}.safetensors"
        if trained.exists():
            given["trained"] = trained
        since = time.perf_counter()
        states = encoder.encode([case.prompt]).states
        clips = {name: render_plain(file, states, truth[:, 0], world) for name, file in given.items()}
        count = sum(map(len, clips.values()))
        each = (time.perf_counter() - since) / count
        report.add(f"{case.name}: rendered {count} clips in plain diffusers, {each:.1f} s each", since)
        scores[case.spec.name] = {}
        for name, frames in clips.items():
            video = torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3)
            scores[case.spec.name][name] = fidelity(video, truth, truth[:, 0]).mean().item()
        means = ", ".join(f"{name} {score:.3f}" for name, score in scores[case.spec.name].items())
        report.add(f"{case.name}: fidelity {means} (1 is the truth, 0 a still picture)")
        for i in range(len(scenes)):
            true = Clip(truth[i].permute(0, 2, 3, 1).contiguous().numpy())
            shown = {name: Clip(frames[i]) for name, frames in clips.items()} | {"truth": true}
            rows += [(f"{case.spec.name}: {name}", clip) for name, clip in shown.items()]
            columns.append(side_by_side([clip.enlarged(2) for clip in shown.values()], list(shown)))
    with atomic_path(out / "sheet.png") as temporary:
        contact_sheet(rows, columns=6).save(temporary, format="PNG")
    write_mp4(out / "video.mp4", in_turn(columns))
    report.add(f"wrote {out}: the two LoRAs, video.mp4, sheet.png, report.md")
    return scores


def in_turn(clips: Sequence[Clip]) -> Clip:
    """Clips one after the other; the narrower ones, of effects without a trained LoRA, are filled up with white."""
    width = max(clip.frames.shape[2] for clip in clips)
    wide = [
        np.pad(c.frames, ((0, 0), (0, 0), (0, width - c.frames.shape[2]), (0, 0)), constant_values=255) for c in clips
    ]
    return Clip(np.concatenate(wide), clips[0].fps)


def render_plain(lora: Path | None, states: torch.Tensor, images: torch.Tensor, world: Path) -> list[NDArray[np.uint8]]:
    """Clips [F, H, W, 3] of first frames uint8 [S, 3, H, W], by diffusers alone: its pipeline, its LoRA loader."""
    from diffusers import WanImageToVideoPipeline

    pipe: Any = WanImageToVideoPipeline.from_pretrained(world / "base", text_encoder=None, tokenizer=None,
                                                        dtype=torch.float32)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(str(lora))
        adapted = sum(hasattr(module, "lora_A") for module in pipe.transformer.modules())
        expected = len(read_lora(lora).factors)
        assert adapted == expected, f"diffusers adapted {adapted} layers of {expected}"
    clips = []
    for number, image in enumerate(images):
        result = pipe(
            image=image[None].float() / 255, prompt_embeds=states, height=image.shape[1], width=image.shape[2],
            num_frames=17, num_inference_steps=10, guidance_scale=1.0, output_type="np",
            generator=torch.Generator().manual_seed(number),
        ).frames[0]  # fmt: skip
        clips.append((result * 255).round().astype(np.uint8))
    return clips

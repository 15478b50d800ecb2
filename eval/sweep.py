"""What a sweep has to do, without doing it: clips and scores, what is missing of them, and what they will cost."""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from eval.lora_plan import LoraPlan
from eval.metrics import Context, Item, score_key
from eval.run_files import ClipRow, Score
from eval.suite import Scene, Suite
from eval.world.run import CLIPS as CLIPS_SECONDS
from eval.world.run import STEP
from p2e.adapt.cache import digest_of
from p2e.config import RenderConfig, Settings
from p2e.errors import InputError
from p2e.files import atomic_path, file_sizes, sha256
from p2e.render.video import Clip, write_mp4
from p2e.world.columns import Column
from ray_jobs.rows import RenderRow, content

__all__ = [
    "CellRow", "Estimate", "Work", "cell_rows", "clips_there", "estimate", "missing_scores", "place_images",
    "score_works", "still_key", "unreadable_clips", "world_scene", "write_still",
]  # fmt: skip

STILL_RECIPE = "1"
UNREADABLE = ("missing", "unreadable", "empty_file", "not_a_video", "no_stream", "damaged")  # of `eval.metrics.reading`
WORLD_STEP_SECONDS = 0.25  # a denoising step of the world's base on one core; see RENDER of eval.world.run


@dataclass(frozen=True)
class CellRow:
    """A method, an effect and a scene, and how its clip comes about: `row` rendered, `still` written, or `error`."""

    method: str
    effect: str
    scene: str
    prompt: str
    image: str
    row: RenderRow | None = None
    still: bool = False
    error: str = ""

    def line(self, clip: str | None, error: str = "") -> ClipRow:
        return ClipRow(
            method=self.method, effect=self.effect, scene=self.scene, prompt=self.prompt, image=self.image,
            clip=clip, error=error or self.error,
        )  # fmt: skip


class Work(Settings):
    """A clip to be scored for an effect.

    Attributes:
        video: path or URL of the clip.
        prompt: of the effect.
        image: path or URL of its first frame.
        scene: "world:N" where it starts from an evaluation scene of the world, else "".
        metrics: that have not scored it.
    """

    clip: str
    video: str
    effect: str
    prompt: str
    image: str
    scene: str
    metrics: tuple[str, ...] = ()

    def item(self) -> Item:
        """For `eval.metrics`."""
        context = Context(prompt=self.prompt, image=self.image, effect=self.effect, scene=self.scene)
        return Item(clip=self.clip, video=self.video, context=context)


def place_images(suite: Suite, run: str) -> dict[str, str]:
    """Puts the first frame of each scene into the run -> scene id, name below the run's folder.

    Raises:
        InputError: a scene has no picture yet, or it cannot be read.
        OutputError: the folder cannot be written.
    """
    from p2e.render.image import load_image

    drawn = _world_frames([number for scene in suite.scenes if (number := world_scene(scene)) is not None])
    there = file_sizes(f"{run}/images")
    names = {}
    for scene in suite.scenes:
        number, name = world_scene(scene), f"images/{scene.id}.png"
        if scene.image is None:
            raise InputError(
                f"scene {scene.id} has no picture; draw one from its image_prompt and set image, or scene_images"
            )
        picture = drawn[number] if number is not None else load_image(scene.image)
        buffer = io.BytesIO()
        clear = "A" in picture.getbands() or "transparency" in picture.info
        picture.convert("RGBA" if clear else "RGB").save(buffer, "PNG")
        data = buffer.getvalue()
        if there.get(f"{scene.id}.png") != len(data) or sha256(f"{run}/{name}") != hashlib.sha256(data).hexdigest():
            with atomic_path(f"{run}/{name}") as path:
                path.write_bytes(data)
        names[scene.id] = name
    return names


def world_scene(scene: Scene) -> int | None:
    """Number of the world's evaluation scene that a scene starts from.

    Raises:
        InputError: the world has no scene of that number.
    """
    from p2e.world.scenes import EVALUATION_SCENES

    if scene.image is None or not scene.image.startswith("world:"):
        return None
    text = scene.image.removeprefix("world:")
    if not text.isdecimal() or int(text) >= EVALUATION_SCENES:
        raise InputError(f"scene {scene.id}: image {scene.image}: the world's are world:0 to world:75")
    return int(text)


def _world_frames(numbers: Sequence[int]) -> dict[int, Image.Image]:
    if not numbers:
        return {}
    import torch

    from p2e.world.draw import draw_clips
    from p2e.world.scenes import evaluation_scenes
    from p2e.world.sprites import load_atlas

    chosen = evaluation_scenes().select(torch.tensor(numbers))
    frames = draw_clips(chosen, None, load_atlas(), frames=1)[:, 0].permute(0, 2, 3, 1).numpy()
    return {number: Image.fromarray(frame) for number, frame in zip(numbers, frames, strict=True)}


def cell_rows(suite: Suite, loras: LoraPlan, run: str, images: Mapping[str, str]) -> list[CellRow]:
    """Every method, effect and scene, in that order, with what is to be rendered."""
    rows = []
    for method in suite.methods:
        still = method.column == "still"
        for effect in suite.effects:
            cell = (method.title, effect.name)
            error = loras.errors.get(cell, "")
            for scene in suite.scenes:
                prompt, image = suite.prompt(effect, scene), images[scene.id]
                row = None
                if not still and not error and cell in loras.files:
                    values = {"image": f"{run}/{image}", "prompt": prompt, "seed": scene.seed}
                    row = RenderRow.parse(values | {"lora": loras.files[cell]}, f"{method.title}, {effect.name}")
                rows.append(CellRow(method.title, effect.name, scene.id, prompt, image, row, still, error))
    return rows


def still_key(image: str, settings: RenderConfig, scale: int) -> str:
    """The key of a still clip, which is of an image and a size alone."""
    size = (settings.height, settings.width, settings.frames, settings.fps, scale)
    return digest_of("still", STILL_RECIPE, content(image), *size)[:32]


def write_still(path: str, image: str, settings: RenderConfig, scale: int) -> None:
    """Writes the first frame, as a renderer would see it, standing still for the length of a clip."""
    from p2e.render.image import fit_image, load_image

    frame = np.asarray(fit_image(load_image(image), settings.height, settings.width))
    write_mp4(path, Clip(np.repeat(frame[None], settings.frames, 0), settings.fps), scale=scale)


def score_works(suite: Suite, cells: Iterable[CellRow], keys: Iterable[str | None], run: str) -> dict[str, list[Work]]:
    """Clip key -> what it is to be scored for: every effect that one of its rows is of, once."""
    prompts = {effect.name: effect.prompt for effect in suite.effects}
    scenes = {scene.id: "" if world_scene(scene) is None else str(scene.image) for scene in suite.scenes}
    works: dict[str, dict[str, Work]] = {}
    for cell, key in zip(cells, keys, strict=True):
        if key is not None:
            work = Work(
                clip=key, video=f"{run}/clips/{key}.mp4", effect=cell.effect, prompt=prompts[cell.effect],
                image=f"{run}/{cell.image}", scene=scenes[cell.scene],
            )  # fmt: skip
            works.setdefault(key, {}).setdefault(cell.effect, work)
    return {key: list(own.values()) for key, own in works.items()}


def missing_scores(
    works: Mapping[str, Sequence[Work]], recipes: Mapping[str, str], scores: Mapping[str, Score], retry_errors: bool
) -> dict[str, list[Work]]:
    """Clip key -> what it still lacks.

    Args:
        recipes: metric -> recipe.
        retry_errors: a score without a value is lacking, too.
    """
    left: dict[str, list[Work]] = {}
    for key, own in works.items():
        for work in own:
            names = []
            for metric, recipe in recipes.items():
                score = scores.get(score_key(work.item(), recipe))
                if score is None or (retry_errors and score.error):
                    names.append(metric)
            if names:
                left.setdefault(key, []).append(work.model_copy(update={"metrics": tuple(names)}))
    return left


def unreadable_clips(scores: Iterable[Score]) -> set[str]:
    """Keys of the clips that a metric could not read."""
    return {score.clip for score in scores if score.error.split(":")[0] in UNREADABLE}


@dataclass(frozen=True)
class Estimate:
    """What is left to do.

    Attributes:
        clips, kept: clips to be made, and those that are there.
        unknown: of `clips`, those whose LoRA is yet to be made: some may turn out to be there.
        loras, training_steps: LoRAs to be made, and steps of those that are trained.
        scores: clips times metrics that have no score.
        seconds: of one renderer or trainer at work, None where no rate is known.
        actors: renderers at a time.
        gpu: they are GPUs.
    """

    clips: int
    kept: int
    unknown: int
    loras: int
    training_steps: int
    scores: int
    seconds: float | None
    actors: int
    gpu: bool

    def text(self) -> str:
        """For people."""
        kind = "GPU" if self.gpu else "CPU"
        if self.seconds is None:
            cost = "no rate is known, give seconds_per_step to learn what it costs"
        else:
            wall = self.seconds / self.actors
            cost = f"about {self.seconds / 3600:.2f} {kind} hours, {wall / 60:.1f} min on {self.actors} renderers"
        parts = f"{self.clips} clips to make ({self.kept} are there), {self.loras} LoRAs to make"
        steps = f" with {self.training_steps} training steps" if self.training_steps else ""
        return f"{parts}{steps}, {self.scores} scores to take; {cost}, without metrics and judge"


def estimate(
    suite: Suite, loras: LoraPlan, cells: Sequence[CellRow], keys: Sequence[str | None], there: set[str],
    scores: int, steps: int, rate: float | None, actors: int, gpu: bool,
) -> Estimate:  # fmt: skip
    """Counts what is left, and what it costs.

    Args:
        keys: of the cells' clips, None where a LoRA is yet to be made or there is none.
        there: keys of the clips that are there.
        scores: how many are to be taken.
        steps: of a render.
        rate: seconds a denoising step; None takes the world's on a CPU.
    """
    known = {key for key in keys if key is not None}
    # Cells that share a LoRA, a prompt and a first frame share a clip.
    shared = {
        (loras.keys[cell.method, cell.effect], cell.prompt, cell.scene)
        for cell, key in zip(cells, keys, strict=True)
        if key is None and not cell.error and (cell.method, cell.effect) in loras.keys
    }
    clips = len(known - there) + len(shared)
    trained = [Column.parse(task.column) for task in loras.tasks if task.kind == "trained"]
    if rate is None and suite.base == "world" and not gpu:
        rate = WORLD_STEP_SECONDS
    seconds = None if rate is None else clips * steps * rate + sum(CLIPS_SECONDS + c.steps * STEP for c in trained)
    return Estimate(
        clips=clips, kept=len(known & there), unknown=len(shared),
        loras=sum(len(task.wanted) for task in loras.tasks), training_steps=sum(c.steps for c in trained),
        scores=scores, seconds=seconds, actors=actors, gpu=gpu,
    )  # fmt: skip


def clips_there(run: str) -> set[str]:
    """Keys of the clips that are there."""
    return {name[:-4] for name in file_sizes(f"{run}/clips") if name.endswith(".mp4")}

"""The actor that renders rows: a model, a LoRA slot, and the LoRA it used last."""

import json
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from p2e.config import RenderConfig
from p2e.errors import P2EError
from p2e.lora.lora import Lora
from p2e.lora.manifest import Entry, Manifest, read_effect
from ray_jobs.attempts import Attempts
from ray_jobs.rows import RenderRow
from ray_jobs.session import exists, failure

__all__ = ["CLIPS", "ClipActor"]

CLIPS = "clips"


class ClipActor:
    """Renders the rows of a task, each into `output`/clips/KEY.mp4.

    Args:
        base: folder of the base's pipeline.
        settings: of every clip.
        scale: whole factor by which clips are enlarged.
        gpu: render on a GPU in bfloat16; else on the CPU in float32.
        output: folder, local or an fsspec URL.
        attempts: ends a row that kills its actor again and again.
    """

    def __init__(
        self, base: str, settings: RenderConfig, scale: int, gpu: bool, output: str, attempts: Attempts
    ) -> None:  # fmt: skip
        import torch

        from p2e.commands.options import quiet_libraries
        from p2e.render.pipeline import Renderer

        quiet_libraries()
        self.scale, self.output, self.attempts = scale, output, attempts
        self.problem = ""
        self._lora: tuple[str, Lora | None] = ("null", None)
        try:
            device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
            self.renderer = Renderer.open(base, device, dtype, settings=settings)
        except P2EError as error:
            self.problem = failure(error)  # an actor that cannot start would be started again and again

    def __call__(self, task: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A line {key, error, seconds, actor, carry} for each row of the task; `carry` is what came with the row."""
        return [self._line(*json.loads(said)) for said in task["rows"]]

    def _line(self, key: str, values: dict[str, Any], carry: str = "") -> dict[str, Any]:
        start, error = time.monotonic(), self.problem
        if not error:
            try:
                self._render(key, RenderRow.parse(values))
            except Exception as problem:  # one row is not the job
                error = failure(problem)
        seconds, actor = time.monotonic() - start, f"{platform.node()}:{os.getpid()}"
        return {"key": key, "error": error, "seconds": seconds, "actor": actor, "carry": carry}

    def _render(self, key: str, row: RenderRow) -> None:
        from p2e.render.image import load_image
        from p2e.render.video import write_mp4

        video = f"{self.output}/{CLIPS}/{key}.mp4"
        if exists(video):
            return  # made before this task was begun again
        self.attempts.begin(key)
        clip = self.renderer.render(
            load_image(row.image), row.prompt, lora=self._load(row), strength=row.strength, seed=row.seed
        )
        write_mp4(video, clip, scale=self.scale)

    def _load(self, row: RenderRow) -> Lora | None:
        """The row's LoRA; the same object as long as the same is asked for, so that the slot is left as it is."""
        name = json.dumps(row.lora)
        if name != self._lora[0]:
            lora = None
            if row.lora is not None:
                base = self.renderer.base
                entry = Entry.parse({"effect": "row", "lora": row.lora})
                lora = read_effect(Manifest(base=base.name, entries=(entry,)), entry, base)
            self._lora = (name, lora)
        return self._lora[1]

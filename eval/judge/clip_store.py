"""Clips to train the tiny judge on, drawn ahead by processes of their own and kept in files.

Drawing takes longer than learning, so clips come back: each is asked about in many wordings. The first steps see the
first part alone, and a part joins every so many steps, while the next are drawn.
"""

from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from eval.judge.fixed_shape import patches
from eval.judge.rubric import effect_text
from eval.judge.tiny import ANSWER_START, TinyConfig, build_processor
from eval.judge.world_data import Example, draw_examples
from eval.metrics.sampling import uniform_frames
from p2e.config import Settings
from p2e.errors import ConfigError
from p2e.files import SafetensorsFile, atomic_path

__all__ = ["ClipConfig", "ClipStore", "tails"]

DRAWN_AT_ONCE = 512  # memory: more, and four processes that draw do not fit beside the training on one GPU
DROPPED = 0.1  # so many words of every second wording are left out
SHIFT = 3  # pixels that a batch may be moved, either way


class ClipConfig(Settings):
    """Attributes:
    parts, clips: so many files of so many clips.
    wordings: of each clip.
    grow: steps until a further part joins.
    tail: tokens of a prompt with its answer, at most; one shape, so that a GPU compiles and plans once, and with all
        that comes before a multiple of 8, which the attention kernel wants of its mask.
    rendered: send some of the clips through the world's autoencoder.
    """

    parts: int = Field(default=12, ge=1)
    clips: int = Field(default=4096, ge=1)
    wordings: int = Field(default=16, ge=1)
    grow: int = Field(default=500, ge=1)
    tail: int = Field(default=196, ge=64)
    rendered: bool = True


class ClipStore:
    """The clips of a run, on its device.

    Args:
        folder: of the files; whole ones that are there are taken.
        drawers: processes that draw; 0 draws here, when a part is wanted.
    """

    def __init__(
        self, folder: Path, config: ClipConfig, model: TinyConfig, seed: int, device: str, drawers: int
    ) -> None:
        self.folder, self.config, self.model, self.seed, self.device = folder, config, model, seed, device
        missing = [part for part in range(config.parts) if not self._path(part).is_file()]
        self._pool = ProcessPoolExecutor(drawers, get_context("spawn")) if drawers and missing else None
        self._drawn: dict[int, Future[None]] = {}
        if self._pool is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._drawn = {part: self._pool.submit(self._draw, part) for part in missing}
        self._parts: list[dict[str, Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        """What a drawer needs."""
        return {**self.__dict__, "_pool": None, "_drawn": {}, "_parts": []}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of `FixedShape`; they depend on the step alone. All clips of a batch are of one part."""
        known = min(1 + step // self.config.grow, self.config.parts)
        while len(self._parts) < known:
            self._parts.append(self._read(len(self._parts)))
        generator = torch.Generator().manual_seed((self.seed << 32) + step)

        def pick(most: int, *shape: int) -> Tensor:
            return torch.randint(most, shape, generator=generator)

        part = self._parts[int(pick(known))]
        rows, uses = (pick(most, size).to(self.device) for most in (self.config.clips, self.config.wordings))
        image, frames = part["image"][rows], part["frames"][rows]
        down, right = (int(pick(2 * SHIFT + 1)) for _ in range(2))
        image, frames = _moved(image, down, right), _moved(frames.flatten(0, 1), down, right).view_as(frames)
        return patches(image, frames), part["tail"][rows, uses].long(), part["labels"][rows, uses].long()

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:03d}.safetensors"

    def _read(self, part: int) -> dict[str, Tensor]:
        if part in self._drawn:
            self._drawn[part].result()
        elif not self._path(part).is_file():
            self._draw(part)
        with SafetensorsFile(self._path(part)) as file:
            return {name: file.read(name).to(self.device) for name in ("image", "frames", "tail", "labels")}

    def _draw(self, part: int) -> None:
        """Writes one part."""
        config = self.config
        vae = _vae(self.device) if config.rendered else None
        processor, found = build_processor(self.model), list[dict[str, Tensor]]()
        for start in range(0, config.clips, DRAWN_AT_ONCE):
            seed = ((self.seed + 1) << 40) + (part << 20) + start
            count = min(DRAWN_AT_ONCE, config.clips - start)
            examples = draw_examples(seed, count, wordings=config.wordings, device=self.device, vae=vae)
            ids, labels = tails(processor, examples, config.tail, np.random.default_rng(seed))
            places = list(uniform_frames(len(examples[0].clip)))
            image = torch.stack([one.image for one in examples]).cpu()
            frames = torch.stack([one.clip[places] for one in examples]).cpu()
            found.append({"image": image, "frames": frames, "tail": ids, "labels": labels})
        whole = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        with atomic_path(self._path(part)) as temporary:
            save_file(whole, temporary)


def tails(
    processor: Any, examples: list[Example], length: int, dropping: np.random.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """What follows the pictures: prompts and answers, int32 [P, U, R], and what of it is to be learnt, elsewhere -100.

    Args:
        dropping: leaves words out of every second wording, so that a prompt is not known by a single one.

    Raises:
        ConfigError: one is longer than `length`, which is R.
    """
    tokenizer, uses = processor.tokenizer, len(examples[0].prompts)
    prompts = [prompt for one in examples for prompt in one.prompts]
    if dropping is not None:
        prompts = [_fewer(prompt, dropping) if row % 2 else prompt for row, prompt in enumerate(prompts)]
    distinct = list(dict.fromkeys(prompts))  # far fewer than questions
    encoded = tokenizer([effect_text(prompt) + ANSWER_START for prompt in distinct])["input_ids"]
    questions = dict(zip(distinct, encoded, strict=True))
    answers = tokenizer([one.verdict.model_dump_json() + "<|im_end|>" for one in examples])["input_ids"]
    ids = np.full((len(prompts), length), tokenizer.pad_token_id, np.int32)
    labels = np.full((len(prompts), length), -100, np.int32)
    for row, prompt in enumerate(prompts):
        question, answer = questions[prompt], answers[row // uses]
        start, end = len(question), len(question) + len(answer)
        if end > length:
            raise ConfigError(f"tail: {length} tokens are too few, an example has {end}")
        ids[row, :start] = question
        ids[row, start:end] = labels[row, start:end] = answer
    return torch.from_numpy(ids).view(-1, uses, length), torch.from_numpy(labels).view(-1, uses, length)


def _fewer(prompt: str, generator: np.random.Generator) -> str:
    words = prompt.split()
    kept = [word for word, chance in zip(words, generator.random(len(words)), strict=True) if chance >= DROPPED]
    return " ".join(kept or words)


def _moved(pictures: Tensor, down: int, right: int) -> Tensor:
    """Pictures [N, C, H, W] moved by `down - SHIFT` and `right - SHIFT` pixels; the edge is repeated."""
    height, width = pictures.shape[-2:]
    rows = (torch.arange(height, device=pictures.device) - down + SHIFT).clamp(0, height - 1)
    columns = (torch.arange(width, device=pictures.device) - right + SHIFT).clamp(0, width - 1)
    return pictures[:, :, rows][:, :, :, columns]


def _vae(device: str) -> Any:
    """The world's own, which every installation has."""
    from diffusers import AutoencoderKLWan

    from p2e.bases.opening import world_base_folder
    from p2e.world.vae import channels_last

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    vae: Any = AutoencoderKLWan.from_pretrained(world_base_folder() / "vae", torch_dtype=dtype)
    channels_last(vae.to(device).eval())
    return vae

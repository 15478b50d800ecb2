"""From captioned clips to the records that a base learns from: cut, encoded, cached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from p2e.adapt.buckets import Bucket, Grid, assign_bucket, check_buckets
from p2e.adapt.cache import RECIPE, RecordCache, content_digest, digest_of
from p2e.adapt.clips import CaptionedClip, fit_clip, read_clip
from p2e.adapt.families import Adapter
from p2e.adapt.families.adapter import Record
from p2e.adapt.latents import to_model_range
from p2e.errors import FormatError, InputError
from p2e.files import sha256
from p2e.render.video import Clip

__all__ = ["Example", "encode_examples", "grid_of", "stack"]


@dataclass(frozen=True)
class Example:
    """One clip as training meets it.

    Attributes:
        bucket: (F, H, W) it was cut to.
        digest: of everything the records were made from.
        record: of clip and caption together.
    """

    bucket: Bucket
    digest: str
    record: Record


def grid_of(adapter: Adapter) -> Grid:
    """What shapes the base takes, with the user's wishes for those that are found."""
    config, (frames, height, width) = adapter.config, adapter.size
    if config.pixels is not None:
        factor = (config.pixels / (height * width)) ** 0.5
        height, width = round(height * factor), round(width * factor)
    return Grid(adapter.frame_step, adapter.side_step, (config.frames or frames, height, width), adapter.only_side)


class _Encoders:
    """The models that make records, each loaded when the first record needs it."""

    def __init__(self, adapter: Adapter, device: str | torch.device) -> None:
        self.adapter, self.device = adapter, device

    @cached_property
    def clips(self) -> dict[str, Any]:
        return self.adapter.load_encoders(self.device)

    @cached_property
    def text(self) -> Any:
        return self.adapter.load_text(self.device)

    def folders(self, names: Sequence[str]) -> str:
        paths = [self.adapter.folder / name for name in names]
        for path in paths:
            if not path.is_dir():
                raise FormatError(f"{path}: no such folder; give the whole folder of a diffusers pipeline")
        return content_digest(paths)


class _Source:
    """One video file: its shape from the cache, its frames decoded only when a record needs them."""

    def __init__(self, example: CaptionedClip, cache: RecordCache) -> None:
        self.example = example
        try:
            self.digest = sha256(example.video)
        except OSError:
            raise InputError(f"{example.video}: cannot be read; check the path") from None
        key = digest_of("shape", RECIPE, self.digest)
        found = cache.read(key)
        if found is None:
            shape = torch.tensor([len(self.clip), *self.clip.size])
            found = cache.write(key, {"shape": shape, "fps": torch.tensor(self.clip.fps, dtype=torch.float64)})
        self.frames, self.height, self.width = found["shape"].tolist()
        self.rate = found["fps"].item()

    @cached_property
    def clip(self) -> Clip:
        return read_clip(self.example)

    def fitted(self, bucket: Bucket, fps: float) -> tuple[Tensor, Image.Image]:
        """The clip cut to a bucket, uint8 [1, F, 3, H, W], and its first frame; the whole video is let go."""
        video = fit_clip(self.clip, *bucket, fps)
        self.__dict__.pop("clip", None)
        return video[None], Image.fromarray(video[0].permute(1, 2, 0).numpy())


@torch.no_grad()
def encode_examples(
    adapter: Adapter, examples: Sequence[CaptionedClip], cache: RecordCache, device: str | torch.device,
    *, on_example: Callable[[int, int], None] | None = None,
) -> list[Example]:  # fmt: skip
    """The records of every clip. Only what the cache lacks is decoded and encoded, clips first and captions after them,
    so that autoencoder and text encoder are never in memory together.

    Args:
        on_example: called with the records that are ready, and their number in all.

    Raises:
        InputError: a clip that cannot be read, or is too short; the message names it.
        ConfigError: buckets that the base does not take.
    """
    buckets, grid = _buckets(adapter)
    models = _Encoders(adapter, device)
    clip_models, text_models = models.folders(adapter.encoder_folders), models.folders(adapter.text_folders)
    recipe, fps = (RECIPE, adapter.kind), adapter.fps
    made: list[tuple[_Source, Bucket, str, Record]] = []
    total = 2 * len(examples)
    for number, example in enumerate(examples, 1):
        source = _Source(example, cache)
        available = _available(source.frames, source.rate, fps)
        bucket = assign_bucket(buckets, grid, available, source.height, source.width, str(example.video))
        digest = digest_of("clip", *recipe, source.digest, bucket, fps, adapter.config.tiling, clip_models)
        record = cache.read(digest)
        if record is None:
            video, first = source.fitted(bucket, fps)
            record = cache.write(digest, adapter.encode_clip(models.clips, to_model_range(video).to(device), first))
        source.__dict__.pop("clip", None)
        made.append((source, bucket, digest, record))
        if on_example is not None:
            on_example(number, total)
    models.__dict__.pop("clips", None)
    captions: dict[str, Record] = {}
    done: list[Example] = []
    for number, (source, bucket, clip_digest, record) in enumerate(made, 1):
        image = digest_of(source.digest, bucket) if adapter.text_reads_image else ""
        caption = source.example.caption
        digest = digest_of("text", *recipe, caption, image, text_models, adapter.base.text_dim, adapter.text_dtype)
        if digest not in captions:
            found = cache.read(digest)
            if found is None:
                first = source.fitted(bucket, fps)[1] if adapter.text_reads_image else None
                found = cache.write(digest, models.text(caption, first))
            captions[digest] = found
        done.append(Example(bucket, digest_of(clip_digest, digest), {**record, **captions[digest]}))
        if on_example is not None:
            on_example(len(examples) + number, total)
    return done


def _buckets(adapter: Adapter) -> tuple[Sequence[Bucket] | None, Grid]:
    """The buckets to choose from, None where they are found, and what the base takes."""
    grid = grid_of(adapter)
    buckets = adapter.config.buckets
    if buckets is None and not adapter.finds_buckets:
        buckets = (grid.size,)
    if buckets is not None:
        check_buckets(buckets, grid, adapter.base.name)
    return buckets, grid


def _available(frames: int, rate: float, fps: float) -> int:
    """How many frames a clip of so many at its rate has at another: as many as `fit_clip` takes without complaint."""
    count = 1
    while int(count / fps * rate + 0.5) <= frames - 1:
        count += 1
    return count


def stack(records: Sequence[Record], device: str | torch.device) -> dict[str, Tensor]:
    """A batch of records of one bucket."""
    return {name: torch.stack([record[name] for record in records]).to(device) for name in records[0]}

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
from p2e.adapt.clips import CaptionedClip, fit_clip
from p2e.adapt.families import Adapter
from p2e.adapt.families.adapter import Record
from p2e.adapt.latents import to_model_range
from p2e.errors import FormatError, InputError
from p2e.files import sha256
from p2e.render.video import Clip, read_video

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


@torch.no_grad()
def encode_examples(
    adapter: Adapter, examples: Sequence[CaptionedClip], cache: RecordCache, device: str | torch.device,
    *, on_example: Callable[[int, int], None] | None = None,
) -> list[Example]:  # fmt: skip
    """The records of every clip. Videos are read to find their buckets; only what the cache lacks is encoded, clips
    first and captions after them, so that autoencoder and text encoder are never in memory together.

    Args:
        on_example: called with the records that are ready, and their number in all.

    Raises:
        InputError: a clip that cannot be read, or is too short; the message names it.
        ConfigError: buckets that the base does not take.
    """
    grid = grid_of(adapter)
    buckets = adapter.config.buckets
    if buckets is None and not adapter.finds_buckets:
        buckets = (grid.size,)
    if buckets is not None:
        check_buckets(buckets, grid, adapter.base.name)
    models = _Encoders(adapter, device)
    clip_models, text_models = models.folders(adapter.encoder_folders), models.folders(adapter.text_folders)
    recipe = (RECIPE, adapter.kind)
    made: list[tuple[Bucket, str, Record, Image.Image]] = []
    total = 2 * len(examples)
    for number, example in enumerate(examples, 1):
        clip = _read(example)
        bucket = assign_bucket(buckets, grid, _available(clip, adapter.fps), *clip.size, str(example.video))
        digest = digest_of(
            "clip", *recipe, sha256(example.video), bucket, adapter.fps, adapter.config.tiling, clip_models
        )
        video = fit_clip(clip, *bucket, adapter.fps)
        first = Image.fromarray(video[0].permute(1, 2, 0).numpy())
        record = cache.read(digest)
        if record is None:
            pixels = to_model_range(video[None]).to(device)
            record = cache.write(digest, adapter.encode_clip(models.clips, pixels, first))
        made.append((bucket, digest, record, first))
        if on_example is not None:
            on_example(number, total)
    models.__dict__.pop("clips", None)
    captions: dict[str, Record] = {}
    done: list[Example] = []
    for number, ((bucket, clip_digest, record, first), example) in enumerate(zip(made, examples, strict=True), 1):
        image = digest_of(first.tobytes(), first.size) if adapter.text_reads_image else ""
        digest = digest_of(
            "text", *recipe, example.caption, image, text_models, adapter.base.text_dim, adapter.text_dtype
        )
        if digest not in captions:
            found = cache.read(digest)
            captions[digest] = cache.write(digest, models.text(example.caption, first)) if found is None else found
        done.append(Example(bucket, digest_of(clip_digest, digest), {**record, **captions[digest]}))
        if on_example is not None:
            on_example(len(examples) + number, total)
    return done


def _read(example: CaptionedClip) -> Clip:
    try:
        return read_video(example.video)
    except InputError as error:
        message = str(error)
        raise InputError(message if str(example.video) in message else f"{example.video}: {message}") from None


def _available(clip: Clip, fps: float) -> int:
    """How many frames the clip has at that rate: as many as `fit_clip` takes without complaint."""
    count = 1
    while int(count / fps * clip.fps + 0.5) <= len(clip) - 1:
        count += 1
    return count


def stack(records: Sequence[Record], device: str | torch.device) -> dict[str, Tensor]:
    """A batch of records of one bucket."""
    return {name: torch.stack([record[name] for record in records]).to(device) for name in records[0]}

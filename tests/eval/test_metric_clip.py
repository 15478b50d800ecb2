"""CLIP score and aesthetic quality: the recipe, on a small CLIP with random weights, against another computation.

OpenAI's weights cannot be had where tests run, so no golden number of the real models stands here.
"""

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from eval.metrics import Context, Metric, open_metric
from eval.metrics.clip_model import MEAN, STD, ClipModel
from eval.suite import MetricSettings
from p2e.errors import ConfigError
from p2e.render.video import Clip

SIZE = 224
SMALL = {
    "embed_dim": 16, "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Small:
    """A small CLIP: its name, its weights' file, the model, and a head."""

    name: str
    weights: str
    model: Any
    head: str


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    folder, name = tmp_path_factory.mktemp("clip"), "p2e-small-quickgelu"
    (folder / f"{name}.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    model: Any = open_clip.create_model(name)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "clip.safetensors")
    torch.save({"weight": torch.randn(1, 16), "bias": torch.tensor([5.0])}, folder / "head.pth")
    yield Small(name, str(folder / "clip.safetensors"), model.eval(), str(folder / "head.pth"))


def clip_score(small: Small, **options: Any) -> Metric:
    options = {"weights": small.weights, "model": small.name} | options
    return open_metric(MetricSettings(name="clip_score", options=options))


def random_clip(frames: int, height: int, width: int) -> Clip:
    blocks = np.random.default_rng(frames).integers(0, 256, (frames, height // 8, width // 8, 3), np.uint8)
    return Clip(blocks.repeat(8, 1).repeat(8, 2))


def by_pillow(frame: np.ndarray) -> torch.Tensor:
    """Short side to 224 by Pillow, the centre, normalised."""
    image = Image.fromarray(frame)
    scale = SIZE / min(image.size)
    size = (max(SIZE, int(image.width * scale)), max(SIZE, int(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((image.width - SIZE) / 2), round((image.height - SIZE) / 2)
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


@pytest.mark.parametrize(("frames", "height", "width"), [(33, 96, 160), (5, 240, 232), (16, 224, 224)])
def test_clip_score_by_its_recipe(small: Small, frames: int, height: int, width: int) -> None:
    clip, text = random_clip(frames, height, width), "the subject melts like wax"
    value, details = clip_score(small).score(clip, Context(text))
    cosines = []
    with torch.inference_mode():
        words = small.model.encode_text(open_clip.tokenize([text]))[0]
        for place in range(16):
            index = round(place * (frames - 1) / 15)
            picture = small.model.encode_image(by_pillow(clip.frames[index])[None])[0]
            cosines.append(float(torch.nn.functional.cosine_similarity(picture, words, dim=0)))
    assert value == pytest.approx(100 * np.mean(cosines), abs=2e-3)
    assert details == {"frames": frames, "text": text, "tokens": 7, "text_truncated": False}


def test_long_words_are_cut_and_said_to_be(small: Small) -> None:
    metric, clip = clip_score(small), random_clip(4, 64, 64)
    long = "red " * 90
    value, details = metric.score(clip, Context(long))
    assert (details["tokens"], details["text_truncated"]) == (92, True)
    assert value == metric.score(clip, Context(long + "and then blue"))[0]


def test_the_recipe_names_weights_and_frames(small: Small, tmp_path: Path) -> None:
    state = {key: value.clone().contiguous() for key, value in small.model.state_dict().items()}
    state["logit_scale"] += 1
    save_file(state, tmp_path / "other.safetensors")
    metrics = (
        clip_score(small),
        clip_score(small, frames=8),
        clip_score(small, weights=str(tmp_path / "other.safetensors")),
    )
    assert len({metric.recipe for metric in metrics}) == 3
    clip = random_clip(5, 64, 64)
    assert metrics[0].score(clip, Context("a"))[0] == metrics[2].score(clip, Context("a"))[0]  # no scale of logits


def test_aesthetic_by_its_recipe(small: Small) -> None:
    options = {"weights": small.weights, "model": small.name, "head": small.head}
    clip = random_clip(35, 96, 160)
    value, details = open_metric(MetricSettings(name="aesthetic", options=options)).score(clip, Context(""))
    head = torch.load(small.head, weights_only=True)
    scores = []
    with torch.inference_mode():
        for frame in clip.frames:
            pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
            # Short side 96 -> 224, long side cut down to whole pixels; no antialiasing, no clamp.
            pixels = torch.nn.functional.interpolate(pixels, (SIZE, 160 * SIZE // 96), mode="bicubic")
            left = round((pixels.shape[-1] - SIZE) / 2)
            pixels = pixels[..., left : left + SIZE] / 255
            pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            feature = small.model.encode_image(pixels)[0]
            scores.append(float(head["weight"][0] @ (feature / feature.norm()) + head["bias"][0]) / 10)
    assert value == pytest.approx(100 * np.mean(scores), abs=1e-3) and details == {"frames": 35}


def test_the_real_models_have_the_right_activation() -> None:
    for name, patch, width in (("ViT-B-16", 16, 768), ("ViT-L-14", 14, 1024)):
        right, plain = (open_clip.get_model_config(one) or {} for one in (f"{name}-quickgelu", name))
        assert right["quick_gelu"] and not plain.get("quick_gelu")
        shape = right["vision_cfg"]
        assert (shape["patch_size"], shape["width"], shape["image_size"]) == (patch, width, SIZE)


def test_files_of_something_else(small: Small, tmp_path: Path) -> None:
    config = json.loads(json.dumps(SMALL)) | {"quick_gelu": False}
    (tmp_path / "p2e-small-gelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "p2e-small-gelu.json")
    with pytest.raises(ConfigError, match="has no QuickGELU"):
        ClipModel("p2e-small-gelu", small.weights, "cpu")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    for path in ("other.safetensors", "text.safetensors"):
        with pytest.raises(ConfigError, match="not the weights of p2e-small-quickgelu") as error:
            clip_score(small, weights=str(tmp_path / path))
        assert "\n" not in str(error.value)


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_head_is_not_unpickled_blindly(small: Small, tmp_path: Path) -> None:
    with (tmp_path / "bomb.pth").open("wb") as file:
        pickle.dump({"weight": Bomb(tmp_path / "mark")}, file)
    torch.save({"weight": torch.randn(2, 16), "bias": torch.zeros(2)}, tmp_path / "wide.pth")
    for name in ("bomb.pth", "wide.pth", "none.pth"):
        with pytest.raises(ConfigError, match="not the head of the aesthetic score"):
            options = {"weights": small.weights, "model": small.name, "head": str(tmp_path / name)}
            open_metric(MetricSettings(name="aesthetic", options=options))
    assert not (tmp_path / "mark").exists()

"""What each family's transformer is given in training is what its own diffusers pipeline gives it.

The real pipeline renders one step of a random model, and its call of the transformer is caught; the adapter is given
the same noisy latents, time, first frame and caption, and its call must be the same, argument by argument.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import CAPTION, TINY_FAMILIES, save_family, tiny_family
from torch import Tensor

from p2e.adapt.config import FineTuneConfig
from p2e.adapt.families import open_adapter
from p2e.adapt.latents import to_model_range
from p2e.bases import open_base

FRAMES, SIDE = 9, 32
STEPS = 4


class Caught(Exception):
    """The transformer was called as often as was wanted."""


def catching(transformer: Any, call: int = 1) -> dict[str, Any]:
    """Keeps the arguments of the call of that number and ends the render there."""
    kept: dict[str, Any] = {"calls": 0}

    def hook(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        kept["calls"] += 1
        if kept["calls"] == call:
            kept["given"] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()}
            raise Caught

    transformer.register_forward_pre_hook(hook, with_kwargs=True)
    return kept


def call_of_pipeline(pipe: Any, image: Image.Image, states: Tensor | None) -> dict[str, Any]:
    """The arguments of the second step: the first, at pure noise, would hide a wrong time."""
    kept = catching(pipe.transformer, call=2)
    options: dict[str, Any] = {"image": image, "height": SIDE, "width": SIDE, "num_frames": FRAMES,
                               "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0)}  # fmt: skip
    options |= {"prompt": CAPTION} if states is None else {"prompt_embeds": states[None]}
    if "Hunyuan" in type(pipe).__name__:
        options["guidance_scale"] = 3.0
    else:
        options["guidance_scale"] = 1.0
    if "LTX" in type(pipe).__name__:
        options["frame_rate"] = 10
    if type(pipe).__name__ == "WanPipeline":
        del options["image"]
    if "CogVideoX" in type(pipe).__name__:
        options["max_sequence_length"] = 16
    with pytest.raises(Caught):
        pipe(**options)
    return kept["given"]


def noisy_of(name: str, hidden: Tensor) -> Tensor:
    """The noisy latents [1, Z, f, h, w] within what a pipeline gives its transformer."""
    if name.startswith("cogvideox"):
        return hidden.transpose(1, 2)[:, :4]
    if name == "ltx":
        cells = SIDE // 4
        return hidden.mT.unflatten(2, (-1, cells, cells))
    return hidden[:, :4]


@pytest.mark.parametrize("name", TINY_FAMILIES)
@torch.no_grad()
def test_transformer_is_called_as_the_pipeline_calls_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save_family(name, tmp_path)
    base, _ = open_base(folder)
    adapter = open_adapter(base, folder, FineTuneConfig(guidance=3.0, fps=10, weights="float32"))
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8)
    image = Image.fromarray(frames[0])
    video = to_model_range(torch.from_numpy(frames).permute(0, 3, 1, 2)[None])
    encoders = adapter.load_encoders("cpu")
    record = adapter.encode_clip(encoders, video, image) | adapter.load_text("cpu")(CAPTION, image)
    pipe = tiny_family(name)
    own_text = pipe.text_encoder is None
    given = call_of_pipeline(pipe, image, record["text"] if own_text else None)
    times = given["timestep"].max().reshape(1)

    transformer = adapter.load_transformer(base.experts[0], torch.float32, "cpu")
    kept = catching(transformer)
    batch = {key: value[None] for key, value in record.items()}
    with pytest.raises(Caught):
        adapter.predict(transformer, noisy_of(name, given["hidden_states"].float()), times, batch)
    ours = kept["given"]
    assert {key for key, value in ours.items() if value is not None} <= set(given)
    left_out = {key for key in set(given) - set(ours) if given[key] is not None}
    assert not left_out, left_out
    for key, value in ours.items():
        theirs = given.get(key)
        for own, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (value, theirs)), strict=True):
            if isinstance(own, Tensor):
                assert own.shape == other.shape, key
                torch.testing.assert_close(
                    own.float(), other.float(), atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
                )
            else:
                assert own == other, key

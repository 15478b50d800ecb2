"""`p2e adapt` on a tiny pipeline folder: from scratch, from a given LoRA, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_base, tiny_lora, tiny_pipeline

from p2e.adapt.config import AdaptConfig
from p2e.adapt.run import adapt
from p2e.bases import open_base
from p2e.errors import InputError
from p2e.lora.formats import read_lora, write_lora
from p2e.render.video import Clip, write_mp4

CONFIG = AdaptConfig(rank=2, steps=2, batch=2, precision="float32")
SIZE = (5, 32, 32)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for i in range(2):
        write_mp4(folder / f"{i}.mp4", Clip(random.integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)))
        (folder / f"{i}.txt").write_text("a red light")
    return folder


def test_two_steps_from_scratch(pipeline: Path, clips: Path, tmp_path: Path):
    steps: list[int] = []
    out = tmp_path / "effect.safetensors"
    lora = adapt(clips, pipeline, out, CONFIG, size=SIZE, on_step=lambda step, _: steps.append(step))
    assert steps == [0, 1]
    read = read_lora(out, open_base(str(pipeline))[0])
    assert len(read.factors) == len(tiny_base().sites) and read.rank == lora.rank == 2
    assert any(f.b.abs().max() > 0 for f in read.factors.values())


def test_from_a_given_lora_of_any_rank(pipeline: Path, clips: Path, tmp_path: Path):
    base = open_base(str(pipeline))[0]
    for rank in (1, 2, 6):
        given = tmp_path / f"given{rank}.safetensors"
        write_lora(given, tiny_lora(base, rank=rank), base)
        still = AdaptConfig(rank=2, steps=1, learning_rate=1e-12, precision="float32")
        lora = adapt(clips, pipeline, tmp_path / "out.safetensors", still, init=given, size=SIZE)
        if rank <= 2:
            key = base.sites[0].key
            start = read_lora(given, base).factors[key].delta()
            assert (lora.factors[key].delta() - start).norm() < 1e-3 * start.norm()
        assert lora.rank == 2


def test_sizes_that_do_not_fit_are_refused(pipeline: Path, clips: Path, tmp_path: Path):
    with pytest.raises(InputError, match="wants 4 n \\+ 1"):
        adapt(clips, pipeline, tmp_path / "x.safetensors", CONFIG, size=(4, 32, 32))
    with pytest.raises(InputError, match="multiples of 8"):
        adapt(clips, pipeline, tmp_path / "x.safetensors", CONFIG, size=(5, 32, 30))


def test_a_name_without_weights_is_refused(clips: Path, tmp_path: Path):
    with pytest.raises(InputError, match="give the folder"):
        adapt(clips, "wan2.1-i2v-14b", tmp_path / "x.safetensors", CONFIG, size=SIZE)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_base_of_two_transformers_is_refused(clips: Path, tmp_path: Path):
    pipe = tiny_pipeline()
    for name in ("transformer", "transformer_2"):
        pipe.transformer.save_pretrained(tmp_path / "two" / name)
    with pytest.raises(InputError, match="one transformer"):
        adapt(clips, tmp_path / "two", tmp_path / "x.safetensors", CONFIG, size=SIZE)

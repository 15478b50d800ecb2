"""`p2e adapt` on a tiny pipeline folder: from scratch, from a given LoRA, and what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_base, tiny_lora, tiny_pipeline

from p2e.adapt.config import AdaptConfig, FineTuneConfig
from p2e.adapt.families.wan import WanAdapter
from p2e.adapt.run import adapt, config_path
from p2e.bases import open_base
from p2e.errors import ConfigError, InputError
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


def settings_beside(path: Path) -> FineTuneConfig:
    return FineTuneConfig.load(config_path(path))


def test_the_resolved_settings_stand_beside_it(pipeline: Path, clips: Path, tmp_path: Path):
    out = tmp_path / "effect.safetensors"
    adapt(clips, pipeline, out, CONFIG, size=SIZE)
    found = settings_beside(out)
    assert out.with_suffix(".json").is_file()
    # What was not given came from the base: its scheduler's shift, and the rate it was made for.
    assert (found.shift, found.fps, found.buckets, found.rank) == (3.0, 8.0, (SIZE,), 2)
    again = tmp_path / "again.safetensors"
    adapt(clips, pipeline, again, found)
    assert out.read_bytes() == again.read_bytes()


def test_a_second_run_loads_neither_autoencoder_nor_text_encoder(
    pipeline: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = FineTuneConfig(rank=2, steps=2, precision="float32", buckets=(SIZE,), cache=str(tmp_path / "cache"))
    first = adapt(clips, pipeline, tmp_path / "one.safetensors", config)
    loaded: list[str] = []
    encode, text = WanAdapter.load_encoders, WanAdapter.load_text
    monkeypatch.setattr(WanAdapter, "load_encoders", lambda *a: (loaded.append("clips"), encode(*a))[1])
    monkeypatch.setattr(WanAdapter, "load_text", lambda *a: (loaded.append("text"), text(*a))[1])
    second = adapt(clips, pipeline, tmp_path / "two.safetensors", config)
    assert loaded == []
    with monkeypatch.context() as patch:  # nor is a video decoded
        patch.setattr("p2e.adapt.clips.read_video", lambda path: pytest.fail(f"{path} was decoded"))
        adapt(clips, pipeline, tmp_path / "three.safetensors", config)
    assert all(torch.equal(f.b, second.factors[key].b) for key, f in first.factors.items())
    # Another size, caption or autoencoder is another record.
    adapt(clips, pipeline, tmp_path / "x.safetensors", config.model_copy(update={"buckets": ((5, 40, 40),)}))
    assert loaded == ["clips"]
    (clips / "1.txt").write_text("a green light")
    adapt(clips, pipeline, tmp_path / "y.safetensors", config)
    (clips / "1.txt").write_text("a red light")
    assert loaded == ["clips", "text"]
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)
    vae = tiny_pipeline(seed=7).vae
    vae.save_pretrained(other / "vae")
    adapt(clips, other, tmp_path / "z.safetensors", config)
    assert loaded == ["clips", "text", "clips"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_was_cut_off_goes_on_to_the_same_lora(pipeline: Path, clips: Path, tmp_path: Path, accumulate: int):
    config = FineTuneConfig(
        rank=2, steps=6, precision="float32", buckets=(SIZE,), save_every=2, accumulate=accumulate, learning_rate=1e-2
    )
    whole = adapt(clips, pipeline, tmp_path / "whole.safetensors", config)
    out = tmp_path / "cut.safetensors"

    def cut(step: int, _: torch.Tensor) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(clips, pipeline, out, config, on_step=cut)
    assert not out.exists()
    with pytest.raises(InputError, match="unfinished run of other settings"):
        adapt(clips, pipeline, out, config.model_copy(update={"seed": 1}))
    steps: list[int] = []
    resumed = adapt(clips, pipeline, out, config, on_step=lambda step, _: steps.append(step))
    assert steps == [4, 5]
    for key, factors in whole.factors.items():
        assert torch.equal(factors.a, resumed.factors[key].a) and torch.equal(factors.b, resumed.factors[key].b)
    base = open_base(str(pipeline))[0]
    both = [read_lora(tmp_path / name, base).provenance for name in ("whole.safetensors", "cut.safetensors")]
    assert both[0].metadata["p2e.loss"] == both[1].metadata["p2e.loss"]
    assert {p.name for p in tmp_path.iterdir()} == {"whole.safetensors", "whole.json", "cut.safetensors", "cut.json"}


def test_only_the_sites_asked_for(pipeline: Path, clips: Path, tmp_path: Path):
    base = open_base(str(pipeline))[0]
    given = tmp_path / "given.safetensors"
    write_lora(given, tiny_lora(base, rank=2), base)
    for patterns, count in (
        (("self_attn.*",), 8), (("blocks.0.*",), 10), (("re:cross_attn\\.[qk]$", "ffn.0"), 6), (("*",), 20)
    ):  # fmt: skip
        config = FineTuneConfig(rank=2, steps=1, precision="float32", buckets=(SIZE,), sites=patterns)
        lora = adapt(clips, pipeline, tmp_path / "x.safetensors", config)
        assert len(lora.factors) == count, patterns
    few = FineTuneConfig(rank=2, steps=1, precision="float32", buckets=(SIZE,), sites=("self_attn.*",))
    for config, init, said in (
        (few.model_copy(update={"sites": ("nothing",)}), None, "'nothing' names no site of custom"),
        (few.model_copy(update={"sites": ("re:(",)}), None, "no regular expression"),
        (few, given, "12 sites that are not to be trained"),
        (few.model_copy(update={"expert": "low_noise"}), None, "has one transformer"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            adapt(clips, pipeline, tmp_path / "x.safetensors", config, init=init)
        assert "\n" not in str(caught.value)


def test_gradients_over_several_batches_are_averaged(pipeline: Path, clips: Path, tmp_path: Path):
    losses: list[list[float]] = []
    for accumulate in (1, 2):
        config = FineTuneConfig(
            rank=2, steps=4 // accumulate, precision="float32", buckets=(SIZE,), accumulate=accumulate,
            learning_rate=1e-12,
        )  # fmt: skip
        seen: list[float] = []
        adapt(
            clips, pipeline, tmp_path / "x.safetensors", config, on_step=lambda _, x, seen=seen: seen.append(x.item())
        )
        losses.append(seen)
    single, double = losses
    assert double == pytest.approx([(single[0] + single[1]) / 2, (single[2] + single[3]) / 2], rel=1e-4)


def test_checkpointing_changes_nothing_but_memory(pipeline: Path, clips: Path, tmp_path: Path):
    config = FineTuneConfig(rank=2, steps=2, precision="float32", buckets=(SIZE,), learning_rate=1e-2)
    plain = adapt(clips, pipeline, tmp_path / "a.safetensors", config)
    saving = adapt(clips, pipeline, tmp_path / "b.safetensors", config.model_copy(update={"checkpointing": True}))
    for key, factors in plain.factors.items():
        torch.testing.assert_close(saving.factors[key].b, factors.b, atol=1e-6, rtol=1e-4)


def test_a_base_in_bfloat16(pipeline: Path, clips: Path, tmp_path: Path):
    config = FineTuneConfig(rank=2, steps=2, buckets=(SIZE,), weights="bfloat16")
    lora = adapt(clips, pipeline, tmp_path / "a.safetensors", config)
    assert all(f.a.dtype == torch.float32 for f in lora.factors.values())
    assert any(f.b.abs().max() > 0 for f in lora.factors.values())
    with pytest.raises(ConfigError, match="bfloat16 cannot be trained with precision: float32"):
        FineTuneConfig.parse({"weights": "bfloat16", "precision": "float32"})


@pytest.mark.parametrize(("part", "said"), [("model_index.json", "no model_index.json"), ("vae", "no config.json")])
def test_half_a_folder_is_refused(pipeline: Path, clips: Path, tmp_path: Path, part: str, said: str):
    folder = tmp_path / "half"
    shutil.copytree(pipeline, folder)
    if (folder / part).is_dir():
        shutil.rmtree(folder / part)
    else:
        (folder / part).unlink()
    with pytest.raises(InputError, match=said) as caught:
        adapt(clips, folder, tmp_path / "x.safetensors", CONFIG, size=SIZE)
    assert "\n" not in str(caught.value)

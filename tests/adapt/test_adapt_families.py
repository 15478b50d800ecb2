"""Two training steps of every family, from a folder of clips to a LoRA file; sites of several layers; two experts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import CAPTION, TINY_FAMILIES, save_family, tiny_family

from p2e.adapt.config import FineTuneConfig
from p2e.adapt.expert import times_of
from p2e.adapt.families import open_adapter
from p2e.adapt.grouped import GroupedLoras
from p2e.adapt.run import adapt
from p2e.bases import open_base
from p2e.errors import FormatError, InputError
from p2e.lora.formats import read_lora, write_lora
from p2e.lora.lora import Factors, Lora
from p2e.render.slot import LoraSlot
from p2e.render.video import Clip, write_mp4

SETTINGS: dict[str, Any] = {"rank": 2, "steps": 2, "batch": 2, "learning_rate": 1e-3, "weights": "float32"}
BUCKET = {"buckets": ((5, 32, 32),), "fps": 24.0}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for i in range(2):
        write_mp4(folder / f"{i}.mp4", Clip(random.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8), 24))
        (folder / f"{i}.txt").write_text(CAPTION)
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_two_steps(name: str, precision: str, clips: Path, tmp_path: Path) -> None:
    folder = save_family(name, tmp_path / "base")
    base = open_base(folder)[0]
    losses: list[float] = []
    out = tmp_path / "effect.safetensors"
    weights = "auto" if precision == "float32" else "bfloat16"
    config = FineTuneConfig.parse(SETTINGS | BUCKET | {"precision": precision, "weights": weights})
    lora = adapt(clips, folder, out, config, on_step=lambda _, loss: losses.append(loss.item()))
    assert len(losses) == 2 * len(base.experts) and np.isfinite(losses).all() and min(losses) > 0
    files = [out] if len(base.experts) == 1 else [out.with_name(f"effect_{e}.safetensors") for e in base.experts]
    read = {key: factors for file in files for key, factors in read_lora(file, base).factors.items()}
    assert list(read) == list(lora.factors) == [site.key for site in base.sites]
    # Every site learns, but those whose output nothing reads: the text stream of the last joint block.
    still = {key for key, factors in read.items() if factors.b.abs().max() == 0}
    assert len(still) <= 3, still
    for key, factors in read.items():
        torch.testing.assert_close(factors.b, lora.factors[key].b, atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("name", ["hunyuan", "ltx", "cogvideox"])
def test_sites_of_any_family_train_side_by_side(name: str) -> None:
    """Each group sees its own update, whether a site is one layer or several, and the base is left as it was."""
    torch.manual_seed(0)
    pipe, base = tiny_family(name), None
    transformer = pipe.transformer
    config = {"_class_name": type(transformer).__name__, **transformer.config}
    base = custom_base(config)
    generator = torch.Generator().manual_seed(1)
    loras = [
        Lora(base.name, {
            s.key: Factors(torch.randn(r, s.d_in, generator=generator) * s.d_in**-0.5,
                           torch.randn(s.d_out, r, generator=generator) * 0.3) for s in base.sites})
        for r in (2, 3)
    ]  # fmt: skip
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    x = inputs_of(name, 2)
    with torch.no_grad():
        plain = transformer(**x)[0]
        with GroupedLoras(base, 2, 3, init=loras).attached(transformer) as parameters:
            together = transformer(**x)[0]
        assert len(parameters) == sum(1 + len(site.parts) for site in base.sites)
        for group, lora in enumerate(loras):
            slot = LoraSlot(transformer, base, 3)
            slot.load(lora)
            alone = transformer(**x)[0]
            slot.remove()
            torch.testing.assert_close(together[group], alone[group], atol=1e-4, rtol=1e-3)
            assert (alone[group] - plain[group]).abs().max() > 1e-3
        assert torch.equal(transformer(**x)[0], plain)
    after = transformer.state_dict()
    assert list(after) == list(before) and all(torch.equal(value, before[key]) for key, value in after.items())


def custom_base(config: dict[str, Any]) -> Any:
    from p2e.bases.checkpoint import Checkpoint
    from p2e.bases.detect import detect_base

    described = Checkpoint("model", [])
    described.__dict__.update(shapes={}, config=config, tensors={})
    return detect_base({None: described})


def inputs_of(name: str, rows: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator)

    text = {"encoder_hidden_states": draw(16, 32), "return_dict": False}
    times = torch.full((rows,), 500.0)
    if name == "hunyuan":
        return {"hidden_states": draw(4, 2, 4, 4), "timestep": times, "encoder_attention_mask": torch.ones(rows, 16),
                "pooled_projections": draw(16), "guidance": times, **text}  # fmt: skip
    if name == "ltx":
        return {"hidden_states": draw(32, 8), "timestep": times[:, None].expand(-1, 32), "num_frames": 2, "height": 4,
                "width": 4, "encoder_attention_mask": torch.ones(rows, 16), **text}  # fmt: skip
    rotary = (torch.ones(8, 16), torch.zeros(8, 16))
    return {"hidden_states": draw(2, 8, 4, 4), "timestep": times, "image_rotary_emb": rotary, **text}


def test_experts_are_trained_on_their_side(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from p2e.adapt.families.wan import WanAdapter

    folder = save_family("wan2.2-i2v", tmp_path / "base")
    base = open_base(folder)[0]
    adapter = open_adapter(base, folder, FineTuneConfig())
    assert [times_of(adapter, expert) for expert in base.experts] == [(0.9, 1.0), (0.0, 0.9)]
    seen: list[float] = []
    loss = WanAdapter.loss
    monkeypatch.setattr(
        WanAdapter, "loss", lambda self, m, b, times, n: (seen.extend(times.tolist()), loss(self, m, b, times, n))[1]
    )
    config = FineTuneConfig.parse(SETTINGS | BUCKET | {"precision": "float32", "steps": 5})
    out = tmp_path / "effect.safetensors"
    adapt(clips, folder, out, config)
    assert len(seen) == 20 and all(0.9 <= t <= 1 for t in seen[:10]) and all(0 <= t < 0.9 for t in seen[10:])
    both = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert both == ["effect_high_noise.safetensors", "effect_low_noise.safetensors"]
    # One alone, from scratch and from the file of the first run.
    for init in (None, tmp_path / "effect_low_noise.safetensors"):
        seen.clear()
        low = config.model_copy(update={"expert": "low_noise"})
        lora = adapt(clips, folder, tmp_path / "low.safetensors", low, init=init)
        assert {base.by_key[key].expert for key in lora.factors} == {"low_noise"} and max(seen) < 0.9
    assert set(read_lora(tmp_path / "low.safetensors", base).factors) == set(lora.factors)
    pair = [tmp_path / name for name in both]
    assert len(adapt(clips, folder, out, config, init=pair).factors) == len(base.sites)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"boundary_ratio": 0.9', '"boundary_ratio": null'))
    with pytest.raises(FormatError, match="boundary_ratio"):
        adapt(clips, folder, out, config)


def test_clips_of_several_shapes_find_their_buckets(tmp_path: Path) -> None:
    folder, clips = save_family("wan2.1-t2v", tmp_path / "base"), tmp_path / "clips"
    for i, (frames, height, width) in enumerate(((20, 64, 64), (20, 36, 64), (6, 64, 64), (20, 48, 48))):
        write_mp4(clips / f"{i}.mp4", Clip(np.full((frames, height, width, 3), 40 * i, np.uint8), 16))
        (clips / f"{i}.txt").write_text(CAPTION)
    config = FineTuneConfig.parse(
        SETTINGS | {"precision": "float32", "steps": 4, "frames": 17, "pixels": 64 * 64, "sites": ["self_attn.q"]}
    )
    adapt(clips, folder, tmp_path / "x.safetensors", config)
    assert FineTuneConfig.load(tmp_path / "x.json").buckets == ((17, 64, 64), (17, 48, 80), (5, 64, 64))


def test_learned_positions_take_one_size(clips: Path, tmp_path: Path) -> None:
    folder = save_family("cogvideox", tmp_path / "base")
    config = FineTuneConfig.parse(SETTINGS | {"precision": "float32", "buckets": ((5, 64, 64),)})
    with pytest.raises(InputError, match="takes clips of 32 x 32 alone"):
        adapt(clips, folder, tmp_path / "x.safetensors", config)
    found = config.model_copy(update={"buckets": None, "fps": 24.0, "frames": 9})
    lora = adapt(clips, folder, tmp_path / "x.safetensors", found)
    assert lora.factors
    saved = FineTuneConfig.load(tmp_path / "x.json")
    assert (saved.buckets, saved.sampling, saved.shift) == (((9, 32, 32),), "uniform", 1.0)


def test_a_lora_of_fused_sites_is_a_fair_start(clips: Path, tmp_path: Path) -> None:
    folder = save_family("hunyuan", tmp_path / "base")
    base = open_base(folder)[0]
    given = {s.key: Factors(torch.randn(2, s.d_in), torch.randn(s.d_out, 2)) for s in base.sites}
    path = tmp_path / "given.safetensors"
    write_lora(path, Lora(base.name, given), base, fmt="diffusers", dtype=torch.float32)
    still = FineTuneConfig.parse(SETTINGS | BUCKET | {"precision": "float32", "learning_rate": 1e-12, "rank": 3})
    lora = adapt(clips, folder, tmp_path / "x.safetensors", still, init=path)
    assert lora.rank == 3
    for key, factors in given.items():
        torch.testing.assert_close(lora.factors[key].delta(), factors.delta(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "change", "said"), [
    ("hunyuan", {"image_condition_type": None}, "cannot start from an image"),
    ("cogvideox", {"in_channels": 4}, "cannot start from"),
    ("world", {"in_channels": 11}, "of no form that can be trained"),
])  # fmt: skip
def test_forms_that_cannot_be_trained_are_refused(name: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    import json

    folder = save_family(name, tmp_path / "base")
    base = open_base(folder)[0]
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(FormatError, match=said) as caught:
        open_adapter(base, folder, FineTuneConfig())
    assert "\n" not in str(caught.value)

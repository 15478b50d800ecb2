"""Varied prompts: random numbers that are a function of the row, targets that follow the prompts, resumable runs."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import TinyRun
from torch import Tensor

from p2e.config import AugmentConfig, LossConfig
from p2e.files import SafetensorsFile, write_safetensors
from p2e.hypernet.losses import blended_errors, site_errors
from p2e.training.augment import augmented, normal, uniform
from p2e.training.batches import Sampler
from p2e.training.step import Objective

VARIED: dict[str, Any] = {
    "hypernet": {"text": {"form": "sentence", "whiten": "centre", "anchors": 6}},
    "augment": {"noise": 0.5, "mix": 0.5, "blend": 0.4},
}
KEYS = torch.tensor([1, 2**62 + 5, 77])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"), uncovered="ffn.0")


def state(folder: Path) -> dict[str, Tensor]:
    with SafetensorsFile(folder / "training.safetensors") as file:
        return file.read_all()


def splitmix(x: int) -> int:
    """The finaliser, on integers of any size."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift)) * factor % 2**64
    return x ^ (x >> 31)


@given(st.integers(0, 2**63 - 1), st.integers(1, 4))
def test_the_hash_is_splitmix(key: int, stream: int) -> None:
    first = splitmix(key * 64 + stream & (2**64 - 1))
    expected = [
        ((splitmix(first + i * 0x9E3779B97F4A7C15 & (2**64 - 1)) >> 40 & 0xFFFFFF) + 0.5) / 2**24 for i in (1, 2)
    ]
    assert uniform(torch.tensor([key]), 2, stream)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_random_numbers_have_their_distribution_and_streams_are_apart() -> None:
    u, n = uniform(KEYS, 40_001, 1), normal(KEYS, 40_001, 1)
    assert u.shape == n.shape == (3, 40_001)
    assert float(u.min()) > 0 and float(u.max()) < 1
    torch.testing.assert_close(u.mean(1), torch.full((3,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(u.var(1), torch.full((3,), 1 / 12), atol=0.003, rtol=0)
    torch.testing.assert_close(n.mean(1), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(n.var(1), torch.ones(3), atol=0.05, rtol=0)
    both = torch.cat([u, uniform(KEYS, 40_001, 2)])
    assert float((torch.corrcoef(both) - torch.eye(6)).abs().max()) < 0.03


def batch(tokens: int = 5, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text, other = (torch.randn(3, tokens, width, generator=generator) for _ in range(2))
    mask = torch.arange(tokens) < torch.tensor([[1], [3], [5]])
    return text * mask[..., None], mask, other * mask[..., None]


def test_dropped_tokens_are_real_ones_and_one_always_stays() -> None:
    text, mask, other = batch()
    kept = torch.zeros(3, 5)
    for i in range(200):
        found = augmented(text, mask, other, KEYS + i, AugmentConfig(token_dropout=0.5))
        assert torch.equal(found.text, text) and found.share is None
        assert bool((found.mask <= mask).all()) and bool(found.mask.any(1).all())
        kept += found.mask
    assert float(kept[0, 0]) == 200
    assert bool((kept[2] > 70).all()) and bool((kept[2] < 140).all())


def test_noise_is_in_units_of_the_states_and_leaves_padding() -> None:
    text, mask, other = batch(width=20_000)
    found = augmented(text * 3, mask, other, KEYS, AugmentConfig(noise=0.5))
    added = found.text - text * 3
    size = added.square().mean(-1).sqrt()
    torch.testing.assert_close(size[mask], torch.full((9,), 1.5), atol=0.05, rtol=0)
    assert float(added[~mask].abs().max()) == 0


def test_mixed_prompts_lie_between_two() -> None:
    text, mask, other = batch(tokens=1)
    mask = torch.ones_like(mask)
    found = augmented(text, mask, other, KEYS, AugmentConfig(mix=1.0)).text
    share = ((found - text) / (other - text)).flatten(1)
    torch.testing.assert_close(share, share[:, :1].expand_as(share), rtol=1e-3, atol=1e-4)
    assert bool(((share > 0) & (share < 1)).all())
    some = [augmented(text, mask, other, KEYS + i, AugmentConfig(mix=0.3)).text for i in range(100)]
    assert 50 < sum(int((x != text).any((1, 2)).sum()) for x in some) < 130


def test_blends_are_of_neighbours_by_the_share_that_the_target_has() -> None:
    text, mask, other = batch(tokens=1)
    found = augmented(text, mask, other, KEYS, AugmentConfig(blend=0.7))
    assert found.share is not None and found.share[2] == 0 and bool((found.share[:2] > 0).all())
    assert float(found.share.max()) <= 0.5
    torch.testing.assert_close(found.text, torch.lerp(text, text.roll(-1, 0), found.share[:, None, None]))


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_errors_of_a_blend_are_those_of_the_blended_update(kind: Literal["mean", "sum"]) -> None:
    generator = torch.Generator().manual_seed(1)
    a_hat, a = (torch.randn(2, 3, 4, 9, generator=generator) for _ in range(2))
    b_hat, b = (torch.randn(2, 3, 7, 4, generator=generator) for _ in range(2))
    weight = torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 3.0]])
    share = torch.tensor([0.25, 0.4, 0.0])
    own = site_errors(a_hat, b_hat, a, b, 0.0)
    found, weights = blended_errors(own, a_hat, b_hat, a, b, weight, share, 0.0, kind)
    update = b @ a
    part = share[:, None, None]
    first, second = (1 - part, part) if kind == "mean" else (1, 2 * part)
    target = first * update + second * update.roll(-1, 1)
    dense = (b_hat @ a_hat - target).square().sum((-1, -2)) / target.square().sum((-1, -2))
    torch.testing.assert_close(found.update, dense)
    torch.testing.assert_close(found.factor[:, :2], dense[:, :2])
    torch.testing.assert_close(found.factor[:, 2], own.factor[:, 2])
    assert weights.tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 3.0]]


def test_rows_name_what_augmentation_needs_after_what_they_always_held() -> None:
    values: dict[str, Any] = {
        "sizes": (5, 2), "draws": (2, 1), "effects": (0, 2), "prompts": ((0, 2), (4, 3)), "effects_per_step": 2,
    }  # fmt: skip
    plain, varied = Sampler(**values), Sampler(**values, augment=True)
    assert varied.widths == (*plain.widths, 2, 2)
    keys = set()
    for step in range(20):
        row = varied.row(step)
        assert row[:7] == plain.row(step) and row == varied.row(step)
        for prompt, other in zip(row[5:7], row[7:9], strict=True):
            assert (prompt < 2) == (other < 2)
        keys |= set(row[9:])
    assert len(keys) == 40


def test_a_resumed_varied_run_is_the_same_to_the_bit(tiny: TinyRun) -> None:
    settings = VARIED | {"steps": 8, "ema": 0.9}
    whole = tiny.trainer("whole", **settings)
    whole.run()
    tiny.trainer("parts", **settings).run(until=4)
    torch.manual_seed(99)
    second = tiny.trainer("parts", **settings)
    assert second.step == 4
    second.run()
    known, found = state(tiny.folder / "whole"), state(tiny.folder / "parts")
    del known["random.cpu"], found["random.cpu"]
    assert known.keys() == found.keys() and all(torch.equal(known[name], found[name]) for name in known)


def test_varied_streamed_and_resident_data_train_alike(tiny: TinyRun) -> None:
    runs = [tiny.trainer(f"from{gb}", **VARIED, steps=3, resident_gb=gb) for gb in (1, 0)]
    for run in runs:
        run.run()
    one, other = ([entry["loss"] for entry in run.history] for run in runs)
    assert one == pytest.approx(other, rel=1e-5)


def test_varied_shapes_never_change(tiny: TinyRun) -> None:
    trainer = tiny.trainer("compiled", **VARIED, steps=4)
    torch._dynamo.reset()
    objective = torch.compile(Objective(trainer.model, trainer.config.loss), backend="eager", dynamic=False)
    eager = Objective(trainer.model, LossConfig(update=0.5))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for some in trainer.source.batches(trainer.sampler.plan(0, 4), trainer.sampler.widths):
            assert some.share is not None and int((some.share > 0).sum()) == 1
            torch.testing.assert_close(objective(some).loss, eager(some).loss)


def test_a_varied_run_learns(tiny: TinyRun) -> None:
    trainer = tiny.trainer("learns", **VARIED, steps=40, sites_per_step=20, effects_per_step=6, learning_rate=4e-3)
    before = trainer.evaluate()["train/update_error"]
    trainer.run()
    assert trainer.evaluate()["train/update_error"] < 0.9 * before


def test_a_run_from_before_these_settings_goes_on(tiny: TinyRun) -> None:

    folder = tiny.trainer("before", steps=2).run()
    with SafetensorsFile(folder / "training.safetensors") as file:
        tensors, metadata = file.read_all(), dict(file.metadata)
    settings = json.loads(metadata["settings"])
    del settings["config"]["augment"], settings["config"]["hypernet"]["text"]
    write_safetensors(folder / "training.safetensors", tensors, metadata | {"settings": json.dumps(settings)})
    assert tiny.trainer("before", steps=4).step == 2

"""The tiny judge's training: clips deserve their verdicts; a run that was broken off ends as one that was not."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.judge.clip_store import ClipConfig, ClipStore
from eval.judge.local_backend import model_inputs
from eval.judge.tiny import TinyConfig, build_model, build_processor
from eval.judge.tiny_score import rank_correlation, shown
from eval.judge.train import TrainTinyConfig, train
from eval.judge.world_data import KINDS, SOURCES, draw_examples
from eval.judge.world_words import elements, phrase
from eval.metrics.oracle import true_clip
from p2e.errors import ConfigError
from p2e.files import SafetensorsFile
from p2e.world.effects import EFFECTS

SMALL = TrainTinyConfig(
    model=TinyConfig(width=64, layers=1, vision_layers=1),
    clips=ClipConfig(parts=2, clips=3, wordings=2, grow=1, rendered=False),
    steps=3, batch=2, keep_every=1, measured=8,
)  # fmt: skip


def test_verdicts_follow_the_oracle() -> None:
    examples = [one for kind in KINDS for one in draw_examples(3, 3, kinds=[kind])]
    for one in examples:
        verdict = one.verdict
        assert one.clip.shape == (17, 3, 96, 96)
        assert verdict.effect == round(60 * max(one.fidelity, 0))
        if one.kind == "truth":
            assert verdict.total > 80 and not verdict.hard_fail
        if one.kind in ("still", "noise"):
            assert verdict.hard_fail and verdict.effect == 0 and verdict.total <= 20
    seen, asked = examples[0].verdict.reason.removesuffix(".").removeprefix("Seen: ").split(". Asked: ")
    assert examples[0].kind == "truth" and seen == asked


def test_draws_are_their_seeds_and_unseen_ones_are_unseen() -> None:
    first, again, other = draw_examples(5, 2), draw_examples(5, 2), draw_examples(6, 2)
    assert all((a.clip == b.clip).all() and a.prompts == b.prompts for a, b in zip(first, again, strict=True))
    assert any((a.clip != b.clip).any() for a, b in zip(first, other, strict=True))
    trained = {prompt for spec in EFFECTS if spec.split == "train" for prompt in spec.train_prompts}
    for source in SOURCES[1:]:
        assert not trained & {one.prompt for one in draw_examples(0, 4, source)}
    assert true_clip("red_mood", 3).shape == first[0].clip.shape


def test_effects_are_told_apart_by_their_words() -> None:
    phrases = [phrase(spec.parameters) for spec in EFFECTS]
    assert len(set(phrases)) > 0.97 * len(EFFECTS) and all(elements(spec.parameters) for spec in EFFECTS)
    assert phrase({}) == "nothing"


def test_inputs_hold_sixteen_frames() -> None:
    inputs = model_inputs(build_processor(SMALL.model), shown(draw_examples(1, 2)))
    assert inputs["video_grid_thw"].tolist() == [[8, 6, 6]] * 2 and inputs["image_grid_thw"].tolist() == [[1, 6, 6]] * 2


def test_clips_are_kept_and_a_batch_is_its_steps(tmp_path: Path) -> None:
    processor = build_processor(SMALL.model)

    def store() -> ClipStore:
        return ClipStore(tmp_path, SMALL.clips, SMALL.model, 0, "cpu", 0)

    first, again = store(), store()
    _, tail, labels = first.batch(0, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["000.safetensors"]
    told = tail[0][labels[0] >= 0]
    assert (
        processor.tokenizer.decode(told).startswith('{"reason":"Seen: ') and (labels[0][labels[0] >= 0] == told).all()
    )
    assert all(torch.equal(a, b) for a, b in zip(first.batch(7, 4), again.batch(7, 4), strict=True))
    assert len(list(tmp_path.iterdir())) == 2
    assert any(not torch.equal(a, b) for a, b in zip(first.batch(7, 4), first.batch(8, 4), strict=True))


@pytest.mark.slow
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", SMALL, "cpu", lambda line: None)
    assert train(tmp_path / "broken", SMALL, "cpu", lambda line: None, until=time.monotonic()) is None
    assert torch.load(tmp_path / "broken" / "state.pt", weights_only=True)["step"] == 1
    again = train(tmp_path / "broken", SMALL, "cpu", lambda line: None)
    assert whole is not None and again is not None
    with SafetensorsFile(whole / "model.safetensors") as one, SafetensorsFile(again / "model.safetensors") as two:
        assert one.keys() == two.keys()
        assert all(torch.equal(one.read(name), two.read(name)) for name in one.keys())  # noqa: SIM118
    with pytest.raises(ConfigError, match="other settings"):
        train(tmp_path / "whole", SMALL.model_copy(update={"batch": 3}), "cpu")


def test_the_default_fits_its_limit() -> None:
    config = TrainTinyConfig().model
    with torch.device("meta"):
        model = build_model(config, build_processor(config).tokenizer)
    assert 2 * sum(weight.numel() for weight in model.parameters()) < 16e6


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert rank_correlation([1, 2], [3, 3]) is None and rank_correlation([1], [1]) is None
    assert rank_correlation(np.arange(5).tolist(), [5, 4, 3, 2, 1]) == pytest.approx(-1)

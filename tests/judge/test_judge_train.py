"""The tiny judge's training: clips deserve their verdicts; a run that was broken off ends as one that was not."""

from pathlib import Path

import pytest
import torch

from eval.judge.tiny import TinyConfig, build_processor
from eval.judge.train import TrainTinyConfig, model_inputs, rank_correlation, train
from eval.judge.world_data import KINDS, Example, draw_examples
from eval.metrics.oracle import true_clip
from p2e.errors import ConfigError
from p2e.files import SafetensorsFile

SMALL = TrainTinyConfig(
    model=TinyConfig(width=64, layers=1, vision_layers=1), steps=2, batch=2, keep_every=1, measured=8
)


def test_verdicts_follow_the_oracle() -> None:
    for kind in KINDS:
        for one in draw_examples(3, 3, kinds=[kind]):
            verdict = one.verdict
            assert one.clip.shape == (17, 3, 96, 96) and one.kind == kind
            assert verdict.effect == round(60 * max(one.fidelity, 0))
            if kind == "truth":
                assert (verdict.total, verdict.hard_fail) == (100, False)
            if kind in ("still", "noise"):
                assert verdict.hard_fail and verdict.effect == 0 and verdict.total <= 20


def test_draws_are_their_seeds_and_unseen_ones_are_unseen() -> None:
    first, again, other = draw_examples(5, 2), draw_examples(5, 2), draw_examples(6, 2)
    assert all((a.clip == b.clip).all() and a.prompt == b.prompt for a, b in zip(first, again, strict=True))
    assert any((a.clip != b.clip).any() for a, b in zip(first, other, strict=True))
    seen = {one.prompt for one in draw_examples(0, 6)}
    assert not seen & {one.prompt for one in draw_examples(0, 6, unseen=True)}
    assert true_clip("red_mood", 3).shape == first[0].clip.shape


def test_inputs_hold_sixteen_frames_and_label_the_answer_alone() -> None:
    processor = build_processor(SMALL.model)
    examples = draw_examples(1, 2)
    inputs = model_inputs(processor, examples, 1024)
    assert inputs["video_grid_thw"].tolist() == [[8, 6, 6]] * 2 and inputs["input_ids"].shape == (2, 1024)
    for row, one in enumerate(examples):
        told = inputs["labels"][row]
        assert processor.tokenizer.decode(told[told >= 0]) == one.verdict.model_dump_json() + "<|im_end|>"
        assert (told[told >= 0] == inputs["input_ids"][row][told >= 0]).all()
    with pytest.raises(ConfigError, match="too few"):
        model_inputs(processor, examples, 128)


@pytest.mark.slow
def test_two_steps_and_a_run_that_was_broken_off(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", SMALL, "cpu", lambda line: None)

    class Killed(Exception):
        pass

    drawn = draw_examples

    def until_the_second(seed: int, count: int) -> list[Example]:
        if seed % (1 << 32) == 1:
            raise Killed
        return drawn(seed, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.judge.train.draw_examples", until_the_second)
        with pytest.raises(Killed):
            train(tmp_path / "broken", SMALL, "cpu", lambda line: None)
    state = torch.load(tmp_path / "broken" / "state.pt", weights_only=True)
    assert state["step"] == 1
    again = train(tmp_path / "broken", SMALL, "cpu", lambda line: None)
    with SafetensorsFile(whole / "model.safetensors") as one, SafetensorsFile(again / "model.safetensors") as two:
        assert one.keys() == two.keys()
        assert all(torch.equal(one.read(name), two.read(name)) for name in one.keys())  # noqa: SIM118
    with pytest.raises(ConfigError, match="other settings"):
        train(tmp_path / "whole", SMALL.model_copy(update={"batch": 3}), "cpu")


def test_the_default_fits_its_limit() -> None:
    from eval.judge.tiny import build_model

    config = TrainTinyConfig().model
    with torch.device("meta"):
        model = build_model(config, build_processor(config).tokenizer)
    assert 2 * sum(weight.numel() for weight in model.parameters()) < 16e6


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert rank_correlation([1, 2], [3, 3]) is None and rank_correlation([1], [1]) is None

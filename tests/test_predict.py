"""Prediction: the training targets' units undone, chunks invisible, files that say where they come from."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import tiny_base
from tiny_training import TinyRun, tiny_weights

import p2e.predict
from p2e import __version__
from p2e.errors import InputError, OutputError
from p2e.files import SafetensorsFile
from p2e.hypernet.checkpoint import Checkpoint, load_checkpoint
from p2e.lora.compose import blend
from p2e.lora.formats import read_lora
from p2e.predict import predict_loras, predict_to_file

PROMPT = "the picture will melt"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    run = TinyRun(tmp_path_factory.mktemp("predict"))
    run.trainer("run", steps=40, sites_per_step=20, effects_per_step=6, learning_rate=4e-3).run()
    return run


@pytest.fixture(scope="module")
def checkpoint(tiny: TinyRun) -> Checkpoint:
    return load_checkpoint(tiny.folder / "run", base=tiny.base)


def test_predictions_are_in_the_units_of_the_library(tiny: TinyRun, checkpoint: Checkpoint) -> None:
    """The error against the library, computed from whole updates, is what training reports."""
    trainer = tiny.trainer("run", steps=40, sites_per_step=20, effects_per_step=6, learning_rate=4e-3)
    effects = [i for i, e in enumerate(trainer.library.effects) if e.split == "train"]
    loras = predict_loras(
        checkpoint, tiny.weights, [trainer.library.effects[i].prompts[0] for i in effects], tiny.encoder
    )
    errors = []
    for key in trainer.library.keys:
        record = trainer.library.site(key)
        for i, lora in zip(effects, loras, strict=True):
            truth = record.b[i] @ record.a[i]
            errors.append(float((lora.factors[key].delta() - truth).square().sum() / truth.square().sum()))
    assert sum(errors) / len(errors) == pytest.approx(trainer.evaluate()["train/update_error"], rel=1e-3)


def test_one_prompt_or_many_many_sites_or_few(
    tiny: TinyRun, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [PROMPT, "all turns blue", "make it spin"]
    together = predict_loras(checkpoint, tiny.weights, prompts, tiny.encoder)
    monkeypatch.setattr(p2e.predict, "CHUNK_BYTES", 1)
    monkeypatch.setattr(p2e.predict, "EFFECTS_AT_ONCE", 2)
    apart = predict_loras(checkpoint, tiny.weights, prompts, tiny.encoder)
    for one, other, prompt in zip(together, apart, prompts, strict=True):
        alone = predict_loras(checkpoint, tiny.weights, [prompt], tiny.encoder)[0]
        assert list(one.factors) == list(other.factors) == [site.key for site in tiny.base.sites]
        for key, (a, b) in one.factors.items():
            for same in (other.factors[key], alone.factors[key]):
                torch.testing.assert_close(same.a, a, rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(same.b, b, rtol=1e-4, atol=1e-6)


def test_strength_scales_the_update(tiny: TinyRun, checkpoint: Checkpoint) -> None:
    whole, half, against = (
        predict_loras(checkpoint, tiny.weights, [PROMPT], tiny.encoder, strength=s)[0] for s in (1.0, 0.5, -1.0)
    )
    for key, factors in whole.factors.items():
        torch.testing.assert_close(half.factors[key].delta(), factors.delta() / 2)
        torch.testing.assert_close(against.factors[key].delta(), -factors.delta())


def test_a_file_is_the_prediction_and_names_its_origin(tiny: TinyRun, checkpoint: Checkpoint, tmp_path: Path) -> None:
    paths = predict_to_file(checkpoint, tiny.weights, f"  {PROMPT} ", tiny.encoder, tmp_path / "melt.safetensors")
    assert paths == [tmp_path / "melt.safetensors"]
    with SafetensorsFile(paths[0]) as file:
        assert "diffusion_model.blocks.1.ffn.2.lora_B.weight" in file and len(file.specs) == 40
        assert {spec.dtype for spec in file.specs.values()} == {torch.bfloat16}
        assert file.metadata["prompt"] == PROMPT and file.metadata["base"] == "toy"
        assert file.metadata["checkpoint"] == checkpoint.hash and file.metadata["p2e_version"] == __version__
    read = read_lora(paths[0], tiny.base)
    lora = predict_loras(checkpoint, tiny.weights, [PROMPT], tiny.encoder)[0]
    assert read.rank == 4 and read.factors.keys() == lora.factors.keys()
    for key, factors in lora.factors.items():
        assert torch.equal(read.factors[key].a.bfloat16(), factors.a.bfloat16())
        assert torch.equal(read.factors[key].b.bfloat16(), factors.b.bfloat16())


def test_predictions_can_be_blended(tiny: TinyRun, checkpoint: Checkpoint) -> None:
    one, other = predict_loras(checkpoint, tiny.weights, [PROMPT, "all turns blue"], tiny.encoder)
    both = blend([(one, 0.5), (other, 0.5)]).lora
    key = tiny.base.sites[0].key
    known = (one.factors[key].delta() + other.factors[key].delta()) / 2
    torch.testing.assert_close(both.factors[key].delta(), known, rtol=1e-4, atol=1e-7)


def test_bfloat16_parameters_predict_nearly_the_same(tiny: TinyRun, checkpoint: Checkpoint) -> None:
    low = load_checkpoint(tiny.folder / "run", base=tiny.base, dtype=torch.bfloat16)
    one = predict_loras(checkpoint, tiny.weights, [PROMPT], tiny.encoder)[0]
    other = predict_loras(low, tiny.weights, [PROMPT], tiny.encoder, dtype=torch.bfloat16)[0]
    for key, (a, _) in one.factors.items():
        assert other.factors[key].a.dtype == torch.bfloat16
        assert float((other.factors[key].a.float() - a).norm() / a.norm()) < 0.1


def test_untrained_sites_are_not_predicted(tiny: TinyRun, checkpoint: Checkpoint) -> None:
    scales = {key: value for key, value in checkpoint.scales.items() if "ffn" not in key}
    partial = dataclasses.replace(checkpoint, scales=scales)
    lora = predict_loras(partial, tiny.weights, [PROMPT], tiny.encoder)[0]
    assert list(lora.factors) == [site.key for site in tiny.base.sites if "ffn" not in site.key]


def test_weights_of_another_base_are_refused(tiny: TinyRun, checkpoint: Checkpoint, tmp_path: Path) -> None:
    for i, other in enumerate((tiny_base("world"), tiny_base("toy", layers=1))):
        weights = tiny_weights(tmp_path / str(i), other)
        with pytest.raises(InputError, match="give the base that it was trained on"):
            predict_loras(checkpoint, weights, [PROMPT], tiny.encoder)


@pytest.mark.parametrize(("prompt", "message"), [("   ", "empty"), ("x" * (1 << 20), "1048576 characters")])
def test_prompts_that_cannot_be_used(
    tiny: TinyRun, checkpoint: Checkpoint, tmp_path: Path, prompt: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        predict_to_file(checkpoint, tiny.weights, prompt, tiny.encoder, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_strength_is_a_number(tiny: TinyRun, checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="strength nan is not finite"):
        predict_loras(checkpoint, tiny.weights, [PROMPT], tiny.encoder, strength=float("nan"))


def test_no_prompts_no_loras(tiny: TinyRun, checkpoint: Checkpoint) -> None:
    assert predict_loras(checkpoint, tiny.weights, [], tiny.encoder) == []


def test_an_unwritable_output_leaves_nothing(tiny: TinyRun, checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        predict_to_file(checkpoint, tiny.weights, PROMPT, tiny.encoder, tmp_path / "file" / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

"""Training on a small real library: the loss falls, runs resume to the bit, shapes never change."""

import copy
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny import tiny_base
from tiny_training import TinyRun, tiny_weights
from torch import Tensor

from p2e.config import TrainConfig
from p2e.errors import ConfigError, FormatError, InputError
from p2e.files import SafetensorsFile
from p2e.hypernet.checkpoint import load_checkpoint
from p2e.hypernet.variants import Predictor
from p2e.training.data import ResidentSource, StreamedSource
from p2e.training.evaluate import evaluate
from p2e.training.loop import Trainer, train
from p2e.training.step import Objective, rate

GOLDEN = Path(__file__).parent / "golden_losses.txt"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"), uncovered="ffn.0")


def state(folder: Path) -> dict[str, Tensor]:
    with SafetensorsFile(folder / "training.safetensors") as file:
        return file.read_all()


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.history]


def test_loss_falls_in_thirty_steps(tiny: TinyRun) -> None:
    hypernet = {"width": 64, "latents": 8}
    trainer = tiny.trainer("falls", hypernet=hypernet, sites_per_step=20, effects_per_step=6, learning_rate=4e-3)
    before = trainer.evaluate()
    trainer.run()
    after = trainer.evaluate()
    assert sum(losses(trainer)[-5:]) < 0.9 * sum(losses(trainer)[:5])
    assert after["train/factor_error"] < 0.9 * before["train/factor_error"]
    assert {name.split("/")[0] for name in after} == {"train", "heldout"}
    assert {"loss", "update_error", "norm_ratio", "samples_per_second"} < set(trainer.history[0])


def test_ten_losses_are_the_golden_ones(tiny: TinyRun) -> None:
    """After a wanted change of the numerics, write `losses(trainer)` of this run into the file, one a line."""
    trainer = tiny.trainer("golden", steps=10)
    trainer.run()
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert losses(trainer) == pytest.approx(golden, rel=2e-4)


def test_a_resumed_run_is_the_same_to_the_bit(tiny: TinyRun) -> None:
    settings: dict[str, Any] = {"steps": 20, "decay": "cosine", "ema": 0.9, "tensorboard": True}
    whole = tiny.trainer("whole", **settings)
    whole.run()
    first = tiny.trainer("parts", **settings)
    first.run(until=10)
    torch.manual_seed(99)  # another process starts with other random numbers
    second = tiny.trainer("parts", **settings)
    assert second.step == 10
    second.run()
    assert losses(first) + losses(second) == losses(whole)
    known, found = state(tiny.folder / "whole"), state(tiny.folder / "parts")
    del known["random.cpu"], found["random.cpu"]
    assert known.keys() == found.keys()
    assert all(torch.equal(known[name], found[name]) for name in known)
    assert models_equal(tiny.folder / "whole", tiny.folder / "parts")


def models_equal(one: Path, other: Path) -> bool:
    with SafetensorsFile(one / "model.safetensors") as a, SafetensorsFile(other / "model.safetensors") as b:
        return a.specs == b.specs and all(torch.equal(a.read(name), b.read(name)) for name in a.specs)


def test_random_state_is_restored(tiny: TinyRun) -> None:
    tiny.trainer("random", steps=2).run()
    saved = state(tiny.folder / "random")["random.cpu"]
    torch.manual_seed(5)
    tiny.trainer("random", steps=2)
    assert torch.equal(torch.get_rng_state(), saved)


def test_a_finished_run_goes_on_when_it_is_given_more_steps(tiny: TinyRun) -> None:
    tiny.trainer("longer", steps=3).run()
    longer = tiny.trainer("longer", steps=5)
    longer.run()
    assert longer.step == 5 and len(longer.history) == 2


def test_another_run_in_the_same_folder_is_refused(tiny: TinyRun) -> None:
    tiny.trainer("taken", steps=1).run()
    with pytest.raises(ConfigError, match="another learning_rate, seed; choose another output"):
        tiny.trainer("taken", steps=1, learning_rate=1e-4, seed=7)


def test_a_truncated_state_is_refused(tiny: TinyRun) -> None:
    tiny.trainer("torn", steps=1).run()
    path = tiny.folder / "torn" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="truncated"):
        tiny.trainer("torn", steps=1)


def test_streamed_and_resident_data_train_alike(tiny: TinyRun) -> None:
    resident = tiny.trainer("resident", steps=4)
    streamed = tiny.trainer("streamed", steps=4, resident_gb=0)
    assert isinstance(resident.source, ResidentSource) and isinstance(streamed.source, StreamedSource)
    resident.run()
    streamed.run()
    assert losses(resident) == pytest.approx(losses(streamed), rel=1e-5)


def test_only_training_effects_are_drawn_and_the_seed_decides(tiny: TinyRun) -> None:
    trainer = tiny.trainer("draws")
    assert trainer.sampler.effects == (0, 1, 2, 3, 4, 5)
    assert [e.split for e in trainer.library.effects][6:] == ["heldout", "heldout"]
    one, two = tiny.trainer("seed_a", seed=1), tiny.trainer("seed_b", seed=2)
    assert not torch.equal(next(one.model.parameters()), next(two.model.parameters()))


def test_an_uncovered_site_of_an_effect_has_no_weight(tiny: TinyRun) -> None:
    trainer = tiny.trainer("mask")
    group = next(i for i, g in enumerate(trainer.source.groups) if g.d_out == 64)
    targets = trainer.source.targets(group, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert targets.weight.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert float(targets.a[:, 0].abs().max()) == 0
    covered = targets.a[:, 1].square().mean(), targets.b[:, 1].square().mean()
    assert all(0.05 < float(x) < 20 for x in covered)  # in units of the site's scale


def test_shapes_never_change_so_nothing_recompiles(tiny: TinyRun) -> None:
    trainer = tiny.trainer("compiled", steps=6)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    objective = torch.compile(Objective(trainer.model, trainer.config.loss), backend="eager", dynamic=False)
    eager = Objective(trainer.model, trainer.config.loss)
    rows = trainer.sampler.plan(0, 6)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in trainer.source.batches(rows, trainer.sampler.widths):
            compiled = objective(batch)
            torch.testing.assert_close(compiled.loss, eager(batch).loss)
            compiled.loss.backward()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_the_average_is_what_the_checkpoint_holds(tiny: TinyRun) -> None:
    trainer = tiny.trainer("average", steps=4, ema=0.15)
    expected = [p.detach().clone() for p in trainer.model.parameters()]
    for step, decay in enumerate((1 / 10, 0.15)):  # 2/11 would follow
        trainer.run(until=step + 1)
        expected = [
            decay * e + (1 - decay) * p.detach() for e, p in zip(expected, trainer.model.parameters(), strict=True)
        ]
    assert trainer.average is not None
    for mean, value in zip(trainer.average.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, value)
    saved = load_checkpoint(tiny.folder / "average", base=tiny.base).model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in trainer.average.state_dict().items())


def test_bfloat16_products_train(tiny: TinyRun) -> None:
    low, full = tiny.trainer("bf16", steps=5, precision="bfloat16"), tiny.trainer("f32", steps=5)
    low.run()
    full.run()
    assert next(low.model.parameters()).dtype == torch.float32
    assert losses(low) == pytest.approx(losses(full), rel=0.03)


def test_rates(tiny: TinyRun) -> None:
    constant = tiny.config(steps=100, warmup_fraction=0.1, learning_rate=1.0)
    assert [rate(constant, s) for s in (0, 4, 9, 50, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    cosine = tiny.config(steps=100, warmup_fraction=0.0, learning_rate=1.0, decay="cosine", final_fraction=0.2)
    assert [rate(cosine, s) for s in (0, 50, 100)] == pytest.approx([1.0, 0.6, 0.2])


def test_evaluation_does_not_depend_on_its_chunks(tiny: TinyRun) -> None:
    trainer = tiny.trainer("chunks")
    model, effects = cast(Predictor, trainer.model), [0, 1, 6, 7]
    whole = evaluate(model, trainer.source, effects, dtype=torch.float32, sites=100, effects_at_once=100)
    small = evaluate(model, trainer.source, effects, dtype=torch.float32, sites=3, effects_at_once=3)
    assert small == pytest.approx(whole, rel=1e-4)


def test_divergence_is_one_line(tiny: TinyRun) -> None:
    with pytest.raises(InputError, match=r"diverged before step \d+; lower learning_rate"):
        tiny.trainer("diverges", learning_rate=1e30, clip=1e30).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hypernet": {"rank": 7}}, "the library has rank 4; set hypernet.rank: 4"),
        ({"device": "tpu"}, "device: tpu is not available here"),
        ({"cuda_graph": True}, "cuda_graph needs a GPU"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny: TinyRun, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.trainer("refused", **changes).run()


def test_a_library_that_does_not_fit_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    other = tiny_base("world")
    with pytest.raises(InputError, match="prepared for toy, not world"):
        Trainer(tiny.config("wrong"), other, tiny_weights(tmp_path / "w", other), tiny.library, tiny.encoder)
    idle = copy.copy(tiny.library)
    idle.effects = tuple(dataclasses.replace(effect, split="ood") for effect in idle.effects)
    with pytest.raises(InputError, match="no effect with split: train"):
        Trainer(tiny.config("idle"), tiny.base, tiny.weights, idle, tiny.encoder)


def test_train_needs_weights(tiny: TinyRun) -> None:
    config = TrainConfig.parse(tiny.config().model_dump() | {"base": "wan2.1-t2v-1.3b"})
    with pytest.raises(InputError, match="training reads the base's weights"):
        train(config, progress=False)


def test_train_reads_base_library_and_encoder_by_name(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p2e.training.loop.open_base", lambda name: (tiny.base, tiny.weights))
    monkeypatch.setattr("p2e.training.loop.encoder_for", lambda base, folder: tiny.encoder)
    folder = train(tiny.config("by_name", steps=3, tensorboard=True))
    assert folder == tiny.folder / "by_name"
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "sites.json", "model.safetensors", "training.safetensors", "tensorboard",
    }  # fmt: skip
    assert load_checkpoint(folder, base=tiny.base).settings["training"]["steps"] == 3
    assert "step 3/3" in capsys.readouterr().out


def test_a_run_in_seconds_ends_at_the_next_log_and_resumes(tiny: TinyRun) -> None:
    trainer = tiny.trainer("seconds", steps=40, log_every=4)
    trainer.run(seconds=0.0)
    assert trainer.step == 4
    assert tiny.trainer("seconds", steps=40, log_every=4).step == 4

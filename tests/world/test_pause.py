"""Training that is paused after every step ends with the weights, to the bit, of training that is left alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import tiny_base, tiny_states, tiny_transformer, tiny_vae
from torch import Tensor

from p2e.files import SafetensorsFile
from p2e.world import library, train_base, train_vae
from p2e.world.config import WorldBaseConfig, WorldLibraryConfig, WorldVaeConfig
from p2e.world.effects import EFFECTS
from p2e.world.lora_state import LoraRunState
from p2e.world.motion import CAPTIONS
from p2e.world.parallel import Worker
from p2e.world.pause import Pause, Paused
from p2e.world.run_state import RunState

pytestmark = pytest.mark.slow
WORKER = Worker(0, 1, torch.device("cpu"))
STEPS = 3


def weights_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with SafetensorsFile(path) as file:
            found |= file.read_all()
    return found


def paused_until_done(train: Callable[[Pause], object]) -> tuple[object, int]:
    """Calls `train` with no time at all until it comes to its end -> what it gave, and how often it paused."""
    for pauses in range(STEPS + 1):
        try:
            return train(Pause(WORKER, 0.0)), pauses
        except Paused:
            pass
    raise AssertionError("it never ends")


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one and one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_the_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_vae, "build_vae", lambda: tiny_vae().requires_grad_(True))
    config = WorldVaeConfig(steps=STEPS, batch=1, pool=3, measured=1, warmup=1)

    def train(name: str, pause: Pause) -> dict[str, float]:
        return train_vae.train_vae(config, tmp_path / name, WORKER, state=tmp_path / f"{name}.state", pause=pause)

    alone = train("alone", Pause(WORKER))
    report, pauses = paused_until_done(lambda pause: train("paused", pause))
    assert pauses == STEPS - 1 and isinstance(report, dict)
    assert_equal(weights_of(tmp_path / "alone"), weights_of(tmp_path / "paused"))
    assert report["steps"] == STEPS and report["loss"] == alone["loss"] and report["seconds"] > 0
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("alone", "paused"))
    assert one["latents_mean"] == two["latents_mean"]


def test_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_base, "build_transformer", lambda: tiny_transformer())
    config = WorldBaseConfig(steps=STEPS, batch=2, pool=4, measured=1, renew_every=1, optimizer="muon", warmup=1)
    vae, captions = tiny_vae(), tiny_states(len(CAPTIONS))

    def train(name: str, pause: Pause) -> object:
        state = tmp_path / f"{name}.state"
        return train_base.train_base(config, vae, captions, tmp_path / name, WORKER, state=state, pause=pause)

    train("alone", Pause(WORKER))
    assert paused_until_done(lambda pause: train("paused", pause))[1] == STEPS - 1
    assert_equal(weights_of(tmp_path / "alone"), weights_of(tmp_path / "paused"))


def test_the_library(tmp_path: Path):
    base, vae, transformer = tiny_base(), tiny_vae(), tiny_transformer()
    text = {spec.name: tiny_states(3) for spec in EFFECTS[:2]}
    adapt = {"rank": 2, "batch": 1, "steps": STEPS, "learning_rate": 1e-2}
    config = WorldLibraryConfig.parse({"clips": 2, "adapt": adapt})

    def train(name: str, pause: Pause) -> dict[str, Tensor]:
        (tmp_path / name).mkdir(exist_ok=True)
        keeper = LoraRunState(tmp_path / name, {}, pause)
        loras, losses = library.train_effects(
            range(2), base, transformer, vae, text, WORKER, config, wild=True, keeper=keeper
        )
        factors = {f"{i}.{k}.{p}": getattr(f, p) for i, lora in enumerate(loras) for k, f in lora.factors.items()
                   for p in "ab"}  # fmt: skip
        return factors | {"losses": losses}

    alone = train("alone", Pause(WORKER))
    result, pauses = paused_until_done(lambda pause: train("paused", pause))
    assert pauses == STEPS - 1 and isinstance(result, dict)
    assert_equal(alone, result)


def test_a_state_of_other_settings_is_left_alone(tmp_path: Path):
    model, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    path = tmp_path / "run.safetensors"
    RunState(path, model, average, [optimizer], {"seed": 1}).save(7, 1.5)
    assert RunState(path, model, average, [optimizer], {"seed": 1}).step() == 7
    assert RunState(path, model, average, [optimizer], {"seed": 1}).load() == (7, 1.5)
    assert RunState(path, model, average, [optimizer], {"seed": 2}).step() == 0
    assert RunState(path, model, average, [optimizer], {"seed": 2}).load() == (0, 0.0)

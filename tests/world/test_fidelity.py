"""Measuring on the shipped weights: what is known beforehand comes out, and shares of workers are put together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_base, tiny_states, tiny_transformer
from two_workers import measured, write_library

from p2e.bases.wan import WAN_BASES
from p2e.config import HypernetConfig
from p2e.errors import InputError
from p2e.hypernet.checkpoint import load_checkpoint, save_checkpoint
from p2e.hypernet.variants import build_hypernet
from p2e.world.columns import Column, ColumnLoras, World, other_effect
from p2e.world.config import WorldLibraryConfig, WorldMeasureConfig
from p2e.world.effects import EFFECTS, effect_index
from p2e.world.fidelity import _gathered, chosen_effects
from p2e.world.measurement import Measurement
from p2e.world.parallel import Worker


class OneOf(Worker):
    """A worker whose peers hand over what they are given."""

    def __init__(self, rank: int, parts: list[torch.Tensor]) -> None:
        super().__init__(rank, len(parts), torch.device("cpu"))
        object.__setattr__(self, "parts", parts)

    __slots__ = ("parts",)

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        assert all(part.shape == value.shape for part in self.parts)
        return torch.cat(self.parts)


def world_of(worker: Worker, out: Path = Path()) -> World:
    base = WAN_BASES["world"]
    states = {spec.name: tiny_states(len(spec.prompts), seed=i) for i, spec in enumerate(EFFECTS)}
    return World(out, base, None, None, None, states, worker)


@pytest.mark.parametrize(("count", "size"), [(5, 2), (4, 2), (1, 3), (7, 3)])
def test_effects_come_back_in_order(count: int, size: int):
    whole = torch.arange(count * 2 * 3, dtype=torch.float64).view(count, 2, 3)
    share = -(-count // size)
    parts = []
    for rank in range(size):
        part = torch.full((share, 2, 3), torch.nan, dtype=torch.float64)
        part[: len(whole[rank::size])] = whole[rank::size]
        parts.append(part)
    for rank in range(size):
        assert torch.equal(_gathered(whole[rank::size].float(), count, world_of(OneOf(rank, parts))), whole)


def test_effects_are_chosen():
    every = WorldMeasureConfig(effects=20, every=6)
    assert [effect_index(spec.name) for spec in chosen_effects(every)] == [0, 6, 12, 18]
    assert [s.name for s in chosen_effects(WorldMeasureConfig(only=("twist", "red_mood")))] == ["red_mood", "twist"]
    with pytest.raises(InputError, match="no effect is called 'nothing'"):
        chosen_effects(WorldMeasureConfig(only=("nothing",)))
    with pytest.raises(InputError, match="leave no effect"):
        chosen_effects(WorldMeasureConfig(effects=1, only=("twist",)))


def test_the_baseline_is_a_checkpoint_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """hdb reads out/hdb, trained on raw factors, and gives a LoRA of every site."""
    base = tiny_base()
    config = HypernetConfig(width=32, layers=1, heads=2, rank=2, architecture="hyperdreambooth", iterations=2)
    scales = {site.key: (1.0, 1.0) for site in base.sites}
    monkeypatch.setitem(WAN_BASES, "world", base)
    monkeypatch.setattr("p2e.hypernet.checkpoint.get_base", lambda name: base)
    folder = tmp_path / "ablations" / "hyperdreambooth"
    save_checkpoint(folder, build_hypernet(config, base), base=base, config=config, scales=scales,
                    base_hash="0", library_hash="0", targets="raw")  # fmt: skip
    assert load_checkpoint(folder).targets == "raw"
    tiny_transformer(base).save_pretrained(tmp_path / "base" / "transformer")
    loras = ColumnLoras(world_of(Worker(0, 1, torch.device("cpu")), tmp_path), WorldLibraryConfig())
    made = loras.of(Column.parse("hdb"), EFFECTS[:3], EFFECTS[1:3], -1)
    assert [lora.rank for lora in made] == [2, 2] and set(made[0].factors) == set(scales)
    key = base.sites[0].key
    assert not torch.equal(made[0].factors[key].delta(), made[1].factors[key].delta())
    with pytest.raises(InputError, match="no LoRA of a training effect"):
        loras.of(Column.parse("mean"), EFFECTS[:1], EFFECTS[:1], -1)


def test_the_random_prompt_is_of_another_effect():
    others = [other_effect(spec.name) for spec in EFFECTS]
    assert len(set(others)) == len(EFFECTS)
    assert all(spec.name != other for spec, other in zip(EFFECTS, others, strict=True))


@pytest.mark.slow
def test_workers_share_the_effects_out(tmp_path: Path):
    """Two processes measure three effects, one of them one effect and the other two; the file is that of one worker."""
    write_library(tmp_path)
    alone = measured(tmp_path, tmp_path / "alone.json", Worker(0, 1, torch.device("cpu")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests)])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": path}
    workers = [
        subprocess.Popen(
            [sys.executable, str(tests / "world" / "two_workers.py"), str(tmp_path)],
            env={**os.environ, **group, "RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}, stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    shared = Measurement.load(tmp_path / "shared.json")
    assert shared.settings == {"scenes": 1, "seeds": [0, 1], "prompts": "unseen", "steps": 1}
    assert list(shared.effects) == list(alone.effects) == [spec.name for spec in EFFECTS[:3]]
    for name, row in shared.effects.items():
        other = alone.effects[name]
        assert set(row.scores) == set(other.scores) and row.scores["still"] == [0]
        for column in ("cap", "lora"):
            assert row.scores[column] == pytest.approx(other.scores[column], rel=1e-3, abs=1e-4), column
            assert row.seeds[column] == pytest.approx(other.seeds[column], rel=1e-3, abs=1e-4), column
        assert row.seeds["lora"][0] != row.seeds["lora"][1] and row.seeds["cap"][0] == row.seeds["cap"][1]
        # Which noise a LoRA is trained with depends on how many are trained at once.
        assert row.scores["lora:1"] == pytest.approx(other.scores["lora:1"], rel=0.1)
        assert row.scores["lora"] != row.scores["lora:1"]

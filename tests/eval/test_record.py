"""Cells that need LoRAs which do not ship are taken from the record, and nothing else is."""

from pathlib import Path

import pytest
import torch

from eval.world.record import RECORD, Missing, fill_from_record
from eval.world.run import open_world
from p2e.bases import world_base_folder
from p2e.errors import InputError
from p2e.world.config import WorldMeasureConfig
from p2e.world.effects import EFFECTS
from p2e.world.fidelity import measure_columns
from p2e.world.measurement import Measurement

SETTINGS = {"scenes": 4, "seeds": [0, 1], "prompts": "last", "steps": 10}
OOD = next(spec for spec in EFFECTS if spec.split == "ood")
TRAIN = EFFECTS[0]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    known = Measurement(SETTINGS)
    for spec in (TRAIN, OOD):
        for column in ("lora", "nearest", "zero"):
            known.add(spec, column, torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.5, 0.6]]))
    known.save(tmp_path / "main.json")
    return tmp_path / "main.json"


def fill(record: Path, missing: set[str], **changes: object) -> tuple[int, Measurement]:
    values = {"columns": ("lora", "nearest", "zero"), "scenes": 2, "seeds": (0,)}
    config = WorldMeasureConfig.parse(values | changes)
    found = Measurement(SETTINGS | {"scenes": config.scenes, "seeds": [0], "steps": config.steps})
    return fill_from_record(found, (TRAIN, OOD), config, record, Missing(frozenset(missing))), found


def test_only_what_cannot_be_measured_is_taken(record: Path):
    count, found = fill(record, {OOD.name})
    assert count == 1 and list(found.effects) == [OOD.name]
    assert found.effects[OOD.name].scores == {"lora": pytest.approx([0.2, 0.3])}
    assert found.effects[OOD.name].seeds == {"lora": pytest.approx([0.25])}
    # Mixtures of the training LoRAs need all of them, whatever effect is asked for.
    count, found = fill(record, {TRAIN.name})
    assert count == 3 and not found.has(OOD.name, "lora") and found.has(OOD.name, "nearest")
    assert not any(found.has(spec.name, "zero") for spec in (TRAIN, OOD))
    assert not Missing(frozenset({OOD.name})).needed("lora:100", OOD.name)


def test_a_record_of_other_settings_is_refused(record: Path):
    with pytest.raises(InputError, match="measured with steps 10, not 5"):
        fill(record, {OOD.name}, steps=5)
    with pytest.raises(InputError, match=f"has no lora of {OOD.name} on 8 scenes"):
        fill(record, {OOD.name}, scenes=8)


def test_a_world_says_what_it_lacks(tmp_path: Path):
    assert Missing.of(tmp_path).loras == {spec.name for spec in EFFECTS}
    assert Missing.of(tmp_path).needed("zero", OOD.name) and not Missing().needed("zero", OOD.name)
    (tmp_path / "library" / "loras").mkdir(parents=True)
    (tmp_path / "library" / "loras" / f"{OOD.name}.safetensors").touch()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").touch()
    missing = Missing.of(tmp_path)
    assert missing.loras == {spec.name for spec in EFFECTS} - {OOD.name}
    assert not missing.needed("zero", OOD.name) and missing.needed("hdb", OOD.name)


@pytest.mark.slow
def test_the_record_is_of_the_weights_that_ship(tmp_path: Path):
    """What can be recomputed comes out as recorded, but for the rounding of a GPU in bfloat16."""
    weights, name, columns = world_base_folder().parent, "morning_coffee", ("cap", "base", "lora", "zero")
    recorded = Measurement.load(RECORD)
    seeds = tuple(recorded.settings["seeds"])
    config = WorldMeasureConfig(columns=columns, scenes=1, seeds=seeds, only=(name,))
    found = measure_columns(config, open_world(weights, [name], tmp_path / "text"), tmp_path / "measure.json")
    for column in columns:
        expected = recorded.effects[name].scores[column][0]
        assert found.effects[name].scores[column][0] == pytest.approx(expected, abs=0.03), column

"""The measure file keeps what was measured, and refuses to mix what does not belong together."""

import json
import math
from pathlib import Path

import pytest
import torch

from p2e.errors import FormatError, InputError
from p2e.world.columns import Column
from p2e.world.effects import EFFECTS
from p2e.world.measurement import Measurement

SETTINGS = {"scenes": 2, "seeds": [0, 1, 2]}


def test_scores_are_means_over_seeds_and_survive_the_file(tmp_path: Path):
    found = Measurement.open(tmp_path / "m.json", SETTINGS)
    found.add(EFFECTS[0], "base", torch.tensor([[0.0, 0.5], [0.25, -3.0], [0.5, math.nan]]))
    found.save(tmp_path / "m.json")
    again = Measurement.open(tmp_path / "m.json", SETTINGS)
    row = again.effects[EFFECTS[0].name]
    assert (row.split, row.category) == (EFFECTS[0].split, EFFECTS[0].category)
    assert row.scores["base"][0] == 0.25 and math.isnan(row.scores["base"][1])
    assert row.seeds["base"][:2] == [0.25, -1.375] and math.isnan(row.seeds["base"][2])
    assert again.has(EFFECTS[0].name, "base") and not again.has(EFFECTS[0].name, "lora")
    assert "NaN" not in (tmp_path / "m.json").read_text()


def test_other_settings_are_refused(tmp_path: Path):
    path = tmp_path / "m.json"
    Measurement.open(path, SETTINGS).save(path)
    with pytest.raises(InputError, match="measured with scenes 2, not 3"):
        Measurement.open(path, SETTINGS | {"scenes": 3})


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {}}', json.dumps({"red_mood": {"base": 0.1}})])
def test_other_files_are_refused(tmp_path: Path, text: str):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(FormatError, match="not a measure file"):
        Measurement.load(tmp_path / "m.json")


def test_column_names_are_taken_apart():
    assert Column.parse("lora:1000") == Column("lora:1000", "lora")
    assert Column.parse("lora:100").steps == 100 and Column.parse("lora:100").trained
    assert Column.parse("init:50").checkpoint == "checkpoint"
    assert Column.parse("init:50:other") == Column("init:50:other", "init", 50, "other")
    assert Column.parse("zero:noise").checkpoint == "noise" and Column.parse("hdb:other").checkpoint == "other"
    assert Column.parse("softmax:0.1").temperature == 0.1


@pytest.mark.parametrize("name", ["", "bass", "init", "init:0", "init:x", "lora:-1", "mean:x", "softmax:0", "zero:a:b"])
def test_no_such_column(name: str):
    with pytest.raises(InputError, match="no column is named"):
        Column.parse(name)

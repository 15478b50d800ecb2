"""Tables of a measurement with known numbers."""

import json
import math
from pathlib import Path

import pytest
import torch

from eval.world.tables import ablation_table, category_table, main, main_table, markdown
from p2e.errors import InputError
from p2e.world.effects import EFFECTS
from p2e.world.measurement import Measurement

TRAIN = [spec for spec in EFFECTS if spec.split == "train"][:6]
OOD = [spec for spec in EFFECTS if spec.split == "ood"][:3]


def measurement() -> Measurement:
    """base -1, lora 0.5 on average, zero-shot 0.2 in training and -0.1 beyond; two seeds that lie 0.02 apart."""
    found = Measurement({"scenes": 2, "seeds": [0, 1]})
    means = {"base": (-1.0, -1.0), "lora": (0.5, 0.5), "zero": (0.2, -0.1), "zero:none": (0.1, -0.4)}
    for column, (train, ood) in means.items():
        for specs, mean in ((TRAIN, train), (OOD, ood)):
            for i, spec in enumerate(specs):
                own = mean + 0.1 * (i - (len(specs) - 1) / 2)
                found.add(spec, column, torch.tensor([[own - 0.31, own + 0.29], [own - 0.29, own + 0.31]]))
    return found


def test_the_main_table_has_means_shares_and_seeds():
    table = main_table(measurement())
    assert table.groups == {"train": 6, "ood": 3} and list(table.rows) == ["base", "zero-shot", "LoRA-1000"]
    zero = table.rows["zero-shot"]
    assert zero["train"].fidelity.value == pytest.approx(0.2)
    assert zero["train"].gain and zero["train"].gain.value == pytest.approx(1.2 / 1.5)
    assert zero["train"].over_still and zero["train"].over_still.value == pytest.approx(0.4)
    assert zero["ood"].over_still and zero["ood"].over_still.value == pytest.approx(-0.2)
    assert zero["train"].seed_deviation == pytest.approx(0.02 / math.sqrt(2))
    text = markdown(table)
    assert "| zero-shot | 0.200 (" in text and "| 80% (" in text and "train 0.0141" in text


def test_rows_compare_on_the_same_effects():
    """An effect that lacks a column is left out of every row, and the table says so."""
    found = measurement()
    del found.effects[TRAIN[0].name].scores["zero"]
    table = main_table(found)
    assert table.groups == {"train": 5, "ood": 3} and table.left_out == 1
    assert table.rows["base"]["train"].fidelity.value == pytest.approx(-1 + 0.05)
    assert "1 effects of the file lack" in markdown(table)


def test_without_a_lora_there_are_no_shares():
    found = measurement()
    for row in found.effects.values():
        del row.scores["lora"]
    table = main_table(found)
    assert table.rows["zero-shot"]["train"].gain is None
    assert "Share" not in markdown(table) and "| zero-shot | 0.200" in markdown(table)


def test_still_and_cap_have_no_share():
    found = measurement()
    for spec in (*TRAIN, *OOD):
        found.add(spec, "still", torch.zeros(2, 2))
    table = main_table(found)
    assert table.rows["standing still"]["train"].fidelity.value == 0
    assert table.rows["standing still"]["train"].gain is None


def test_categories_part_a_split():
    table = category_table(measurement(), "train")
    assert sum(table.groups.values()) == 6 and set(table.groups) == {spec.category for spec in TRAIN}


def test_ablations_note_their_training(tmp_path: Path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "history.json").write_text(
        json.dumps({"history": [{"step": 1, "factor_error": 0.9, "update_error": 0.8}], "final": {}})
    )
    table = ablation_table(measurement(), {"full weights": "zero", "no weights": "zero:none"}, tmp_path)
    assert table.rows["no weights"]["ood"].fidelity.value == pytest.approx(-0.4)
    assert "| no weights | 0.100" in markdown(table) and "0.900 / 0.800" in markdown(table)
    # Every effect loses the same, so the interval of the difference is a point, however far the effects lie apart.
    lost = table.rows["no weights"]["train"].difference
    assert lost and (lost.value, lost.low, lost.high) == (pytest.approx(-0.1),) * 3
    assert table.rows["full weights"]["train"].difference is None
    assert "Difference from full weights" in markdown(table) and "| -0.100 (-0.100 to -0.100) |" in markdown(table)
    with pytest.raises(InputError, match="has no column zero:noise"):
        ablation_table(measurement(), {"noise": "zero:noise"})


def test_the_command_writes_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    measurement().save(tmp_path / "measure.json")
    main([str(tmp_path / "measure.json"), "--out", str(tmp_path), "--ablation", "no weights=zero:none"])
    tables = json.loads((tmp_path / "tables.json").read_text())
    assert [t["title"].split(":")[0] for t in tables] == ["Methods", "By category", "By category", "Ablations"]
    assert tables[0]["rows"]["zero-shot"]["train"]["gain"]["value"] == pytest.approx(0.8)
    main([str(tmp_path / "measure.json")])
    assert "### Methods" in capsys.readouterr().out
    with pytest.raises(InputError, match="write TITLE=COLUMN"):
        main([str(tmp_path / "measure.json"), "--row", "zero"])


def test_nothing_measured_is_said():
    with pytest.raises(InputError, match="none of the columns"):
        main_table(Measurement({}))

"""`p2e eval world` on the shipped weights: what it picks, measures, keeps and prints."""

import json
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from cli_runner import assert_mistake, run_cli, run_well

from eval.commands import duration
from eval.world.blends import blend_effects
from eval.world.run import FULL, SUBSET, open_world, pick_effects, plan
from p2e.bases import world_base_folder
from p2e.errors import InputError
from p2e.world.columns import Column
from p2e.world.effects import EFFECTS
from p2e.world.measurement import Measurement

ROOT = Path(__file__).parents[2]
SHIPPED = world_base_folder().parent


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points that pyproject.toml declares, whether this checkout is installed or not."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["p2e.commands"]
    info = tmp_path / "site" / "checkout-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: checkout\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[p2e.commands]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(str(info.parent))
    assert entry_points(group="p2e.commands", name="eval")


def test_effects_are_picked_from_every_split():
    assert pick_effects(EFFECTS, len(EFFECTS) + 1) == list(EFFECTS)
    six = pick_effects(EFFECTS, 6)
    assert [spec.split for spec in six] == ["train"] * 2 + ["heldout"] * 2 + ["ood"] * 2
    # Where one split has few, the others make up for it.
    some = [spec for spec in EFFECTS if spec.split == "train"][:9] + [s for s in EFFECTS if s.split == "heldout"][:1]
    assert [spec.split for spec in pick_effects(some, 5)] == ["train"] * 4 + ["heldout"]


def test_a_plan_is_named_by_what_would_change_its_scores(tmp_path: Path):
    one = plan(None, tmp_path)
    assert one.weights == SHIPPED and len(one.config.only) == 6 and one.config.columns == SUBSET
    assert one.cells == 42 and one.done() == 0 and 60 < one.seconds() < 600
    assert plan(None, tmp_path, effects=3).path == one.path == plan(None, tmp_path, columns=("init:50",)).path
    assert len({one.path, plan(None, tmp_path, scenes=3).path, plan(None, tmp_path, seeds=(0, 1)).path}) == 3


def test_the_whole_holds_all_effects_and_columns(tmp_path: Path):
    whole = plan(None, tmp_path, full=True)
    assert list(whole.config.only) == [spec.name for spec in EFFECTS] and whole.config.scenes == 8
    assert whole.config.columns == FULL
    # The checkpoint of the baseline does not ship: its scores come from the record, which another folder has none of.
    name = EFFECTS[0].name
    assert whole.missing.needed("hdb", name) and not whole.missing.needed("zero", name)
    own = plan(SHIPPED, tmp_path, full=True)
    there = {c for c in FULL if not Column.parse(c).checkpoint or (SHIPPED / Column.parse(c).checkpoint).is_dir()}
    assert set(own.config.columns) == there and "hdb" not in there and own.recorded == 0
    assert whole.seconds() > 10 * plan(None, tmp_path).seconds()


@pytest.mark.slow
def test_the_table_is_recomputed_and_kept(tmp_path: Path):
    out = tmp_path / "out"
    call = ["eval", "world", "--effects", 2, "--scenes", 1, "--out", out, "--column", "cap", "--column", "lora"]
    first = run_well(*call, "--column", "base")
    assert "0 of 6 cells" in first and "| LoRA-1000 |" in first and "### Methods" in first
    path = next(out.glob("measure-????????.json"))
    found = Measurement.load(path)
    assert [row.split for row in found.effects.values()] == ["train", "heldout"]
    for row in found.effects.values():
        assert row.scores["base"][0] < row.scores["lora"][0] <= 1 and 0.5 < row.scores["cap"][0] <= 1
    # The table's words and numbers are those that are kept, and nothing is measured twice.
    assert path.with_suffix(".md").read_text() in first
    stamp = path.stat().st_mtime_ns
    assert "6 of 6 cells" in run_well(*call, "--column", "base") and path.stat().st_mtime_ns == stamp
    # A run that was cut off goes on with what is missing.
    cut = json.loads(path.read_text())
    del cut["effects"][next(iter(found.effects))]["scores"]["cap"]
    path.write_text(json.dumps(cut))
    assert "5 of 6 cells" in run_well(*call, "--column", "base")
    assert Measurement.load(path) == found


@pytest.mark.slow
def test_a_blend_shows_both_effects(tmp_path: Path):
    """Half of each library LoRA: less of either than by itself, and some of both."""
    world = open_world(SHIPPED, ["red_mood", "yellow_mood"], tmp_path)
    found = blend_effects(world, "red_mood", "yellow_mood", column="lora", scenes=1, steps=5)
    assert found.clips.shape == (3, 1, 17, 3, 96, 96) and found.truth.shape == (2, 1, 17, 3, 96, 96)
    (red, _), (_, yellow), (some_red, some_yellow) = found.presence.tolist()
    assert red > 0.6 and yellow > 0.6
    assert 0.1 < some_red < red and 0.1 < some_yellow < yellow


def test_mistakes_are_one_line(tmp_path: Path):
    assert_mistake(run_cli("eval", "world", "--weights", tmp_path, "--out", tmp_path), tmp_path, "leave out --weights")
    assert_mistake(run_cli("eval", "world", "--column", "bass", "--out", tmp_path), "bass", "the columns are")
    assert_mistake(run_cli("eval", "world", "--effects", "0"), "--effects")
    (tmp_path / "base" / "transformer").mkdir(parents=True)
    with pytest.raises(InputError, match="has no library/loras"):
        plan(tmp_path, tmp_path)


def test_durations_are_said_as_people_do():
    assert [duration(x) for x in (0.2, 61, 100, 3600, 7200)] == ["1 s", "61 s", "2 min", "60 min", "2.0 h"]

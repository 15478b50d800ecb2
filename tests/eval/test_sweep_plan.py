"""What a sweep has to do: cells, keys, LoRAs, what is missing, what it costs, and a log that survives its writer."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.lora_makers import make_loras
from eval.lora_plan import LoraPlan, plan_loras
from eval.progress import Progress
from eval.run_files import RunFiles, Score
from eval.score_log import ScoreLog
from eval.scoring import open_scorer
from eval.suite import MetricSettings, Suite
from eval.suite_files import load_suite
from eval.sweep import (
    cell_rows,
    estimate,
    missing_scores,
    place_images,
    score_works,
    still_key,
    unreadable_clips,
    write_still,
)
from p2e.bases import world_base_folder
from p2e.config import RenderConfig
from p2e.errors import ConfigError, InputError
from p2e.render.video import read_video
from p2e.world.config import WorldLibraryConfig

RECIPE = WorldLibraryConfig()
RECIPES = {"one": "one/1", "two": "two/1"}


def suite_of(methods: Sequence[str], **changes: Any) -> Suite:
    values = load_suite("world", only=["red_mood", "levitation"], scenes=2).model_dump()
    named = [{"title": method.replace(":", "-"), "column": method} for method in methods]
    return Suite.parse(values | {"methods": named, "reference": None, "baseline": None} | changes)


def suite_with(method: dict[str, Any]) -> Suite:
    return Suite.parse(suite_of(["base"]).model_dump() | {"methods": [method]})


def score(key: str, **changes: Any) -> Score:
    common = {"clip": "c", "effect": "e", "metric": "m", "recipe": "m/1", "value": 0.5}
    return Score.parse({"key": key} | common | changes)


def test_pictures_are_placed_once_and_renewed_when_they_change(tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "a.png")
    scenes = [
        {"id": "w", "category": "x", "image": "world:4"},
        {"id": "a b", "category": "x", "image": f"{tmp_path}/a.png"},
    ]
    suite, run = suite_of(["base"], scenes=scenes), tmp_path / "run"
    assert place_images(suite, str(run)) == {"w": "images/w.png", "a b": "images/a b.png"}
    with Image.open(run / "images/w.png") as image:
        assert image.size == (96, 96) and image.mode == "RGB"
    before = {path: path.stat().st_mtime_ns for path in (run / "images").iterdir()}
    place_images(suite, str(run))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    Image.radial_gradient("L").save(tmp_path / "a.png")
    place_images(suite, str(run))
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["a b.png"]


@pytest.mark.parametrize(
    ("scene", "says"),
    [
        ({"image_prompt": "a cat"}, "scene s has no picture"),
        ({"image": "world:76"}, "world:0 to world:75"),
        ({"image": "world:-1"}, "world:0 to world:75"),
        ({"image": "nowhere.png"}, "no such file"),
    ],
)
def test_scenes_without_a_picture(tmp_path: Path, scene: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        place_images(suite_of(["base"], scenes=[{"id": "s", "category": "x"} | scene]), str(tmp_path))


def test_which_lora_a_method_has(tmp_path: Path) -> None:
    library = world_base_folder().parent / "library/loras"
    suite = suite_of(["still", "base", "lora", "zero", "random", "mean", "nearest", "softmax", "hdb"])
    plan = plan_loras(suite, str(tmp_path), RECIPE)
    for effect in ("red_mood", "levitation"):
        assert plan.files["base", effect] is plan.files["still", effect] is None
        assert Path(str(plan.files["lora", effect])) == library / f"{effect}.safetensors"
        assert plan.errors["hdb", effect].startswith("no_checkpoint: ")
    keys = plan.keys
    assert keys["mean", "red_mood"] == keys["mean", "levitation"]
    for method in ("zero", "random", "nearest", "softmax"):
        assert keys[method, "red_mood"] != keys[method, "levitation"]
    assert sorted((task.kind, len(task.wanted)) for task in plan.tasks) == [
        ("mean", 1), ("nearest", 2), ("predicted", 2), ("predicted", 2), ("softmax", 2)
    ]  # fmt: skip
    # Another wording is another prediction, and the same mean.
    worded = suite.model_dump()
    worded["effects"][0]["prompt"] = "it all turns red"
    other = plan_loras(Suite.parse(worded), str(tmp_path), RECIPE).keys
    name = suite.effects[0].name
    assert {method for (method, effect), key in other.items() if effect == name and key != keys[method, effect]} == {
        "zero", "nearest", "softmax"
    }  # fmt: skip


def test_trained_loras_are_known_by_their_recipe(tmp_path: Path) -> None:
    suite = suite_of(["init:50", "lora:50", "lora:100"])
    plan = plan_loras(suite, str(tmp_path), RECIPE)
    assert len({*plan.keys.values()}) == len(plan.tasks) == 6 and {task.kind for task in plan.tasks} == {"trained"}
    fewer = plan_loras(suite, str(tmp_path), RECIPE.model_copy(update={"clips": 4}))
    assert not {*fewer.keys.values()} & {*plan.keys.values()}
    steps = estimate(suite, plan, [], [], set(), 0, 10, None, 1, False).training_steps
    assert steps == 2 * (50 + 50 + 100)


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("zero", {"checkpoint": None}, "set checkpoint"),
        ("mean", {"library": None}, "set library"),
        ("lora", {"library": None}, "set library"),
        ("cap", {}, "cap is of"),
        ("best", {}, "no column is named 'best'"),
        ("init:5", {"effects": [{"name": "mine", "prompt": "x"}]}, "trained here in the world only"),
        ("random", {"effects": [{"name": "mine", "prompt": "x"}]}, "two effects or more"),
    ],
)
def test_methods_that_a_suite_cannot_have(tmp_path: Path, method: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan_loras(suite_of([method], **changes), str(tmp_path), RECIPE)


def test_loras_from_elsewhere(tmp_path: Path) -> None:
    shutil.copy(world_base_folder().parent / "library/loras/red_mood.safetensors", tmp_path / "red_mood.safetensors")
    method = {"title": "Mine", "loras": f"{tmp_path}/{{effect}}.safetensors"}
    plan = plan_loras(suite_with(method), str(tmp_path), RECIPE)
    assert plan.files == {("Mine", "red_mood"): f"{tmp_path}/red_mood.safetensors"} and not plan.tasks
    assert plan.errors["Mine", "levitation"] == f"no_lora: {tmp_path}/levitation.safetensors: no such file"


def test_made_loras_are_found_again_and_failures_are_their_rows_own(tmp_path: Path) -> None:
    loras = world_base_folder().parent / "library/loras"
    entries = [
        {"effect": name, "prompts": [prompt], "lora": f"{loras}/{name}.safetensors"}
        for name, prompt in (
            ("blue_mood", "Gradually colour the whole video a saturated blue."),
            ("balloon", "The subject is lifted into the air by a balloon."),
        )
    ]
    (tmp_path / "library.yaml").write_text(yaml.safe_dump({"base": "world", "entries": entries}))
    suite = suite_of(["nearest", "zero"], library=f"{tmp_path}/library.yaml")
    plan = plan_loras(suite, str(tmp_path), RECIPE)
    (nearest,) = [task for task in plan.tasks if task.kind == "nearest"]
    (zero,) = [task for task in plan.tasks if task.kind == "predicted"]
    assert make_loras(nearest, "cpu") == {want.key: "" for want in nearest.wanted}
    failed = make_loras(zero.model_copy(update={"source": str(tmp_path / "nowhere")}), "cpu")
    assert all("nowhere" in error for error in failed.values())
    plan.settle(f"{tmp_path}/loras", failed)
    assert Path(str(plan.files["nearest", "red_mood"])) == loras / "blue_mood.safetensors"
    assert Path(str(plan.files["nearest", "levitation"])) == loras / "balloon.safetensors"
    assert plan.errors["zero", "red_mood"].startswith("no_lora: ") and ("zero", "red_mood") not in plan.files
    again = plan_loras(suite, str(tmp_path), RECIPE)
    assert [task.kind for task in again.tasks] == ["predicted"] and again.keys == plan.keys
    again.settle(f"{tmp_path}/loras", {}, again.pending)
    assert again.files == plan.files and not again.errors


def test_cells_come_in_order_and_share_clips(tmp_path: Path) -> None:
    suite = suite_of(["still", "base", "hdb"], template="{scene} {effect}")
    run, plan = str(tmp_path), plan_loras(suite, str(tmp_path), RECIPE)
    cells = cell_rows(suite, plan, run, place_images(suite, run))
    order = [(m.title, e.name, s.id) for m in suite.methods for e in suite.effects for s in suite.scenes]
    assert [(cell.method, cell.effect, cell.scene) for cell in cells] == order
    assert [cell.still for cell in cells] == [True] * 4 + [False] * 8
    rows = [cell.row for cell in cells[4:8]]
    assert [row and row.prompt for row in rows] == [e.prompt for e in suite.effects for _ in range(2)]
    assert [row and row.seed for row in rows] == [scene.seed for _ in range(2) for scene in suite.scenes]
    assert all(cell.row is None and cell.error.startswith("no_checkpoint") for cell in cells[8:])
    settings = RenderConfig()
    keys = [still_key(f"{run}/{cell.image}", settings, 2) for cell in cells[:4]]
    assert keys[:2] == keys[2:] and len({*keys}) == 2 and still_key(f"{run}/{cells[0].image}", settings, 1) != keys[0]
    works = score_works(suite, cells, [*keys, *[None] * 8], run)
    assert [[work.effect for work in works[key]] for key in keys[:2]] == [[e.name for e in suite.effects]] * 2
    assert works[keys[0]][0].scene == "world:0" and works[keys[0]][0].prompt == suite.effects[0].prompt
    line = cells[-1].line(None)
    assert line.clip is None and line.error == cells[-1].error


def test_a_still_stands_still(tmp_path: Path) -> None:
    Image.linear_gradient("L").convert("RGB").resize((40, 32)).save(tmp_path / "a.png")
    write_still(str(tmp_path / "a.mp4"), str(tmp_path / "a.png"), RenderConfig(height=32, width=32, frames=5), 2)
    clip = read_video(tmp_path / "a.mp4")
    assert clip.frames.shape == (5, 64, 64, 3) and abs(clip.frames.astype(int) - clip.frames[0]).max() <= 3


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    run = str(tmp_path_factory.mktemp("works"))
    suite = suite_of(["base"])
    cells = cell_rows(suite, plan_loras(suite, run, RECIPE), run, place_images(suite, run))
    yield score_works(suite, cells, [f"k{i}" for i in range(len(cells))], run)


@given(st.sets(st.tuples(st.integers(0, 3), st.sampled_from(sorted(RECIPES)))), st.booleans())
def test_exactly_what_has_no_score_is_missing(works: Any, done: set[tuple[int, str]], broken: bool) -> None:
    from eval.metrics import score_key

    known = {}
    for index, metric in done:
        key = score_key(works[f"k{index}"][0].item(), RECIPES[metric])
        known[key] = score(key, clip=f"k{index}", metric=metric, **({"value": None, "error": "x: y"} if broken else {}))
    for retry in (False, True):
        left = missing_scores(works, RECIPES, known, retry)
        found = {(int(key[1:]), name) for key, own in left.items() for work in own for name in work.metrics}
        every = {(index, name) for index in range(4) for name in RECIPES}
        assert found == (every if retry and broken else every - done)
    assert missing_scores(works, {"one": "one/2"}, known, False).keys() == works.keys()


def test_unreadable_clips_are_told_from_metrics_that_break() -> None:
    scores = [
        score("1", clip="a", value=None, error="not_a_video: x"),
        score("2", clip="b", value=None, error="internal: x"),
    ]
    assert unreadable_clips([*scores, score("3", clip="c")]) == {"a"}


def test_an_estimate_counts_each_clip_once(tmp_path: Path) -> None:
    suite = suite_of(["base", "zero", "random"])
    run, plan = str(tmp_path), plan_loras(suite, str(tmp_path), RECIPE)
    cells = cell_rows(suite, plan, run, place_images(suite, run))
    keys = [f"k{i}" if cell.method == "base" else None for i, cell in enumerate(cells)]
    found = estimate(suite, plan, cells, keys, {"k0"}, 7, 10, 0.5, 2, False)
    assert (found.clips, found.kept, found.unknown, found.loras) == (3 + 8, 1, 8, 4)
    assert found.seconds == 11 * 10 * 0.5 and "11 clips to make (1 are there)" in found.text()
    assert (
        "0.5 min on 2 renderers" in found.text()
        and "no rate" in estimate(suite, plan, cells, keys, set(), 7, 10, None, 1, True).text()
    )


@given(st.integers(0, 400), st.integers(1, 5))
def test_a_log_mends_what_a_killed_writer_left(tmp_path_factory: pytest.TempPathFactory, cut: int, count: int) -> None:
    folder = tmp_path_factory.mktemp("log")
    with ScoreLog(str(folder), "metrics") as log:
        log.add([score(str(i)) for i in range(count)])
    path = folder / "scores/metrics.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    kept = path.read_bytes().count(b"\n")
    with ScoreLog(str(folder), "metrics") as log:
        log.add([score("new")])
    lines = path.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [*map(str, range(kept)), "new"]
    assert RunFiles.of(folder).scores().keys() == {*map(str, range(kept)), "new"}


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    with ScoreLog(str(tmp_path), "metrics"), pytest.raises(InputError, match="another process writes there"):
        ScoreLog(str(tmp_path), "metrics")
    ScoreLog(str(tmp_path), "metrics").close()
    (tmp_path / "scores").rename(tmp_path / "other")
    (tmp_path / "scores").write_text("a file")
    with pytest.raises(OSError, match="cannot be written"):
        ScoreLog(str(tmp_path), "metrics")


def test_behind_a_url_the_log_is_of_parts() -> None:
    folder = "memory://sweep-log"
    for number in range(2):
        with ScoreLog(folder, "metrics") as log:
            log.add([score(f"{number}-{i}") for i in range(600)])
            log.add([score("same", value=float(number))])
    names = sorted(RunFiles.of(folder)._names("scores"))
    assert names == [f"metrics-0000{i}.jsonl" for i in range(4)]
    found = RunFiles.of(folder).scores()
    assert len(found) == 1201 and found["same"].value == 1.0


def test_timing(tmp_path: Path) -> None:
    progress = Progress()
    progress.begin(2, 4)
    line = {"actor": "a", "seconds": 3.0, "scorer": "b", "scoring_seconds": 1.0}
    progress.add(line, True, 2)
    progress.add(line | {"actor": "c"}, True, 2)
    progress.ended = progress.started + 6
    timing = progress.timing(10, False)
    assert timing["stages"]["render"] == {"actors": 2, "busy_s": 6.0, "idle_share": 0.5}
    assert timing["stages"]["metrics"]["idle_share"] == pytest.approx(2 / 3)
    assert timing["clips_per_minute"] == pytest.approx(20) and timing["seconds_per_step"] == pytest.approx(0.3)
    assert progress.text(progress.started + 6).startswith("clips 2/2, scores 4/4, 20.0 clips/min, 0.0 min left")
    Progress().write(str(tmp_path / "timing.json"), 10, False)
    assert not (tmp_path / "timing.json").exists()  # a run that did nothing has measured nothing


def test_metrics_of_a_user() -> None:
    named = {"name": "sweep_metric:Brightness", "options": {"breaks_on": "x"}}
    assert open_scorer(MetricSettings.parse(named), "cpu").recipe == "brightness/1 x"
    for name in ("sweep_metric:NoMetric", "sweep_metric:Nothing", "no_such_module_here:X"):
        with pytest.raises(ConfigError, match="cannot be opened") as error:
            open_scorer(MetricSettings(name=name), "cpu")
        assert "\n" not in str(error.value)


def test_plans_of_yaml_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "library.yaml").write_text(yaml.safe_dump({"base": "wan2.1-t2v-1.3b", "entries": [
        {"effect": "red_mood", "prompts": ["x"], "lora": "nowhere.safetensors"}]}))  # fmt: skip
    with pytest.raises(InputError, match=r"library is for wan2\.1-t2v-1\.3b"):
        plan_loras(suite_of(["base"], library=f"{tmp_path}/library.yaml"), str(tmp_path), RECIPE)
    assert LoraPlan().tasks == []

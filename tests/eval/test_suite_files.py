"""Suites from YAML: short forms, cuts, and mistakes that are one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eval.suite import SuiteEffect
from eval.suite_files import load_suite, shipped_suites, world_suite_scenes
from eval.world.run import pick_effects
from p2e.errors import ConfigError
from p2e.world.effects import EFFECTS
from p2e.world.scenes import CATEGORIES, evaluation_scenes

SMALL: dict[str, Any] = {
    "name": "small", "base": "world", "library": "world", "checkpoint": "world",
    "effects": [{"name": "melt", "prompt": "it melts"}, {"name": "glow", "prompt": "it glows", "split": "ood"}],
    "scenes": [{"id": "a", "category": "single", "image": "a.png"}, {"id": "b", "category": "x", "image": "world:3"}],
    "methods": [{"title": "Base", "column": "base"}, {"title": "Mine", "loras": "loras/{effect}.safetensors"}],
    "baseline": "Base", "reference": "Mine",
}  # fmt: skip


def write(folder: Path, **changes: Any) -> str:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return str(path)


def test_the_world_s_suites() -> None:
    small, full = load_suite("world"), load_suite("world_full")
    assert len(small.scenes) == len(full.scenes) == 76 and len(full.effects) == len(EFFECTS) > len(small.effects)
    specs = {spec.name: spec for spec in EFFECTS}
    for effect in full.effects:
        spec = specs[effect.name]
        assert effect.prompt in spec.unseen_prompts and effect.prompt not in spec.train_prompts
        assert (effect.split, effect.category) == (spec.split, spec.category)
    assert {"base", "lora", "zero", "mean", "nearest", "random", "still"} == {m.column for m in small.methods}
    assert {"init:50", "init:100", "lora:100", "hdb"} <= {m.column for m in full.methods}


def test_the_world_s_scenes_have_the_categories_that_are_drawn() -> None:
    drawn = [CATEGORIES[index] for index in evaluation_scenes().category.tolist()]
    scenes = world_suite_scenes()
    assert [scene.category for scene in scenes] == drawn
    assert [scene.image for scene in scenes] == [f"world:{index}" for index in range(76)]
    assert [scene.image for scene in world_suite_scenes(["animals"])[:2]] == ["world:4", "world:9"]
    with pytest.raises(ConfigError, match="no category 'cars'"):
        world_suite_scenes(["cars"])


def test_paths_start_at_the_suite_s_folder(tmp_path: Path) -> None:
    (tmp_path / "b.png").touch()
    scenes = [*SMALL["scenes"], {"id": "b2", "category": "x", "image_prompt": "a cat"}]
    scenes.append({"id": "c", "category": "x", "image_prompt": "a dog"})
    (tmp_path / "b2.png").touch()
    suite = load_suite(write(tmp_path, scenes=scenes, scene_images="{scene}.png", base="models/wan"))
    images = [f"{tmp_path}/a.png", "world:3", f"{tmp_path}/b2.png", None]
    assert [scene.image for scene in suite.scenes] == images
    assert suite.methods[1].loras == f"{tmp_path}/loras/{{effect}}.safetensors"
    assert suite.base == f"{tmp_path}/models/wan" and suite.library == suite.checkpoint == "world"


def test_cuts(tmp_path: Path) -> None:
    path = write(tmp_path)
    cut = load_suite(path, effects=1, scenes=1, methods=["base"])
    assert [e.name for e in cut.effects] == ["melt"] and [s.id for s in cut.scenes] == ["a"]
    assert [m.title for m in cut.methods] == ["Base"] and cut.baseline == "Base" and cut.reference is None
    assert [e.name for e in load_suite(path, only=["glow"]).effects] == ["glow"]
    assert load_suite(path, judge={"model": "x"}).judge == {"model": "x"}
    with pytest.raises(ConfigError, match="has no effect 'freeze'"):
        load_suite(path, only=["freeze"])
    with pytest.raises(ConfigError, match="has no method 'lora'; its methods are Base, Mine"):
        load_suite(path, methods=["lora"])


def test_the_paper_s_design_with_a_library_of_one_s_own(tmp_path: Path) -> None:
    from eval.suite_files import FOLDER

    splits = {"train": 70, "ood": 32, "heldout": 3}
    entries = [
        {"effect": f"{split}_{i}", "prompts": [f"first {i}", f"last {i}"], "lora": f"{i}.safetensors", "split": split}
        for split, count in splits.items()
        for i in range(count)
    ]
    (tmp_path / "library").mkdir()
    (tmp_path / "library/manifest.yaml").write_text(yaml.safe_dump({"base": "wan2.1-i2v-14b", "entries": entries}))
    (tmp_path / "prompts.yaml").write_text("train_0: worded anew\n")
    (tmp_path / "suite.yaml").write_text((FOLDER / "wan14b_paper.yaml").read_text())
    suite = load_suite(str(tmp_path / "suite.yaml"))
    assert len(suite.effects) == 102 and {e.split for e in suite.effects} == {"train", "ood"}
    assert suite.effects[0].prompt == "worded anew" and suite.effects[1].prompt == "last 1"
    assert len(suite.scenes) == 76 and len({scene.image_prompt for scene in suite.scenes}) == 76
    counts = {c: sum(scene.category == c for scene in suite.scenes) for c in CATEGORIES}
    assert set(counts) == {scene.category for scene in suite.scenes} and min(counts.values()) == 15
    assert "wan14b_paper" in shipped_suites()
    (tmp_path / "prompts.yaml").write_text("stranger: x\n")
    with pytest.raises(ConfigError, match="no effect 'stranger'"):
        load_suite(str(tmp_path / "suite.yaml"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"effects": "moon"}, "effects: give world, a source, or a list"),
        ({"effects": {"world": "all", "manifest": "m.yaml"}}, "give exactly one"),
        ({"effects": {"world": "all", "prompts": "p.yaml"}}, "prompts of its own"),
        ({"effects": {"manifest": "nowhere.yaml"}}, "nowhere.yaml: no such file"),
        ({"effects": {"world": "shipped", "splits": ["ood"]}}, "leave no effect"),
        ({"effects": [{"name": "melt"}]}, "effects, number 1: prompt"),
        ({"effects": SMALL["effects"] * 2}, "effect melt appears twice"),
        ({"scenes": {"world": True, "size": 3}}, "scenes: size"),
        ({"scenes": [{"id": "a", "category": "x"}]}, "neither image nor image_prompt"),
        ({"methods": [{"title": "A", "column": "base", "loras": "{effect}"}]}, "either column or loras"),
        ({"scene_images": "a.png"}, "scene_images"),
        ({"sede": 1}, "sede"),
        ({"reference": "LoRA"}, "LoRA is no method"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        load_suite(write(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_files_that_are_no_suites(tmp_path: Path) -> None:
    for text, says in (("[1]", "KEY: VALUE"), ("a: [", "not valid YAML")):
        (tmp_path / "suite.yaml").write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_suite(str(tmp_path / "suite.yaml"))
    with pytest.raises(ConfigError, match=r"no such suite; give a YAML file, or one of .*world"):
        load_suite("moon")


@given(st.lists(st.sampled_from(["train", "heldout", "ood"]), min_size=1, max_size=40), st.integers(1, 50))
def test_a_cut_takes_of_each_split_alike(splits: list[Any], count: int) -> None:
    effects = [SuiteEffect(name=f"e{i}", prompt="x", split=split) for i, split in enumerate(splits)]
    found = pick_effects(effects, count)
    assert len(found) == min(count, len(effects)) and found == [e for e in effects if e in found]
    taken = {s: sum(e.split == s for e in found) for s in {*splits}}
    for split, number in taken.items():  # one that got less than another has no more to give
        assert number == splits.count(split) or number >= max(taken.values()) - 1

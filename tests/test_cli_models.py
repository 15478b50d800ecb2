"""The commands that use a model, in the order a user takes them: library, train, predict, render, adapt."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_runner import assert_mistake, files_in, run_cli, run_well
from PIL import Image
from tiny import tiny_lora, tiny_pipeline

from p2e.bases import Base, open_base
from p2e.files import SafetensorsFile, write_safetensors
from p2e.lora.formats import read_lora, write_lora
from p2e.render.video import read_video

HYPERNET = {"width": 32, "layers": 1, "heads": 4, "latents": 4, "rank": 4, "ffn_ratio": 2}
MEGABYTE = "a" * (1 << 20)


@dataclass(frozen=True)
class Studio:
    """A folder with a base, a library of two LoRAs, a configuration, a trained checkpoint and a picture."""

    folder: Path
    table: Base

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.yaml"

    @property
    def prepared(self) -> Path:
        return self.folder / "prepared"

    @property
    def config(self) -> Path:
        return self.folder / "train.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "run"

    @property
    def picture(self) -> Path:
        return self.folder / "picture.png"

    def settings(self, **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "library": str(self.prepared), "base": str(self.base), "output": str(self.checkpoint),
            "hypernet": HYPERNET, "steps": 2, "sites_per_step": 6, "effects_per_step": 2, "device": "cpu",
            "tensorboard": False,
        }  # fmt: skip
        return values | changes


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """Made by the commands themselves."""
    folder = tmp_path_factory.mktemp("studio")
    tiny_pipeline().save_pretrained(folder / "base")
    studio = Studio(folder, open_base(folder / "base")[0])
    entries = []
    for seed, (effect, prompt) in enumerate({"melt": "everything melts", "glow": "everything glows"}.items()):
        write_lora(folder / f"{effect}.safetensors", tiny_lora(studio.table, seed=seed), studio.table)
        entries.append({"effect": effect, "prompts": [prompt], "lora": f"{effect}.safetensors"})
    studio.manifest.write_text(yaml.safe_dump({"base": studio.table.name, "entries": entries}))
    studio.config.write_text(yaml.safe_dump(studio.settings()))
    Image.linear_gradient("L").convert("RGB").save(studio.picture)
    prepared = run_well(
        "library", "prepare", studio.manifest, "-o", studio.prepared, "--rank", 4, "--base", studio.base
    )
    assert "2 effects, 20 of 20 sites, rank 4 canonical, 0.00 %" in prepared
    assert str(studio.checkpoint) in run_well("train", studio.config)
    return studio


# --- library


def test_library_check(studio: Studio) -> None:
    report = json.loads(run_well("library", "check", studio.manifest, "--base", studio.base, "--json"))
    assert report["ok"] and [entry["effect"] for entry in report["entries"]] == ["melt", "glow"]
    assert all(entry["covered"] == 20 for entry in report["entries"])
    assert "melt" in run_well("library", "check", studio.manifest, "--base", studio.base)


def test_library_check_finds_problems(studio: Studio, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    entry = {"effect": "gone", "prompts": ["it goes"], "lora": "gone.safetensors"}
    manifest.write_text(yaml.safe_dump({"base": studio.table.name, "entries": [entry]}))
    result = run_cli("library", "check", manifest, "--base", studio.base, "--json")
    assert result.code == 1 and not result.err
    assert "gone.safetensors" in json.loads(result.out)["entries"][0]["problems"][0]


@pytest.mark.parametrize(
    "text",
    ["base: world\n", "base: world\nentries: []\n", "not yaml: [", "[1, 2]", "base: world\nentires: []\n", "\x00\x01"],
)
def test_bad_manifest(tmp_path: Path, text: str) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(text)
    assert_mistake(run_cli("library", "check", manifest), manifest)
    assert_mistake(run_cli("library", "prepare", manifest, "-o", tmp_path / "out", "--rank", 4), manifest)
    assert_mistake(run_cli("library", "check", tmp_path / "none.yaml"), "none.yaml")
    assert files_in(tmp_path) == {manifest}


def test_prepare_leaves_nothing_half_written(studio: Studio, tmp_path: Path) -> None:
    shutil.copy(studio.manifest, tmp_path)
    manifest, base = tmp_path / "manifest.yaml", ("--base", studio.base)
    shutil.copy(studio.folder / "melt.safetensors", tmp_path)
    (tmp_path / "glow.safetensors").write_bytes((tmp_path / "melt.safetensors").read_bytes()[:-10])
    before = files_in(tmp_path)
    result = run_cli("library", "prepare", manifest, "-o", tmp_path / "out", "--rank", 4, *base)
    assert_mistake(result, tmp_path / "glow.safetensors")
    result = run_cli("library", "prepare", studio.manifest, "-o", manifest / "out", "--rank", 4, *base)
    assert_mistake(result, manifest / "out")
    assert files_in(tmp_path) == before and not (tmp_path / "out").exists()


# --- train


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stepz": 3}, "stepz"),
        ({"steps": "many"}, "steps"),
        ({"steps": 0}, "steps"),
        ({"hypernet": {**HYPERNET, "widht": 3}}, "widht"),
        ({"hypernet": {**HYPERNET, "heads": 3}}, "heads"),
        ({"library": "no/such/folder"}, "no/such/folder"),
        ({"base": "no/such/base"}, "no/such/base"),
        ({"base": "wan2.1-i2v-14b"}, "wan2.1-i2v-14b"),
    ],
)
def test_bad_training_configuration(studio: Studio, tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump(studio.settings(output=str(tmp_path / "run"), **changes)))
    assert_mistake(run_cli("train", config), named)
    assert not (tmp_path / "run").exists()


def test_train_without_a_configuration(tmp_path: Path) -> None:
    assert_mistake(run_cli("train", tmp_path / "none.yaml"), tmp_path / "none.yaml")
    assert_mistake(run_cli("train", tmp_path), tmp_path)


# --- predict


def predict(studio: Studio, output: Path, *more: object, prompt: str = "everything melts") -> tuple[object, ...]:
    return "predict", prompt, "--checkpoint", studio.checkpoint, "--base", studio.base, "-o", output, *more


def test_predict(studio: Studio, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    assert "rank 4, 20 of 20 sites" in run_well(*predict(studio, whole))
    run_well(*predict(studio, half, "--strength", 0.5, "--format", "kohya", "--dtype", "float32"))
    lora, weak = read_lora(whole, studio.table), read_lora(half, studio.table)
    assert lora.provenance.metadata["prompt"] == "everything melts"
    for key, factors in lora.factors.items():
        assert torch.allclose(0.5 * factors.delta(), weak.factors[key].delta(), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("prompt", ["", "   ", MEGABYTE], ids=["empty", "blank", "1 MB"])
def test_bad_prompt(studio: Studio, tmp_path: Path, prompt: str) -> None:
    assert_mistake(run_cli(*predict(studio, tmp_path / "a.safetensors", prompt=prompt)), "prompt")
    video = tmp_path / "a.mp4"
    result = run_cli("render", studio.picture, prompt, "-o", video, "--base", studio.base)
    assert_mistake(result, "prompt")
    assert len(result.err) < 300 and not files_in(tmp_path)


@pytest.mark.parametrize("strength", ["nan", "-inf", "much"])
def test_bad_strength(studio: Studio, tmp_path: Path, strength: str) -> None:
    assert_mistake(run_cli(*predict(studio, tmp_path / "a.safetensors", "--strength", strength)), "--strength")


def test_unwritable_results(studio: Studio, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for output in (blocked / "a.safetensors", tmp_path):
        assert_mistake(run_cli(*predict(studio, output)), output)
        assert_mistake(run_cli("adapt", tmp_path, "-o", output, "--base", studio.base), output)
    render = ("render", studio.picture, "it melts", "--base", studio.base, "-o")
    assert_mistake(run_cli(*render, blocked / "a.mp4"), blocked / "a.mp4")
    assert_mistake(run_cli(*render, tmp_path / "a.avi"), "a.avi", ".mp4")
    assert files_in(tmp_path) == {blocked}


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def poison(folder: Path) -> None:
    path = folder / "model.safetensors"
    with SafetensorsFile(path) as file:
        tensors, metadata = file.read_all(), file.metadata
    for tensor in tensors.values():
        tensor.view(-1)[0] = float("nan")
    write_safetensors(path, tensors, metadata)


def swap_for_pickle(folder: Path) -> None:
    torch.save({}, folder / "model.safetensors")


def add_key(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["hypernet"]["no_such_key"] = 1
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("damage", [truncate, poison, swap_for_pickle, add_key, shutil.rmtree])
def test_bad_checkpoint(studio: Studio, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(studio.checkpoint, folder)
    damage(folder)
    before = files_in(tmp_path)
    output = tmp_path / "a.safetensors"
    result = run_cli("predict", "it melts", "--checkpoint", folder, "--base", studio.base, "-o", output)
    assert_mistake(result, folder)
    assert files_in(tmp_path) == before


def test_predict_for_another_base(studio: Studio, tmp_path: Path) -> None:
    bare = ("predict", "it melts", "--checkpoint", studio.checkpoint, "-o", tmp_path / "a.safetensors", "--base")
    assert_mistake(run_cli(*bare, "wan2.1-i2v-14b"), "wan2.1-i2v-14b")
    assert_mistake(run_cli(*bare, tmp_path), tmp_path)
    assert not files_in(tmp_path)


# --- render


def test_render(studio: Studio, tmp_path: Path) -> None:
    lora = studio.folder / "melt.safetensors"
    small = ("--base", studio.base, "--steps", 1, "--frames", 5, "--height", 32, "--width", 32, "--seed", 3)
    plain, melted = tmp_path / "plain.gif", tmp_path / "melted.mp4"
    run_well("render", studio.picture, "it melts", "-o", plain, *small)
    output = run_well("render", studio.picture, "it melts", "-o", melted, "--lora", f"{lora}:2", "--scale", 2, *small)
    assert "5 frames of 32 x 32" in output
    assert read_video(plain).frames.shape == (5, 32, 32, 3) and read_video(melted).frames.shape == (5, 64, 64, 3)


def test_render_of_bad_input(studio: Studio, tmp_path: Path) -> None:
    render = ("render", studio.picture, "it melts", "--base", studio.base, "-o", tmp_path / "a.mp4")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert_mistake(run_cli("render", text, "it melts", "-o", tmp_path / "a.mp4", "--base", studio.base), text)
    assert_mistake(run_cli("render", tmp_path / "none.png", "it melts", "-o", tmp_path / "a.mp4"), "none.png")
    assert_mistake(run_cli(*render, "--lora", f"{tmp_path}/none.safetensors:0.5"), "none.safetensors")
    assert_mistake(run_cli(*render, "--lora", studio.picture), studio.picture)
    assert_mistake(run_cli(*render, "--frames", 6), "6 frames")
    assert_mistake(run_cli(*render, "--width", 33), "33")
    assert_mistake(run_cli(*render, "--device", "tpu9"), "tpu9")
    assert files_in(tmp_path) == {text}


# --- adapt


def test_adapt(studio: Studio, tmp_path: Path) -> None:
    clips, config, output = tmp_path / "clips", tmp_path / "adapt.yaml", tmp_path / "a.safetensors"
    clips.mkdir()
    run_well("world", "clip", "blue_mood", "-o", clips / "one.gif")
    (clips / "one.txt").write_text("everything turns blue")
    config.write_text("rank: 2\nprecision: float32\n")
    adapt = ("adapt", clips, "-o", output, "--base", studio.base, "--config", config)
    assert "rank 2" in run_well(*adapt, "--steps", 1)
    init = studio.folder / "melt.safetensors"
    assert "rank 3" in run_well(*adapt, "--steps", 1, "--rank", 3, "--init", init)
    assert read_lora(output, studio.table).provenance.metadata["p2e.init"] == "melt.safetensors"


def test_adapt_options_overrule_the_configuration(studio: Studio, tmp_path: Path) -> None:
    clips, config, output = tmp_path / "clips", tmp_path / "adapt.yaml", tmp_path / "a.safetensors"
    clips.mkdir()
    run_well("world", "clip", "blue_mood", "-o", clips / "one.gif")
    (clips / "one.txt").write_text("everything turns blue")
    config.write_text("rank: 2\nsteps: 1\nsites: ['cross_attn.*']\nbuckets: [[5, 32, 32]]\nlearning_rate: 0.5\n")
    adapt = ("adapt", clips, "-o", output, "--base", studio.base, "--config", config, "--cache", tmp_path / "cache")
    assert "rank 2, 8 sites" in run_well(*adapt)
    printed = run_well(*adapt, "--sites", "self_attn.[qk]", "--sites", "ffn.0", "--bucket", "9x48x32", "--batch", 2,
                       "--accumulate", 2, "--fps", 8, "--shift", 5, "--sampling", "uniform", "--checkpointing",
                       "--weights", "float32", "--learning-rate", 1e-3, "--expert", "both", "--seed", 7)  # fmt: skip
    assert "rank 2, 6 sites" in printed
    saved = json.loads((tmp_path / "a.json").read_text())
    expected = {"rank": 2, "steps": 1, "sites": ["self_attn.[qk]", "ffn.0"], "buckets": [[9, 48, 32]], "batch": 2,
                "accumulate": 2, "fps": 8.0, "shift": 5.0, "sampling": "uniform", "checkpointing": True,
                "weights": "float32", "learning_rate": 1e-3, "expert": "both", "seed": 7}  # fmt: skip
    assert expected.items() <= saved.items()
    run_well("adapt", clips, "-o", tmp_path / "b.safetensors", "--base", studio.base, "--config", tmp_path / "a.json")
    assert (tmp_path / "b.safetensors").read_bytes() == output.read_bytes()
    for wrong, said in ((("--bucket", "9x48"), "9x48"), (("--bucket", "8x48x32"), "8 frames"),
                        (("--sites", "blocks.9.*"), "blocks.9.*"), (("--expert", "middle"), "expert"),
                        (("--expert", "low"), "one transformer"), (("--fps", 0), "fps"),
                        (("--learning-rate", -1), "learning_rate"), (("--init", tmp_path / "none"), "none"),
                        (("--bucket", "1001x32x32"), "too short"), (("--cache", config), config),
                        (("--weights", "float16"), "weights")):  # fmt: skip
        assert_mistake(run_cli(*adapt, *wrong), said)


def test_adapt_of_bad_input(studio: Studio, tmp_path: Path) -> None:
    empty, config = tmp_path / "empty", tmp_path / "adapt.yaml"
    empty.mkdir()
    config.write_text("rnak: 2\n")
    adapt = ("adapt", empty, "-o", tmp_path / "a.safetensors", "--base", studio.base)
    assert_mistake(run_cli(*adapt), empty)
    assert_mistake(run_cli(*adapt, "--config", config), config, "rnak")
    (empty / "one.gif").write_text("no video")
    assert_mistake(run_cli(*adapt), "one.gif", "one.txt")
    (empty / "one.txt").write_text("everything turns blue")
    assert_mistake(run_cli(*adapt), empty / "one.gif")
    assert files_in(tmp_path) == {config, empty / "one.gif", empty / "one.txt"}


# --- world


def test_world(tmp_path: Path) -> None:
    effects = json.loads(run_well("world", "effects", "--json"))
    assert {"blue_mood"} <= {effect["name"] for effect in effects}
    assert len(run_well("world", "effects").splitlines()) == len(effects)
    run_well("world", "scene", "--scene", 3, "-o", tmp_path / "scene.png")
    run_well("world", "clip", "blue_mood", "--scene", 3, "-o", tmp_path / "truth.gif")
    with Image.open(tmp_path / "scene.png") as scene:
        assert scene.size == (96, 96)
    run_well("world", "show", "--effect", "blue_mood", "-o", tmp_path / "sheet.png")
    assert_mistake(run_cli("world", "clip", "no_such", "-o", tmp_path / "a.gif"), "no_such")
    assert_mistake(run_cli("world", "scene", "--scene", 999, "-o", tmp_path / "a.png"), "999")
    assert_mistake(run_cli("world", "scene", "-o", tmp_path / "a.jpg"), "a.jpg")
    assert len(files_in(tmp_path)) == 3


# --- demo


def test_demo_of_bad_input(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert_mistake(run_cli("demo", "-o", blocked), blocked)
    assert_mistake(run_cli("demo", "-o", blocked / "demo"), blocked / "demo")
    assert_mistake(run_cli("demo", "-o", tmp_path / "demo", "--effect", "red_mood"), "red_mood")  # a training effect
    assert files_in(tmp_path) == {blocked}

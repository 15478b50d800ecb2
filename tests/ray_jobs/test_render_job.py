"""Rendering rows on a cluster: the plain renderer's bytes, failures as rows, and only what is missing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from local_ray import local_ray
from PIL import Image
from pyarrow import parquet
from tiny import tiny_lora, tiny_pipeline

from p2e.bases import open_base
from p2e.config import RenderConfig
from p2e.errors import ConfigError, InputError
from p2e.lora.formats import read_lora, write_lora
from p2e.render.image import load_image
from p2e.render.pipeline import Renderer
from p2e.render.video import write_mp4
from ray_jobs.attempts import Attempts
from ray_jobs.clip_actor import ClipActor
from ray_jobs.render import RenderJob, RenderResult, plan_rows, render_rows
from ray_jobs.rows import read_rows

SMALL: dict[str, Any] = {"height": 32, "width": 32, "frames": 5, "steps": 1, "max_rank": 8}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_ray() as address:
        yield address


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two LoRAs and two pictures."""
    folder = tmp_path_factory.mktemp("studio")
    tiny_pipeline().save_pretrained(folder / "base")
    base = open_base(folder / "base")[0]
    for seed, name in enumerate(("melt", "glow")):
        write_lora(folder / f"{name}.safetensors", tiny_lora(base, seed=seed), base)
    Image.linear_gradient("L").convert("RGB").save(folder / "grey.png")
    Image.radial_gradient("L").convert("RGB").save(folder / "round.png")
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    melt, glow = {"lora": "melt.safetensors"}, {"lora": "glow.safetensors"}
    return [
        {"image": "grey.png", "prompt": "it melts", "seed": 3, **melt},
        {"image": "grey.png", "prompt": "nothing", "id": "plain"},
        {"image": f"file://{folder}/round.png", "prompt": "it melts", "strength": 0.5, **melt},
        {"image": "broken.png", "prompt": "it glows", **glow},
        {"image": "round.png", "prompt": "it glows", **glow},
        {"image": "round.png", "prompt": "it does", "lora": "nowhere.safetensors"},
        {"image": "grey.png", "prompt": "it glows", **glow},
        {"image": "grey.png", "prompt": "it melts", "seed": 3, **melt, "id": "the first again"},
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return str(path)


def job(studio: Path, rows: str, output: Path, **changes: Any) -> RenderJob:
    values = {"rows": rows, "output": str(output), "base": str(studio / "base"), "render": SMALL, "rows_per_task": 2}
    return RenderJob.parse(values | changes)


def statuses(results: list[RenderResult]) -> list[str]:
    return [result.status for result in results]


def test_rows_become_clips_and_only_missing_ones_are_made(cluster: str, studio: Path, tmp_path: Path) -> None:
    (studio / "broken.png").write_text("no picture")
    asked = job(studio, write_rows(studio / "rows.jsonl", rows_of(studio)), tmp_path, scale=2)
    before = tmp_path / f"clips/{plan_rows(asked).keys[-2]}.mp4"  # as from a run that was cut off
    before.parent.mkdir()
    before.write_bytes(b"made before")
    results = render_rows(asked)
    assert statuses(results) == ["made", "made", "made", "failed", "made", "failed", "kept", "made"]
    assert "broken.png: not an image" in results[3].error and "nowhere.safetensors: no such file" in results[5].error
    assert all("\n" not in result.error for result in results)
    assert before.read_bytes() == b"made before" and results[6].video == f"clips/{before.name}"
    assert results[0].video == results[7].video and len({result.video for result in results}) == 6
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [RenderResult.parse(json.loads(line)) for line in lines] == results
    assert [result.row.id for result in results if result.row.id] == ["plain", "the first again"]

    # The clips are those of a renderer by itself.
    renderer = Renderer.open(studio / "base", settings=RenderConfig.parse(SMALL | {"fps": 8}))
    for index, name, strength, seed in (
        (0, "melt", 1.0, 3), (1, None, 1.0, 0), (2, "melt", 0.5, 0), (4, "glow", 1.0, 0)
    ):  # fmt: skip
        row = results[index].row
        lora = None if name is None else read_lora(studio / f"{name}.safetensors", renderer.base)
        clip = renderer.render(load_image(row.image), row.prompt, lora=lora, strength=strength, seed=seed)
        write_mp4(tmp_path / "one.mp4", clip, scale=2)
        assert (tmp_path / str(results[index].video)).read_bytes() == (tmp_path / "one.mp4").read_bytes(), index
    assert len({(tmp_path / str(results[i].video)).read_bytes() for i in (0, 1, 2, 4)}) == 4

    # Again: nothing is rendered.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}
    good = write_rows(studio / "rows.jsonl", [row for i, row in enumerate(rows_of(studio)) if i not in (3, 5)])
    assert set(statuses(render_rows(job(studio, good, tmp_path, scale=2)))) == {"kept"}
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}


def test_a_clip_is_known_by_all_it_shows(studio: Path, tmp_path: Path) -> None:
    rows = rows_of(studio)
    path = write_rows(studio / "rows.jsonl", rows)
    keys = plan_rows(job(studio, path, tmp_path)).keys
    assert keys == plan_rows(job(studio, path, tmp_path / "other", rows_per_task=1, cpus=2)).keys
    for changes in ({"scale": 3}, {"render": SMALL | {"steps": 2}}, {"gpus": 1}):
        assert not set(keys) & set(plan_rows(job(studio, path, tmp_path, **changes)).keys)
    lora = studio / "glow.safetensors"
    lora.write_bytes((studio / "melt.safetensors").read_bytes())
    changed = plan_rows(job(studio, path, tmp_path)).keys
    assert [a == b for a, b in zip(keys, changed, strict=True)] == [row.get("lora") != lora.name for row in rows]


def test_an_actor_that_cannot_start_says_why(studio: Path, tmp_path: Path) -> None:
    broken = tmp_path / "base"
    tiny_pipeline().save_pretrained(broken)
    (broken / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    settings, attempts = RenderConfig.parse(SMALL), Attempts(str(tmp_path / "attempts"), 3)
    actor = ClipActor(str(broken), settings, 1, False, str(tmp_path / "out"), attempts)
    row = json.dumps(["key", {"image": str(studio / "grey.png"), "prompt": "it melts"}])
    (line,) = actor({"rows": [row]})
    assert line["key"] == "key" and "not a readable diffusers pipeline" in line["error"]
    assert not (tmp_path / "out").exists()


def test_rows_of_parquet_are_those_of_jsonl(studio: Path) -> None:
    rows = rows_of(studio)
    lines = write_rows(studio / "rows.jsonl", rows)
    columns = {key: [row.get(key) for row in rows] for key in ("image", "prompt", "lora", "strength", "seed", "id")}
    parquet.write_table(pyarrow.table(columns), studio / "rows.parquet")
    assert read_rows(str(studio / "rows.parquet")) == read_rows(lines)
    experts = [{"high_noise": "melt.safetensors", "low_noise": None}, None]
    table = pyarrow.table({"image": ["grey.png"] * 2, "prompt": ["it melts"] * 2, "lora": experts})
    parquet.write_table(table, studio / "experts.parquet")
    first, second = read_rows(f"file://{studio}/experts.parquet")
    assert first.lora == {"high_noise": f"file://{studio}/melt.safetensors"} and second.lora is None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"image": "a.png"}', "row 2: prompt"),
        ('{"image": "a.png", "prompt": " "}', "row 2: prompt"),
        ('{"image": "a.png", "prompt": "x", "sede": 1}', "row 2: sede"),
        ('{"image": "a.png", "prompt": "x", "strength": NaN}', "row 2: strength"),
        ('{"image": "a.png", "prompt": "x", "seed": -1}', "row 2: seed"),
        ("[1]", "row 2"),
        ("{", "row 2 is not JSON"),
    ],
)
def test_a_row_with_a_mistake_is_named(tmp_path: Path, row: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"image": "a.png", "prompt": "x"}}\n{row}\n')
    with pytest.raises(ConfigError, match=says) as error:
        read_rows(str(path))
    assert "\n" not in str(error.value)


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows"):
        read_rows(str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_rows(str(tmp_path / "rows.parquet"))

"""Checkpoints come back as they were, and anything else is refused in a line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import tiny_base
from tiny_training import SMALL, tiny_weights

from p2e.config import HypernetConfig
from p2e.errors import FormatError, InputError, OutputError
from p2e.files import SafetensorsFile, write_safetensors
from p2e.hypernet.checkpoint import load_checkpoint, save_checkpoint
from p2e.hypernet.variants import build_hypernet

BASE = tiny_base("toy")
CONFIG = HypernetConfig.parse(SMALL)
SCALES = {site.key: (0.5 + site.index, 2.0) for site in BASE.sites if site.module != "ffn.2"}


def save(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_hypernet(CONFIG, BASE)
    save_checkpoint(
        folder, model, base=BASE, config=CONFIG, scales=SCALES, base_hash="b" * 64, library_hash="l" * 64, step=7,
        training={"steps": 9}, dtype=dtype,
    )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    save(folder)
    return folder


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    model = save(tmp_path / "run")
    found = load_checkpoint(tmp_path / "run", base=BASE)
    assert found.config == CONFIG and found.base == BASE and found.scales == SCALES
    assert (found.base_hash, found.library_hash, found.targets) == ("b" * 64, "l" * 64, "canonical")
    assert found.settings["training"] == {"steps": 9}
    loaded = found.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    assert not found.model.training and not any(p.requires_grad for p in found.model.parameters())
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors", "sites.json"]


def test_half_the_bytes_in_bfloat16(tmp_path: Path) -> None:
    model = save(tmp_path / "low", torch.bfloat16)
    assert load_checkpoint(tmp_path / "low", base=BASE, dtype=torch.bfloat16).dtype == torch.bfloat16
    with SafetensorsFile(tmp_path / "low" / "model.safetensors") as file:
        assert {spec.dtype for spec in file.specs.values()} == {torch.bfloat16}
    wide = load_checkpoint(tmp_path / "low", base=BASE)
    assert wide.dtype == torch.float32  # on a CPU
    known = model.state_dict()
    assert all(torch.equal(value.bfloat16(), known[name].bfloat16()) for name, value in wide.model.state_dict().items())


def test_the_hash_follows_weights_and_settings(saved: Path, tmp_path: Path) -> None:
    save(tmp_path / "same")
    save(tmp_path / "other", torch.bfloat16)
    hashes = [load_checkpoint(folder, base=BASE).hash for folder in (saved, tmp_path / "same", tmp_path / "other")]
    assert hashes[0] == hashes[1] != hashes[2]


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        with SafetensorsFile(folder / "model.safetensors") as file:
            tensors, metadata = file.read_all(), file.metadata
        change(tensors)
        write_safetensors(folder / "model.safetensors", tensors, metadata)

    return apply


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head_a.weight"][0, 0] = float("nan")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a checkpoint, config.json is missing"),
    "no sites": (lambda f: (f / "sites.json").unlink(), "not a checkpoint, sites.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no such file"),
    "config not JSON": (edit("config.json", lambda t: t[:50]), "not JSON"),
    "other JSON": (edit("config.json", lambda t: "[1, 2]"), "not the configuration of a p2e checkpoint"),
    "unknown key": (edit("config.json", lambda t: t.replace('"width"', '"widht"')), "hypernet|widht"),
    "other config": (edit("config.json", lambda t: t.replace('"layers": 2', '"layers": 3')), "does not belong to"),
    "sites not JSON": (edit("sites.json", lambda t: t[:-40]), "not a site table"),
    "sites of no kind": (edit("sites.json", lambda t: '{"a": 1}'), "not a site table"),
    "sites of another base": (
        edit("sites.json", lambda t: t.replace('"d_out": 64', '"d_out": 65')),
        "not the sites of",
    ),
    "other scales": (edit("sites.json", lambda t: t.replace("[0.5, 2.0]", "[0.7, 2.0]")), "does not belong to"),
    "missing tensor": (rewrite(lambda t: t.pop("head_a.weight")), "head_a.weight is None"),
    "extra tensor": (rewrite(lambda t: t.update(zz=torch.ones(1))), "zz is"),
    "NaN": (rewrite(poison), "head_a.weight has values that are not finite"),
    "truncated": (lambda f: truncate(f / "model.safetensors"), "truncated"),
    "pickle": (lambda f: torch.save({"a": 1}, f / "model.safetensors"), "this is a pickle"),
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_in_one_line(saved: Path, tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(FormatError, match=message) as caught:
        load_checkpoint(folder, base=BASE)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_another_base_is_refused(saved: Path) -> None:
    with pytest.raises(InputError, match="predicts for toy, not for world"):
        load_checkpoint(saved, base=tiny_base("world"))
    with pytest.raises(FormatError, match="not the sites of toy"):
        load_checkpoint(saved, base=tiny_base("toy", layers=1))


def test_an_unregistered_base_must_be_given(saved: Path) -> None:
    with pytest.raises(InputError, match="toy"):
        load_checkpoint(saved)


def test_no_folder_can_be_made_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        save(tmp_path / "file" / "run")


def test_settings_are_readable(saved: Path) -> None:
    settings = json.loads((saved / "config.json").read_text())
    assert settings["format"] == "p2e-hypernet-1" and settings["hypernet"]["width"] == 32
    rows = json.loads((saved / "sites.json").read_text())
    assert len(rows) == 20 and sum(row["scales"] is None for row in rows) == 2


def test_tiny_weights_are_of_the_base(tmp_path: Path) -> None:
    reader = tiny_weights(tmp_path / "base", BASE)
    assert all(reader.read(site).shape == (site.d_out, site.d_in) for site in BASE.sites)

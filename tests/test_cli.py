"""The command line end to end: results on tiny inputs, and one clear line for every mistake."""

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_runner import Result, assert_mistake, files_in, run_cli
from tiny import tiny_lora

from p2e import __version__
from p2e.bases import get_base
from p2e.cli import PLUGIN_GROUP, main
from p2e.files import SafetensorsFile, write_safetensors
from p2e.lora.formats import read_lora, write_lora

ROOT = Path(__file__).parents[1]
COMMANDS = ("demo", "train", "predict", "render", "adapt", "lora", "library", "world")
WORLD = get_base("world")


@pytest.fixture
def lora_file(tmp_path: Path) -> Path:
    path = tmp_path / "effect.safetensors"
    write_lora(path, tiny_lora(WORLD, rank=2), WORLD, dtype=torch.float32)
    return path


# --- the command itself


def test_help_lists_every_command() -> None:
    for arguments in ((), ("--help",)):
        result = run_cli(*arguments)
        assert result.code == 0 and not result.err
        for name in COMMANDS:
            assert f" {name} " in result.out


def test_version() -> None:
    assert run_cli("--version").out == f"p2e {__version__}\n"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    script = (
        "import sys, p2e.cli; print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [("nosuch",), ("--nosuch",), ("lora",), ("lora", "nosuch"), ("lora", "info"), ("lora", "info", "a", "--json=x")],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...]) -> None:
    assert_mistake(run_cli(*arguments), "--help")


def test_interrupt(lora_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2e.lora.formats.read_lora", interrupted)
    result = run_cli("lora", "info", lora_file)
    assert result.code == 130 and "Traceback" not in result.err


def test_full_standard_output() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", "from p2e.cli import main; main(['--version'])"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert_mistake(Result(result.returncode, "", result.stderr), "the output")


def test_a_defect_keeps_its_traceback(lora_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("p2e.lora.formats.read_lora", defective)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["lora", "info", str(lora_file)])


# --- plug-ins


def install_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, points: str) -> None:
    """A distribution on the path with entry points, as an installed package would have them."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{PLUGIN_GROUP}]\n{points}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_plugins_are_apps_and_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import typer
app = typer.Typer(help="Grows things.")
@app.command()
def grow(size: int = 1): print("grew", size)
@app.command()
def shrink(): print("shrank")
def hello(name: str):
    "Greets."
    print("hello", name)
"""
    install_plugin(tmp_path, monkeypatch, "garden", source, "garden = garden:app\nhello = garden:hello")
    assert run_cli("garden", "grow", "--size", 3).out == "grew 3\n"
    assert run_cli("hello", "world").out == "hello world\n"
    listing = run_cli("--help").out
    assert "Grows things." in listing and "Greets." in listing
    assert_mistake(run_cli("hello"), "hello --help")


def test_broken_plugin_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_file: Path) -> None:
    points = "cracked = cracked:app\nlora = cracked:app"
    install_plugin(tmp_path, monkeypatch, "cracked", "import no_such_module\n", points)
    assert_mistake(run_cli("cracked", "--any", "thing"), "cracked", "no_such_module")
    listing = run_cli("--help")
    assert listing.code == 0 and "no_such_module" in listing.out and "Traceback" not in listing.err
    assert run_cli("lora", "info", lora_file).code == 0  # a plug-in cannot take a built-in's name


# --- p2e lora


def test_lora_info(lora_file: Path) -> None:
    text = run_cli("lora", "info", lora_file).out
    assert "80 of 80" in text and "world" in text
    summary = json.loads(run_cli("lora", "info", lora_file, "--json").out)
    lora = read_lora(lora_file)
    norm = sum(f.delta().square().sum().item() for f in lora.factors.values()) ** 0.5
    assert summary["base"] == "world" and summary["sites"] == {"covered": 80, "total": 80}
    assert summary["ranks"] == {"2": 80} and summary["norm"] == pytest.approx(norm, rel=1e-5)


def test_lora_info_of_partial_coverage(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    write_lora(path, tiny_lora(WORLD, covers=lambda module: "attn" in module), WORLD)
    summary = json.loads(run_cli("lora", "info", path, "--base", "world", "--json").out)
    assert summary["sites"] == {"covered": 64, "total": 80} and summary["modules"]["ffn.0"]["covered"] == 0
    lines = run_cli("lora", "info", path).out.splitlines()
    assert [line.split() for line in lines if "ffn" in line] == [[f"ffn.{i}", "0", "of", "8"] for i in (0, 2)]


@pytest.mark.parametrize("fmt", ["wan", "diffusers", "kohya"])
def test_lora_convert_round_trip(tmp_path: Path, lora_file: Path, fmt: str) -> None:
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    for source, target, name in ((lora_file, there, fmt), (there, back, "wan")):
        result = run_cli("lora", "convert", source, target, "--to", name, "--base", "world", "--dtype", "float32")
        assert result.code == 0 and "80 of 80 sites" in result.out, result.err
    before, after = read_lora(lora_file), read_lora(back)
    for key, factors in before.factors.items():
        assert torch.allclose(factors.delta(), after.factors[key].delta(), atol=1e-6)


def test_lora_blend(tmp_path: Path, lora_file: Path) -> None:
    other, target = tmp_path / "other.safetensors", tmp_path / "deep" / "blend.safetensors"
    write_lora(other, tiny_lora(WORLD, rank=2, seed=1), WORLD, dtype=torch.float32)
    result = run_cli("lora", "blend", f"{lora_file}:0.25", f"{other}:-2", "-o", target, "--dtype", "float32")
    assert result.code == 0 and "rank 4, 100.00 %" in result.out, result.err
    first, second, blended = read_lora(lora_file), read_lora(other), read_lora(target)
    for key, factors in blended.factors.items():
        expected = 0.25 * first.factors[key].delta() - 2 * second.factors[key].delta()
        assert torch.allclose(factors.delta(), expected, atol=1e-5)
    cut = run_cli("lora", "blend", lora_file, other, "-o", target, "--rank", 2)
    assert cut.code == 0 and "rank 2" in cut.out and "100.00 %" not in cut.out


def test_lora_blend_of_other_bases(tmp_path: Path, lora_file: Path) -> None:
    base, other = get_base("wan2.1-t2v-1.3b"), tmp_path / "other.safetensors"
    write_lora(other, tiny_lora(base, rank=1, covers=lambda module: module == "self_attn.q"), base)
    assert_mistake(run_cli("lora", "blend", lora_file, other, "-o", tmp_path / "c.safetensors"), other)
    assert files_in(tmp_path) == {lora_file, other}


@pytest.mark.parametrize("term", ["{}:nan", "{}:inf", ":0.5"])
def test_lora_blend_weights(tmp_path: Path, lora_file: Path, term: str) -> None:
    term = term.format(lora_file)
    assert_mistake(run_cli("lora", "blend", term, "-o", tmp_path / "c.safetensors"), term)


# --- bad LoRA files, through every command that reads one


def safetensors_bytes(path: Path) -> bytes:
    write_safetensors(path, {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 256)})
    return path.read_bytes()


def write_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """The good file with one thing changed."""
    write_lora(path, tiny_lora(WORLD, rank=2), WORLD, dtype=torch.float32)
    with SafetensorsFile(path) as file:
        tensors = file.read_all()
    change(tensors)
    write_safetensors(path, tensors)


def first_key(tensors: dict[str, torch.Tensor], suffix: str) -> str:
    return next(key for key in tensors if suffix in key)


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first_key(tensors, "lora_A")][0, 0] = float("nan")


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first_key(tensors, "lora_B")][0, 0] = float("inf")


def mismatched(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first_key(tensors, "lora_A")] = torch.zeros(5, 256)


def halved(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[first_key(tensors, "lora_B")]


def uncovered(tensors: dict[str, torch.Tensor]) -> None:
    tensors.clear()
    tensors["head.weight"] = torch.zeros(2, 2)


def other_base(tensors: dict[str, torch.Tensor]) -> None:
    for key in list(tensors):
        factor = tensors.pop(key)
        tensors[key] = torch.zeros(2, 999) if "lora_A" in key else torch.zeros(999, factor.shape[1])


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "header of 2^40": lambda path: path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}" * 8),
    "truncated": lambda path: path.write_bytes(safetensors_bytes(path)[:-100]),
    "truncated header": lambda path: path.write_bytes(safetensors_bytes(path)[:40]),
    "text": lambda path: path.write_text("not a LoRA at all, " * 20),
    "pickle": lambda path: torch.save({"lora_A": torch.zeros(2)}, path),
    "header is no object": lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"),
    "NaN": lambda path: write_tensors(path, nan),
    "infinity": lambda path: write_tensors(path, infinite),
    "A and B of different rank": lambda path: write_tensors(path, mismatched),
    "A without B": lambda path: write_tensors(path, halved),
    "no site covered": lambda path: write_tensors(path, uncovered),
    "another base": lambda path: write_tensors(path, other_base),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_lora_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.safetensors"
    target = tmp_path / "out" / "result.safetensors"
    BAD_FILES[name](path)
    assert_mistake(run_cli("lora", "info", path, "--base", "world"), path)
    assert_mistake(run_cli("lora", "info", path), path)
    assert_mistake(run_cli("lora", "convert", path, target, "--base", "world"), path)
    assert_mistake(run_cli("lora", "blend", path, "-o", target, "--base", "world"), path)
    assert not target.parent.exists()


def test_wrong_base(lora_file: Path) -> None:
    assert_mistake(run_cli("lora", "info", lora_file, "--base", "wan2.1-i2v-14b"), lora_file)
    assert_mistake(run_cli("lora", "info", lora_file, "--base", "wrld"), "wrld", "world")


def unwritable(folder: Path) -> Path:
    """A path that root cannot write to either: a file stands where a folder is needed."""
    (folder / "file").write_text("in the way")
    return folder / "file" / "result.safetensors"


def test_unwritable_output(tmp_path: Path, lora_file: Path) -> None:
    target = unwritable(tmp_path)
    before = files_in(tmp_path)
    assert_mistake(run_cli("lora", "convert", lora_file, target), target)
    assert_mistake(run_cli("lora", "blend", lora_file, "-o", target), target)
    assert_mistake(run_cli("lora", "convert", lora_file, tmp_path), tmp_path)
    assert files_in(tmp_path) == before


def test_write_that_fails_half_way_leaves_the_old_file(
    tmp_path: Path, lora_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target.safetensors"
    target.write_text("the old one")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert_mistake(run_cli("lora", "convert", lora_file, target), target)
    assert target.read_text() == "the old one" and files_in(tmp_path) == {target, lora_file}

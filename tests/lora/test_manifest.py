"""Manifests: both formats, paths, and one line for each mistake."""

import json

import pytest
import torch
from library_files import TOY, entry, updates, write_manifest, write_original

from p2e.bases.wan import wan_base
from p2e.errors import ConfigError, FormatError, InputError
from p2e.files import sha256
from p2e.lora.library import Manifest, read_effect


def test_yaml_and_jsonl_say_the_same(tmp_path):
    entries = [entry("a", split="heldout", weight=2.0), entry("b", lora="s3://bucket/b.safetensors")]
    one = Manifest.load(write_manifest(tmp_path, entries))
    lines = tmp_path / "manifest.jsonl"
    lines.write_text("\n".join(map(json.dumps, [{"base": "toy"}, *entries])) + "\n\n")
    two = Manifest.load(lines)
    assert one.entries == two.entries and one.hash == two.hash
    assert one.entries[0].split == "heldout" and one.entries[1].weight == 1.0
    changed = one.model_copy(update={"base": "other"})
    assert changed.hash != one.hash


def test_paths_are_relative_to_the_manifest(tmp_path, monkeypatch):
    manifest = Manifest.load(write_manifest(tmp_path, [entry("a")]))
    assert manifest.locate("loras/a.safetensors") == str(tmp_path / "loras/a.safetensors")
    assert manifest.locate("/elsewhere/a.safetensors") == "/elsewhere/a.safetensors"
    assert manifest.locate("s3://bucket/a.safetensors") == "s3://bucket/a.safetensors"
    monkeypatch.chdir(tmp_path)
    assert Manifest.load("manifest.yaml").locate("x") == "x"


def test_a_library_can_live_behind_a_url(tmp_path):
    (tmp_path / "loras").mkdir()
    write_original(tmp_path / "loras/a.safetensors", updates(0))
    write_manifest(tmp_path, [entry("a", sha256=sha256(tmp_path / "loras/a.safetensors").upper())])
    manifest = Manifest.load(f"file://{tmp_path}/manifest.yaml")
    assert manifest.locate("loras/a.safetensors") == f"file://{tmp_path}/loras/a.safetensors"
    assert len(read_effect(manifest, manifest.entries[0], TOY).factors) == len(TOY.sites)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry("a"), entry("b"), entry("a")], "effect a appears 2 times"),
        ([entry("a", prompt="typo")], r"entries\.0\.prompt: Extra inputs"),
        ([entry("a", prompts=["fine", "  "])], "the prompt is empty"),
        ([entry("a", prompts=["x" * 1_000_000])], "1000000 characters"),
        ([entry("a", split="test")], r"entries\.0\.split"),
        ([entry("a", weight=0)], r"entries\.0\.weight"),
        ([entry("a", sha256={"high_noise": "00"})], "not given for the same experts"),
        ([entry(" ")], r"entries\.0\.effect"),
        ([], "entries"),
    ],
)
def test_mistakes_are_one_line(tmp_path, entries, says):
    path = write_manifest(tmp_path, entries)
    with pytest.raises(ConfigError, match=says) as error:
        Manifest.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("m.yaml", None, "no such file"),
        ("m.yaml", "base: [", "not valid YAML"),
        ("m.yaml", "- just\n- a list", "Input should be"),
        ("m.jsonl", None, "no such file"),
        ("m.jsonl", "", "must name the base"),
        ("m.jsonl", json.dumps(entry("a")), "must name the base"),
        ("m.jsonl", '{"base": "toy"}\n{"effect": ', "line 2 is not JSON"),
    ],
)
def test_files_that_are_no_manifest(tmp_path, name, text, says):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        Manifest.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_changed_lora_is_named(tmp_path):
    manifest = Manifest.load(write_manifest(tmp_path, [entry("a"), entry("b", sha256="0" * 64)]))
    with pytest.raises(FormatError, match=r"a\.safetensors: no such file"):
        read_effect(manifest, manifest.entries[0], TOY)
    write_original(tmp_path / "loras/b.safetensors", updates(0))
    with pytest.raises(FormatError, match=r"b\.safetensors: sha256 is .*, the manifest says 0{12}"):
        read_effect(manifest, manifest.entries[1], TOY)


def test_the_base_must_agree(tmp_path):
    manifest = Manifest.load(write_manifest(tmp_path, [entry("a")], base="wan2.1-i2v-14b"))
    with pytest.raises(InputError, match=r"for wan2\.1-i2v-14b, not for toy"):
        manifest.check_base(TOY)


def test_an_effect_of_two_experts_is_one_lora(tmp_path):
    folders: dict[str | None, str] = {"high_noise": "transformer", "low_noise": "transformer_2"}
    base = wan_base(
        "two", num_layers=1, heads=2, head_dim=8, ffn=32, in_channels=16, out_channels=16, subfolders=folders
    )
    for seed, expert in enumerate(("high", "low")):
        single = wan_base("one", num_layers=1, heads=2, head_dim=8, ffn=32, in_channels=16, out_channels=16)
        write_original(tmp_path / f"{expert}.safetensors", updates(seed, base=single))
    files = {"high_noise": "high.safetensors", "low_noise": "low.safetensors"}
    manifest = Manifest.load(write_manifest(tmp_path, [entry("a", lora=files)], base="two"))
    lora = read_effect(manifest, manifest.entries[0], base)
    assert list(lora.factors) == [site.key for site in base.sites]
    for seed, expert in enumerate(("high_noise", "low_noise")):
        a, b = updates(seed, base=base)["high_noise.blocks.0.self_attn.q"]  # the first drawn, in either base
        assert torch.equal(lora.factors[f"{expert}.blocks.0.self_attn.q"].delta(), b @ a)

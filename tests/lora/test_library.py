"""The library check: facts about each LoRA, duplicates, prompts, trigger tokens, and problems as rows."""

import io
import json

import pytest
import torch
from library_files import TOY, entry, updates, write_kohya, write_manifest, write_original
from rich.console import Console

from p2e.errors import InputError
from p2e.lora.library import Manifest, check_library, read_effect
from p2e.lora.summary import lora_summary
from p2e.lora.triggers import find_triggers, is_coined, is_leet


def rotated(factors, seed: int, strength: float = 1.0):
    """The same updates in another factorisation, times `strength`."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for key, (a, b) in factors.items():
        mix = torch.randn(len(a), len(a), generator=generator, dtype=torch.float64) + 3 * torch.eye(len(a))
        result[key] = (torch.linalg.solve(mix, a.double()).float(), (strength * b.double() @ mix).float())
    return result


@pytest.fixture
def report_and_updates(tmp_path):
    loras = tmp_path / "loras"
    first = updates(0, rank=3)
    write_original(loras / "melt.safetensors", first)
    write_original(loras / "again.safetensors", rotated(first, 7))
    write_original(loras / "twice.safetensors", rotated(first, 8, strength=2.0))
    write_kohya(loras / "scaled.safetensors", updates(1, rank=4), alpha=1.0)
    write_original(loras / "partial.safetensors", updates(2, rank=2, modules=("self_attn.q", "ffn.0")))
    almost = {key: (a, b + 0.05 * torch.randn_like(b)) for key, (a, b) in first.items()}
    write_original(loras / "almost.safetensors", almost)
    write_original(loras / "zero.safetensors", {key: (a, 0 * b) for key, (a, b) in first.items()})
    (loras / "broken.safetensors").write_bytes(b"\xff" * 200)
    names = ["melt", "again", "twice", "scaled", "partial", "almost", "zero", "broken", "missing"]
    entries = {name: entry(name) for name in names}
    entries["scaled"]["prompts"] = ["sq41sh, everything is pressed flat"]
    entries["partial"]["prompts"] = []
    entries["melt"]["prompts"] = ["it runs down like wax", "It runs  down like WAX in the sun"]
    entries["almost"]["prompts"] = ["it runs down like wax in the sun"]
    manifest = Manifest.load(write_manifest(tmp_path, list(entries.values())))
    return check_library(manifest, TOY), manifest


def test_facts_of_each_lora(report_and_updates):
    report, _ = report_and_updates
    rows = {row.effect: row for row in report.entries}
    total = len(TOY.sites)
    melt = rows["melt"]
    dense = sum(float((b.double() @ a.double()).square().sum()) for a, b in updates(0, rank=3).values()) ** 0.5
    assert (melt.family, melt.ranks, melt.covered, melt.total, melt.scales) == ("F1", (3,), total, total, (1.0, 1.0))
    assert abs(melt.norm / dense - 1) < 1e-9
    assert rows["scaled"].family == "F3" and rows["scaled"].scales == (0.25, 0.25)
    assert (rows["partial"].covered, rows["partial"].ranks) == (4, (2,))


def test_problems_are_rows(report_and_updates):
    report, _ = report_and_updates
    rows = {row.effect: row for row in report.entries}
    assert not report.ok
    assert {name for name, row in rows.items() if row.problems} == {"partial", "zero", "broken", "missing"}
    assert "no prompts" in rows["partial"].problems[0]
    assert "zero" in rows["zero"].problems[0]
    assert "broken.safetensors" in rows["broken"].problems[0]
    assert "no such file" in rows["missing"].problems[0]


def test_duplicates_are_found_up_to_factorisation(report_and_updates):
    report, _ = report_and_updates
    pairs = {(pair.first, pair.second): pair for pair in report.duplicates}
    assert set(pairs) == {("melt", "again"), ("melt", "twice"), ("again", "twice")}  # but not "almost"
    assert abs(pairs["melt", "again"].ratio - 1) < 1e-5 and abs(pairs["melt", "twice"].ratio - 2) < 1e-4
    assert all(0.9999 < pair.cosine <= 1 for pair in pairs.values())
    notes = {row.effect: " ".join(row.notes) for row in report.entries}
    assert "the same update as again" in notes["melt"] and "2 times the update of melt" in notes["twice"]


def test_prompts_are_compared_and_searched(report_and_updates):
    report, _ = report_and_updates
    assert report.shared_prompts == {"it runs down like wax in the sun": ("melt", "almost")}
    assert {effect: [t.token for t in found] for effect, found in report.triggers.items()} == {"scaled": ["sq41sh"]}


def test_reports_render(report_and_updates):
    report, _ = report_and_updates
    values = json.loads(report.to_json())
    assert values["ok"] is False and len(values["entries"]) == 9
    assert values["duplicates"][0]["first"] == "melt"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    assert "9 effects for toy, 4 with problems" in text and "sq41sh (leet)" in text and "no such file" in text


def test_a_good_library_is_ok(tmp_path):
    for seed, name in enumerate(("rain", "snow")):
        write_original(tmp_path / f"loras/{name}.safetensors", updates(seed))
    report = check_library(Manifest.load(write_manifest(tmp_path, [entry("rain"), entry("snow")])), TOY)
    assert report.ok and not report.duplicates and not report.shared_prompts and not report.triggers
    assert not any(row.notes for row in report.entries)


def test_a_library_for_another_base_is_refused(tmp_path):
    manifest = Manifest.load(write_manifest(tmp_path, [entry("a")], base="world"))
    with pytest.raises(InputError, match="choose the base world"):
        check_library(manifest, TOY)


def test_the_summary_of_a_lora_is_json(report_and_updates):
    _, manifest = report_and_updates
    lora = read_effect(manifest, manifest.entries[4], TOY)
    summary = json.loads(json.dumps(lora_summary(lora, TOY)))
    assert summary["sites"] == {"covered": 4, "total": len(TOY.sites)}
    assert summary["ranks"] == {"2": 4} and summary["scales"] == {"1": 4} and summary["family"] == "F1"
    assert summary["modules"]["self_attn.q"]["covered"] == 2 and summary["modules"]["self_attn.k"]["covered"] == 0
    parts = sum(module["norm"] ** 2 for module in summary["modules"].values()) ** 0.5
    assert abs(summary["norm"] - parts) < 1e-9


LEET = ["sq41sh", "infl4t3", "c5us4", "c4k3", "d3d1at3", "k144ing", "l4a6ing", "r0t4tion", "c0wg1rl", "m@sk"]
PLAIN = ["3d", "2nd", "480p", "4k", "24fps", "1980s", "mp4", "h264", "level2", "4x4", "h2o", "red_2", "$100", "dj_cat"]


@pytest.mark.parametrize(("word", "expected"), [(w, True) for w in LEET] + [(w, False) for w in PLAIN])
def test_leet_words(word, expected):
    assert is_leet(word.strip("$")) is expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [("sks", True), ("ohwx", True), ("zwx", True), ("rhythm", False), ("strength", False), ("vhs", False)]
    + [
        (word, False)
        for word in ("nightshirt", "catchphrase", "chevron", "squish", "quartz", "jazz", "lynx", "awkward")
    ],
)
def test_coined_words(word, expected):
    assert is_coined(word) is expected


def test_triggers_by_effect():
    found = find_triggers(
        {
            "dj_cat": ["a dj_cat walks in", "a cat DJ spins records"],
            "squish": ["sks effect, hands press it flat"],
            "inflate": ["It inflates like a balloon"],  # a form of the name, not the name
            "one": ["the ohwx look"],
            "two": ["another ohwx look"],  # used by two effects: it tells neither
        }
    )
    assert {effect: [(t.token, t.kind) for t in ts] for effect, ts in found.items()} == {
        "dj_cat": [("dj_cat", "name")],
        "squish": [("sks", "coined")],
    }

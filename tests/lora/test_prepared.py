"""Prepared libraries: targets against the files they came from, laziness, strict opening, all-or-nothing writing."""

import json

import pytest
import torch
from library_files import TOY, entry, updates, write_kohya, write_manifest, write_original

from p2e.errors import FormatError, InputError, OutputError
from p2e.files import SafetensorsFile
from p2e.lora import prepare as prepare_module
from p2e.lora.library import Manifest, PreparedLibrary, prepare_library

KEY, PARTIAL = "blocks.1.ffn.0", "blocks.0.self_attn.q"


@pytest.fixture
def manifest(tmp_path):
    loras = tmp_path / "loras"
    write_original(loras / "full.safetensors", updates(0, rank=3))
    write_kohya(loras / "scaled.safetensors", updates(1, rank=6), alpha=2.0)
    write_original(loras / "attention.safetensors", updates(2, rank=2, modules=("self_attn.q",)))
    write_original(loras / "heldout.safetensors", updates(3, rank=3))
    entries = [entry(name) for name in ("full", "scaled", "attention")]
    entries += [entry("heldout", split="heldout", weight=0.5)]
    return Manifest.load(write_manifest(tmp_path, entries))


def truth(key):
    """The dense updates of the four effects at one site, None where not covered."""
    dense = []
    for seed, rank, scale, modules in [
        (0, 3, 1.0, ()),
        (1, 6, 2 / 6, ()),
        (2, 2, 1.0, ("self_attn.q",)),
        (3, 3, 1.0, ()),
    ]:
        factors = updates(seed, rank, modules)
        dense.append(scale * factors[key][1] @ factors[key][0] if key in factors else None)
    return dense


def test_canonical_targets_are_the_files_updates(manifest, tmp_path):
    library = prepare_library(manifest, tmp_path / "out", base=TOY, rank=6)
    assert (library.base_name, library.rank, library.targets) == ("toy", 6, "canonical")
    assert [e.name for e in library.effects] == ["full", "scaled", "attention", "heldout"]
    assert library.effects[3].split == "heldout" and library.effects[3].weight == 0.5
    assert library.effects[0].prompts == manifest.entries[0].prompts
    assert library.keys == [site.key for site in TOY.sites]
    for key in (KEY, PARTIAL):
        record = library.site(key)
        site = TOY.by_key[key]
        assert record.a.shape == (4, 6, site.d_in) and record.b.shape == (4, site.d_out, 6)
        for effect, dense in enumerate(truth(key)):
            assert bool(record.mask[effect]) is (dense is not None)
            if dense is None:
                assert not record.a[effect].any() and not record.b[effect].any()
                continue
            assert torch.allclose(record.b[effect] @ record.a[effect], dense, atol=1e-4)
            s = torch.linalg.svdvals(dense)[:6]
            assert torch.allclose(record.a[effect].square().sum(1), s, atol=1e-4)
            assert torch.allclose(record.b[effect].square().sum(0), s, atol=1e-4)
        train = record.mask & torch.tensor([True, True, True, False])
        assert abs(record.scale_a / float(record.a[train].square().mean().sqrt()) - 1) < 1e-5
        assert abs(record.scale_b / float(record.b[train].square().mean().sqrt()) - 1) < 1e-5
        assert float(record.lost.max()) < 1e-6


def test_truncation_reports_the_lost_energy(manifest, tmp_path):
    library = prepare_library(manifest, tmp_path / "out", base=TOY, rank=2)
    record = library.site(KEY)
    for effect, dense in enumerate(truth(KEY)):
        if dense is not None:
            s = torch.linalg.svdvals(dense.double()).square()
            assert abs(float(record.lost[effect]) - float(s[2:].sum() / s.sum())) < 1e-6
    totals = {effect.name: effect for effect in library.index.effects}
    assert totals["attention"].lost < 1e-9 < 0.1 < totals["scaled"].lost < 1
    dense = sum(float(truth(site.key)[1].square().sum()) for site in TOY.sites) ** 0.5
    assert abs(totals["scaled"].norm / dense - 1) < 1e-5


def test_raw_targets_are_the_files_factors(manifest, tmp_path):
    library = prepare_library(manifest, tmp_path / "out", base=TOY, rank=8, targets="raw")
    record = library.site(KEY)
    a, b = updates(0, rank=3)[KEY]
    assert torch.equal(record.a[0, :3], a) and torch.equal(record.b[0, :, :3], b)
    assert not record.a[0, 3:].any() and not record.b[0, :, 3:].any()
    assert torch.allclose(record.b[1] @ record.a[1], truth(KEY)[1], atol=1e-5)
    with pytest.raises(InputError, match="scaled: its LoRA has rank 6"):
        prepare_library(manifest, tmp_path / "small", base=TOY, rank=4, targets="raw")


def test_sites_nobody_covers_have_no_record(tmp_path):
    write_original(tmp_path / "loras/a.safetensors", updates(0, modules=("ffn.2",)))
    manifest = Manifest.load(write_manifest(tmp_path, [entry("a")]))
    library = prepare_library(manifest, tmp_path / "out", base=TOY, rank=3)
    assert library.keys == ["blocks.0.ffn.2", "blocks.1.ffn.2"]
    with pytest.raises(InputError, match="no record of site"):
        library.site(KEY)


def test_factorisation_does_not_reach_the_targets(tmp_path):
    """The same updates, re-factorised and with signs flipped, give the same targets."""
    libraries = []
    for name in ("one", "two"):
        for seed in range(3):
            factors = updates(seed)
            if name == "two":
                factors = {k: (-a[[2, 0, 1]] * 2, -b[:, [2, 0, 1]] / 2) for k, (a, b) in factors.items()}
            write_original(tmp_path / name / f"loras/e{seed}.safetensors", factors)
        manifest = Manifest.load(write_manifest(tmp_path / name, [entry(f"e{seed}") for seed in range(3)]))
        libraries.append(prepare_library(manifest, tmp_path / name / "out", base=TOY, rank=3))
    one, two = (library.site(KEY) for library in libraries)
    assert torch.allclose(one.a, two.a, atol=1e-4) and torch.allclose(one.b, two.b, atol=1e-4)


def test_preparation_repeats_to_the_bit_and_replaces(manifest, tmp_path):
    one = prepare_library(manifest, tmp_path / "one", base=TOY, rank=3)
    two = prepare_library(manifest, tmp_path / "two", base=TOY, rank=3)
    assert one.hash == two.hash
    again = prepare_library(manifest, tmp_path / "one", base=TOY, rank=4)
    assert again.rank == 4 and again.hash != one.hash
    assert PreparedLibrary.open(tmp_path / "one").hash == again.hash
    again.verify()
    leftovers = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not leftovers and not (tmp_path / "one/scratch").exists()


def test_reading_is_lazy_and_works_through_urls(manifest, tmp_path, monkeypatch):
    prepare_library(manifest, tmp_path / "out", base=TOY, rank=3)
    opened = []
    original = SafetensorsFile.__init__

    def counting(self, path):
        opened.append(str(path))
        original(self, path)

    monkeypatch.setattr(SafetensorsFile, "__init__", counting)
    library = PreparedLibrary.open(f"file://{tmp_path}/out")
    assert not opened
    library.site(KEY)
    assert opened == [f"file://{tmp_path}/out/sites/{KEY}.safetensors"]


def test_broken_libraries_are_refused(manifest, tmp_path):
    out = tmp_path / "out"
    site = out / f"sites/{KEY}.safetensors"

    def refused(says, action):
        with pytest.raises(FormatError, match=says) as error:
            action()
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)

    refused("not a prepared library", lambda: PreparedLibrary.open(tmp_path / "nothing"))
    library = prepare_library(manifest, out, base=TOY, rank=3)
    whole, index = site.read_bytes(), (out / "index.json").read_text()

    site.write_bytes(whole[:-1])
    refused(f"has {len(whole) - 1} bytes instead of {len(whole)}", lambda: PreparedLibrary.open(out))
    site.unlink()
    refused("is missing", lambda: PreparedLibrary.open(out))
    site.write_bytes(b"\xff" * len(whole))
    refused("header", lambda: PreparedLibrary.open(out).site(KEY))
    site.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("corrupt, its sha256 differs", library.verify)
    site.write_bytes(whole)
    library.verify()

    values = json.loads(index)
    for changed, says in [
        ({**values, "rank": 4}, "was changed"),
        ({**values, "extra": 1}, "extra"),
        ({**values, "format": "p2e-prepared-9"}, "format"),
        ({key: value for key, value in values.items() if key != "hash"}, "was changed"),
    ]:
        (out / "index.json").write_text(json.dumps(changed))
        refused(says, lambda: PreparedLibrary.open(out))
    (out / "index.json").write_text(index[:100])
    refused("not JSON", lambda: PreparedLibrary.open(out))


def test_nothing_half_written(manifest, tmp_path, monkeypatch):
    (tmp_path / "loras/heldout.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(FormatError, match=r"heldout\.safetensors"):
        prepare_library(manifest, tmp_path / "out", base=TOY, rank=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loras", "manifest.yaml"]
    write_original(tmp_path / "loras/heldout.safetensors", updates(3))
    first = prepare_library(manifest, tmp_path / "out", base=TOY, rank=3)

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_text", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        prepare_library(manifest, tmp_path / "out", base=TOY, rank=4)
    assert PreparedLibrary.open(tmp_path / "out").hash == first.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loras", "manifest.yaml", "out"]


def test_bad_requests_are_refused_before_any_work(manifest, tmp_path):
    def refused(error, says, manifest=manifest, out=tmp_path / "out", **options):
        with pytest.raises(error, match=says):
            prepare_library(manifest, out, **{"base": TOY, "rank": 3, **options})

    refused(InputError, "rank 0", rank=0)
    refused(InputError, "canonical or raw", targets="svd")
    refused(InputError, "local folder", out="s3://bucket/out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    refused(OutputError, "no prepared library; choose another place", out=tmp_path / "mine")
    (tmp_path / "file").write_text("")
    refused(OutputError, "choose another place", out=tmp_path / "file/below")
    unprompted = Manifest.load(write_manifest(tmp_path, [entry("full", prompts=[])]))
    refused(InputError, "effects without prompts: full;", manifest=unprompted)
    untrained = Manifest.load(write_manifest(tmp_path, [entry("full", split="ood")]))
    refused(InputError, "split train", manifest=untrained)
    missing = Manifest.load(write_manifest(tmp_path, [entry("full"), entry("gone")]))
    refused(FormatError, r"gone\.safetensors: no such file", manifest=missing)
    assert not (tmp_path / "out").exists()

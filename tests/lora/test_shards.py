"""Shards: the first pass of a preparation kept on disk, and the second from them, as without them."""

import pytest
import torch
from library_files import TOY, entry, updates, write_manifest, write_original

from p2e.files import SafetensorsFile
from p2e.lora.library import Manifest, prepare_library
from p2e.lora.shards import Shard, collect_sites, read_shard, shard_digest, write_shard

RANK = 3


@pytest.fixture
def manifest(tmp_path):
    write_original(tmp_path / "loras/whole.safetensors", updates(0, rank=4))
    write_original(tmp_path / "loras/part.safetensors", updates(1, rank=2, modules=("self_attn.q",)))
    return Manifest.load(write_manifest(tmp_path, [entry("whole"), entry("part")]))


def shards_of(manifest, folder) -> list[Shard]:
    found = []
    for item in manifest.entries:
        digest = shard_digest(manifest, item, TOY, RANK, "canonical")
        path = f"{folder}/{digest}.safetensors"
        write_shard(path, manifest, item, TOY, RANK, "canonical", digest=digest)
        shard = read_shard(path, digest)
        assert shard is not None
        found.append(shard)
    return found


def test_records_from_shards_are_those_of_the_library(manifest, tmp_path, monkeypatch):
    library = prepare_library(manifest, tmp_path / "out", base=TOY, rank=RANK)
    shards = shards_of(manifest, tmp_path)
    assert [shard.energy.index(item) for shard, item in zip(shards, manifest.entries, strict=True)] == list(
        library.index.effects
    )
    assert shards[0].keys == {site.key for site in TOY.sites}
    read: list[str] = []
    original = SafetensorsFile.read
    monkeypatch.setattr(SafetensorsFile, "read", lambda self, name: (read.append(name), original(self, name))[1])
    sites = [TOY.by_key["blocks.0.self_attn.q"], TOY.by_key["blocks.1.ffn.0"]]
    records = collect_sites(sites, shards, RANK)
    # Nothing but these sites is read: memory holds no more than them.
    assert sorted(set(read)) == sorted({"lost", *(f"{site.key}.{side}" for site in sites for side in "ab")})
    monkeypatch.undo()
    for site, (a, b, mask, lost) in zip(sites, records, strict=True):
        known = library.site(site.key)
        assert torch.equal(mask, known.mask) and torch.equal(lost, known.lost)
        assert torch.equal(a.abs(), known.a.abs()) and torch.equal(b.abs(), known.b.abs())  # signs are aligned later
        assert torch.equal(a.sign() * b.sign()[:, :1].mT, known.a.sign() * known.b.sign()[:, :1].mT)


def test_a_digest_depends_on_all_that_the_targets_do(manifest, tmp_path):
    first, second = manifest.entries
    digest = shard_digest(manifest, first, TOY, RANK, "canonical")
    assert digest == shard_digest(manifest, first.model_copy(update={"effect": "x"}), TOY, RANK, "canonical")
    others = {
        shard_digest(manifest, second, TOY, RANK, "canonical"),
        shard_digest(manifest, first, TOY, RANK + 1, "canonical"),
        shard_digest(manifest, first, TOY, RANK, "raw"),
    }
    (tmp_path / "loras/adapter_config.json").write_text("{}")
    others.add(shard_digest(manifest, first, TOY, RANK, "canonical"))
    write_original(tmp_path / "loras/whole.safetensors", updates(5, rank=5))
    others.add(shard_digest(manifest, first, TOY, RANK, "canonical"))
    assert len(others | {digest}) == 6


def test_a_shard_that_is_not_whole_is_none(manifest, tmp_path):
    shard = shards_of(manifest, tmp_path)[0]
    path = tmp_path / shard.path.rpartition("/")[2]
    digest = path.stem
    assert read_shard(str(path), "another") is None and read_shard(str(tmp_path / "none"), digest) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert read_shard(str(path), digest) is None
    write_original(path, updates(0))
    assert read_shard(str(path), digest) is None

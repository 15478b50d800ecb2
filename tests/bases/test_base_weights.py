"""Reading a base's weights from checkpoints as they come, a site at a time."""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import save, save_file
from torch import Tensor

from p2e.bases import Base, WeightReader, get_base, open_base, weights
from p2e.bases.base import EXPERTS
from p2e.bases.wan import wan_base
from p2e.errors import FormatError, InputError

OUTSIDE = {  # tensors outside the blocks, as original releases call them
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "proj_out": "head.head",
}


def tiny_wan(seed: int = 0, image_dim: int | None = 8) -> Any:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=16, ffn_dim=48, in_channels=6, out_channels=4,
        text_dim=24, freq_dim=16, image_dim=image_dim, added_kv_proj_dim=image_dim and 32,
    )  # fmt: skip


def tiny_hunyuan(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return HunyuanVideoTransformer3DModel(
        in_channels=16, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_single_layers=2, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=24, pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6), image_condition_type="token_replace",
    )  # fmt: skip


def true_weights(base: Base, models: Mapping[str | None, Any]) -> dict[str, Tensor]:
    """Site key -> W0, by way of the modules of the diffusers class."""
    return {
        site.key: torch.cat([models[site.expert].get_submodule(part.name).weight.detach() for part in site.parts])
        for site in base.sites
    }


def original_names(base: Base, model: Any, prefix: str = "") -> dict[str, Tensor]:
    """The sites' weights, and those outside the blocks that show the sizes, under original names."""
    tensors = {f"{prefix}{key}.weight": tensor for key, tensor in true_weights(base, {None: model}).items()}
    state = model.state_dict()
    for ours, theirs in OUTSIDE.items():
        if f"{ours}.weight" in state:
            tensors[f"{prefix}{theirs}.weight"] = state[f"{ours}.weight"]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def check(reader: WeightReader, expected: Mapping[str, Tensor]) -> None:
    assert [site.key for site in reader.base.sites] == list(expected)
    for site in reader.base.sites:
        weight = reader.read(site)
        assert weight.shape == (site.d_out, site.d_in)
        assert torch.equal(weight, expected[site.key]), site.key


def opened(place: str | Path) -> tuple[Base, WeightReader]:
    base, reader = open_base(str(place))
    assert reader is not None
    return base, reader


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[str]:
    folder = f"memory://{abs(hash(request.node.name))}"
    yield folder
    fs = fsspec.filesystem("memory")
    if fs.exists(folder):
        fs.rm(folder, recursive=True)


def upload(source: Path, target: str) -> None:
    fs = fsspec.filesystem("memory")
    for file in source.rglob("*"):
        if file.is_file():
            fs.pipe(f"{target}/{file.relative_to(source).as_posix()}", file.read_bytes())


def test_sharded_diffusers_folder_local_and_remote(tmp_path: Path, memory: str) -> None:
    model = tiny_wan()
    model.save_pretrained(tmp_path / "transformer", max_shard_size="60KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    upload(tmp_path, memory)
    hashes = set()
    for place in (tmp_path, tmp_path / "transformer", memory, f"{memory}/transformer"):
        base, reader = opened(place)
        assert (base.name, base.family, len(base.sites), base.text_dim) == ("custom", "wan", 24, 24)
        check(reader, true_weights(base, {None: model}))
        hashes.add(reader.hash)
    assert len(hashes) == 1
    index = f"{memory}/transformer/diffusion_pytorch_model.safetensors.index.json"
    check(opened(index)[1], true_weights(base, {None: model}))


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("image_dim", [8, None])
def test_original_names_in_one_file(prefix: str, image_dim: int | None, tmp_path: Path, memory: str) -> None:
    model = tiny_wan(image_dim=image_dim)
    model.save_pretrained(tmp_path)
    diffusers_base, diffusers_reader = opened(tmp_path)
    tensors = original_names(diffusers_base, model, prefix)
    tensors["vae.decoder.conv_in.weight"] = torch.zeros(2, 2)  # other components in the same file are no obstacle
    fsspec.filesystem("memory").pipe(f"{memory}/model.safetensors", save(tensors))
    for place in (memory, f"{memory}/model.safetensors"):
        base, reader = opened(place)
        assert base.sites == diffusers_base.sites
        config = {k: base.diffusers_config[k] for k in ("in_channels", "out_channels", "text_dim", "image_dim")}
        assert config == {"in_channels": 6, "out_channels": 4, "text_dim": 24, "image_dim": image_dim}
        check(reader, true_weights(base, {None: model}))
        assert reader.hash == diffusers_reader.hash


def test_fused_sites_from_either_naming(tmp_path: Path) -> None:
    model = tiny_hunyuan()
    model.save_pretrained(tmp_path / "split")
    base, split = opened(tmp_path / "split")
    assert (base.name, base.family, len(base.sites)) == ("custom", "hunyuan", 2 * 10 + 2 * 3)
    expected = true_weights(base, {None: model})
    check(split, expected)
    fused = {f"{key}.weight": tensor for key, tensor in expected.items()}
    state = model.state_dict()
    fused["img_in.proj.weight"] = state["x_embedder.proj.weight"]
    fused["txt_in.input_embedder.weight"] = state["context_embedder.proj_in.weight"]
    fused["guidance_in.mlp.0.weight"] = torch.zeros(1)
    save_file(fused, tmp_path / "original.safetensors")
    original_base, original = opened(tmp_path / "original.safetensors")
    assert original_base.sites == base.sites
    check(original, expected)
    assert original.hash == split.hash


def test_a_site_touches_only_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_wan().save_pretrained(tmp_path, max_shard_size="60KB")
    _, reader = opened(tmp_path)
    count = 0

    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def read(self, size: int = -1) -> bytes:
            nonlocal count
            data = self.inner.read(size)
            count += len(data)
            return data

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    for file in {id(file): file for file, _ in reader._transformers[None].tensors.values()}.values():
        monkeypatch.setattr(file, "_file", Counting(file._file))
    total = 0
    for site in reader.base.sites:
        reader.read(site)
        total += site.d_out * site.d_in * 4
        assert count == total
    assert reader.nbytes == total
    monkeypatch.setattr(weights, "WHOLE_HASH_BYTES", 0)
    monkeypatch.setattr(weights, "SAMPLE_BYTES", 64)
    count = 0
    assert reader.hash
    assert count == len(reader.base.sites) * weights.SAMPLES * 64


def test_stored_type_is_kept(tmp_path: Path) -> None:
    model = tiny_wan().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    base, reader = opened(tmp_path)
    assert {reader.dtype(site) for site in base.sites} == {torch.bfloat16}
    check(reader, true_weights(base, {None: model}))


@pytest.mark.parametrize("sampled", [False, True])
def test_hash_is_of_the_sites_values(sampled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sampled:
        monkeypatch.setattr(weights, "WHOLE_HASH_BYTES", 0)
        monkeypatch.setattr(weights, "SAMPLE_BYTES", 128)
    model = tiny_hunyuan()

    def digest(name: str) -> str:
        model.save_pretrained(tmp_path / name)
        return opened(tmp_path / name)[1].hash

    plain = digest("plain")
    with torch.no_grad():
        model.proj_out.weight.add_(1)
        model.transformer_blocks[0].attn.to_q.bias.add_(1)
    assert digest("elsewhere") == plain
    with torch.no_grad():
        model.transformer_blocks[1].attn.add_v_proj.weight[-1, -1] += 1
    assert digest("site") != plain
    base, reader = opened(tmp_path / "plain")
    fused = {f"{key}.weight": tensor for key, tensor in ((s.key, reader.read(s)) for s in base.sites)}
    save_file(fused, tmp_path / "fused.safetensors")
    assert WeightReader(base, tmp_path / "fused.safetensors").hash == plain
    assert len(plain) == 64


def test_two_experts(tmp_path: Path) -> None:
    high, low = tiny_wan(0, None), tiny_wan(1, None)
    high.save_pretrained(tmp_path / "diffusers/transformer")
    low.save_pretrained(tmp_path / "diffusers/transformer_2")
    base, reader = opened(tmp_path / "diffusers")
    assert (base.name, base.experts, dict(base.subfolders)) == ("custom", ("high_noise", "low_noise"), dict(EXPERTS))
    expected = true_weights(base, {"high_noise": high, "low_noise": low})
    check(reader, expected)
    single, _ = opened(tmp_path / "diffusers/transformer")
    for expert, model in (("high_noise", high), ("low_noise", low)):
        folder = tmp_path / "release" / f"{expert}_model"
        folder.mkdir(parents=True)
        tensors = original_names(single, model)
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text('{"_class_name": "WanModel"}')
        (tmp_path / "files").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / "files" / f"wan_{expert.upper()}_14B.safetensors")
    for name in ("release", "files"):
        other, other_reader = opened(tmp_path / name)
        assert other.sites == base.sites
        check(other_reader, expected)
        assert other_reader.hash == reader.hash
    with pytest.raises(FormatError, match="holds 1 transformer"):
        WeightReader(base, tmp_path / "diffusers/transformer")
    with pytest.raises(FormatError, match="holds 2 transformer"):
        WeightReader(single, tmp_path / "diffusers")


def test_world_by_name_finds_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2e.bases.opening.world_base_folder", lambda: tmp_path)
    base = get_base("world")
    assert open_base("world") == (base, None)
    torch.manual_seed(0)
    model: Any = WanTransformer3DModel(**base.diffusers_config)
    model.save_pretrained(tmp_path / "transformer")
    found, reader = opened("world")
    assert found is base
    check(reader, true_weights(base, {None: model}))
    by_folder, _ = opened(tmp_path)  # recognised by its sizes
    assert by_folder is base


def test_names_have_no_weights() -> None:
    assert open_base("ltx-video") == (get_base("ltx-video"), None)


def test_reader_goes_to_another_process(tmp_path: Path) -> None:
    model = tiny_wan()
    model.save_pretrained(tmp_path)
    base, reader = opened(tmp_path)
    with pickle.loads(pickle.dumps(reader)) as copy:
        check(copy, true_weights(base, {None: model}))


def test_a_name_stated_by_the_weights(tmp_path: Path) -> None:
    model = tiny_wan()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "p2e_base": "studio"}))
    base, _ = opened(tmp_path)
    assert base.name == "studio"
    path.write_text(json.dumps({**config, "p2e_base": "wan2.1-i2v-14b"}))
    with pytest.raises(FormatError, match=r"says it is wan2\.1-i2v-14b, but its sizes are not"):
        open_base(tmp_path)


def fails(place: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_base(str(place))
    assert "\n" not in str(caught.value)


def test_bad_places(tmp_path: Path) -> None:
    fails("", "no base is named")
    fails("wan2.1-i2v", "did you mean wan2.1-i2v-14b")
    fails(tmp_path / "missing", "no such file or folder")
    fails("nowhere://bucket/base", "cannot be opened")
    fails("memory://nothing-is-here", "no such file or folder")
    fails(tmp_path, "no safetensors file")
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    fails(tmp_path, "pickled weights only")
    fails(tmp_path / "diffusion_pytorch_model.bin", "pickled weights are not read")
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x02" * 20)
    fails(tmp_path, "model.safetensors: this is a pickle")
    save_file({"encoder.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    fails(tmp_path, "not those of a base")


def test_a_file_system_that_fails_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class BackendError(Exception):
        pass

    def exists(*_: object) -> bool:
        raise BackendError("no credentials\nlog in first")

    monkeypatch.setattr(fsspec.filesystem("memory"), "exists", exists)
    fails("memory://bucket/base", r"memory://bucket/base: cannot be read \(no credentials log in first\)")


def test_bad_configs(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text("[")
    fails(tmp_path, "not valid JSON")
    path.write_text("[]")
    fails(tmp_path, "not a JSON object")
    path.write_text(json.dumps({**config, "_class_name": "WanVACETransformer3DModel"}))
    fails(tmp_path, "WanVACETransformer3DModel is not a base that p2e knows")
    path.write_text(json.dumps({**config, "num_layers": "two"}))
    fails(tmp_path, "values that do not fit")
    path.write_text(json.dumps({**config, "num_layers": 3}))
    fails(tmp_path, "no weight for blocks.2.self_attn.q of custom; incomplete")
    path.write_text(json.dumps({**config, "ffn_dim": 64}))
    fails(tmp_path, r"blocks.0.ffn.net.0.proj.weight is \[48, 32\], custom has \[64, 32\]")


def test_bad_shards(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    text = index.read_text()
    index.write_text("{}")
    fails(tmp_path, "no weight_map")
    index.write_text('{"weight_map": {"x": "../other.safetensors"}}')
    fails(tmp_path, "not in its own folder")
    index.write_text(text)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-10])
    fails(tmp_path, f"{shard.name}: truncated")
    shard.unlink()
    fails(tmp_path, f"{shard.name}: no such file")


def test_weights_of_another_base_or_quantised(tmp_path: Path) -> None:
    model = tiny_wan(image_dim=None)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(FormatError, match=r"is \[32, 32\], wan2.1-t2v-1.3b has \[1536, 1536\] there"):
        WeightReader(get_base("wan2.1-t2v-1.3b"), tmp_path / "model")
    with pytest.raises(FormatError, match=r"no weight for double_blocks\.0\.img_mod\.linear of hunyuanvideo-i2v"):
        WeightReader(get_base("hunyuanvideo-i2v"), tmp_path / "model")
    base, _ = opened(tmp_path / "model")
    tensors = original_names(base, model)
    save_file({**tensors, "blocks.1.ffn.0.scale_weight": torch.ones(1)}, tmp_path / "fp8.safetensors")
    fails(tmp_path / "fp8.safetensors", "blocks.1.ffn.0 is quantised")
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        save_file(tensors, tmp_path / "two" / f"{name}.safetensors")
    fails(tmp_path / "two", "both hold")


def test_one_expert_alone_is_refused(tmp_path: Path) -> None:
    base = get_base("wan2.2-i2v-a14b")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": base.diffusers_class, **base.diffusers_config}))
    save_file({"x": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    fails(tmp_path, "one of the two experts of wan2.2-i2v-a14b")


def test_experts_of_two_sizes_are_refused(tmp_path: Path) -> None:
    tiny_wan(image_dim=None).save_pretrained(tmp_path / "transformer")
    tiny_wan(image_dim=8).save_pretrained(tmp_path / "transformer_2")
    fails(tmp_path, "its two transformers differ")


def test_a_base_that_the_test_made_by_hand_reads_too(tmp_path: Path) -> None:
    model = tiny_wan(image_dim=None)
    model.save_pretrained(tmp_path)
    base = wan_base(
        "mine", num_layers=2, heads=2, head_dim=16, ffn=48, in_channels=6, out_channels=4, text_dim=24
    )  # fmt: skip
    with WeightReader(base, tmp_path) as reader:
        check(reader, true_weights(base, {None: model}))

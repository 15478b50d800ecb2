"""Files that cannot be read and LoRAs that cannot be written: one line that names the file and the remedy."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import (
    RANK,
    diffusers_file,
    down_up_file,
    original_file,
    random_lora,
    random_pairs,
    save,
    small_wan,
)
from torch import Tensor

from p2e.bases import get_base
from p2e.errors import FormatError, InputError, OutputError
from p2e.lora.formats import read_lora, write_lora
from p2e.lora.lora import Factors, Lora

BASE = small_wan()
LAYER = "diffusion_model.blocks.0.self_attn.q"


def refused(path: Path, *parts: str, kind: type[Exception] = FormatError) -> None:
    """read_lora refuses the file in one line that names it and holds the parts."""
    with pytest.raises(kind) as caught:
        read_lora(path, BASE)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert part in message


def whole_file() -> dict[str, Tensor]:
    return original_file(random_pairs(BASE.sites))


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "x.safetensors", "no such file")


def test_a_folder_without_a_lora(tmp_path: Path) -> None:
    refused(tmp_path, "give the LoRA file itself")


def test_a_header_of_two_to_the_forty(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    refused(path, str(1 << 40), "download it again")


def test_a_pickle_under_the_name_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    refused(path, "pickle")
    torch.save({"a": torch.zeros(2)}, path)
    refused(path, "pickle")


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_a_truncated_file(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.safetensors"
    data = save(path, whole_file()).read_bytes()
    path.write_bytes(data[: cut * (len(data) - 1) // 10_000])
    refused(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("suffix", ["lora_A.weight", "lora_B.weight", "diff_b"])
def test_values_that_are_not_finite(value: float, suffix: str, tmp_path: Path) -> None:
    tensors = whole_file()
    tensors[f"{LAYER}.diff_b"] = torch.zeros(32)
    tensors[f"{LAYER}.{suffix}"].view(-1)[3] = value
    refused(save(tmp_path / "x.safetensors", tensors), f"{LAYER}.{suffix}", "NaN or infinity")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 3e38])
def test_an_alpha_that_is_not_finite(alpha: float, tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", down_up_file(random_pairs(BASE.sites[:1], rank=1), alpha=alpha))
    refused(path, "alpha of blocks.0.self_attn.q makes its update NaN or infinite")


def test_an_alpha_of_several_numbers(tmp_path: Path) -> None:
    tensors = {**whole_file(), f"{LAYER}.alpha": torch.ones(2)}
    refused(save(tmp_path / "x.safetensors", tensors), f"{LAYER}.alpha", "not a single number")


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ((4, 32), (32, 5), "do not match"),
        ((0, 32), (32, 0), "do not match"),
        ((4, 32), (48, 4), "is 48 x 32, in small-wan it is 32 x 32"),
        ((4, 48), (32, 4), "is 32 x 48, in small-wan it is 32 x 32"),
        ((4, 32, 3, 3), (32, 4, 1, 1), "convolution"),
        ((4, 32), (32, 4, 1, 3, 3), "convolution"),
        ((128,), (32, 4), "not a matrix"),
    ],
)
def test_factors_that_do_not_match(a: tuple[int, ...], b: tuple[int, ...], said: str, tmp_path: Path) -> None:
    tensors = {f"{LAYER}.lora_A.weight": torch.ones(a), f"{LAYER}.lora_B.weight": torch.ones(b)}
    refused(save(tmp_path / "x.safetensors", tensors), said)


@pytest.mark.parametrize("suffix", ["lora_A.weight", "lora_B.weight"])
def test_a_factor_without_the_other(suffix: str, tmp_path: Path) -> None:
    tensors = whole_file()
    del tensors[f"{LAYER}.{suffix}"]
    refused(save(tmp_path / "x.safetensors", tensors), LAYER, "without its other factor", "save it again")


def test_a_bias_of_the_wrong_length(tmp_path: Path) -> None:
    tensors = {**whole_file(), f"{LAYER}.diff_b": torch.ones(31)}
    refused(save(tmp_path / "x.safetensors", tensors), f"{LAYER}.diff_b", "31 entries")


def test_factors_of_whole_numbers(tmp_path: Path) -> None:
    tensors = {**whole_file(), f"{LAYER}.lora_A.weight": torch.ones(RANK, 32, dtype=torch.int32)}
    refused(save(tmp_path / "x.safetensors", tensors), "torch.int32")


def test_two_adapters_in_one_file(tmp_path: Path) -> None:
    pairs = random_pairs(BASE.sites)
    tensors = original_file(pairs, prefix="", adapter=".one") | original_file(pairs, prefix="", adapter=".two")
    refused(save(tmp_path / "x.safetensors", tensors), "two LoRAs of one layer")
    tensors = original_file(pairs) | diffusers_file(BASE, pairs)
    refused(save(tmp_path / "y.safetensors", tensors), "two LoRAs of", "under different names")


@pytest.mark.parametrize(
    ("suffixes", "kind"),
    [
        (("lokr_w1", "lokr_w2"), "LoKr"),
        (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), "LoHa"),
        (("lora_A.weight", "lora_B.weight", "dora_scale"), "DoRA"),
        (("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"), "DoRA"),
        (("lora_down.weight", "lora_mid.weight", "lora_up.weight"), "Tucker"),
        (("oft_blocks",), "OFT"),
    ],
)
def test_updates_that_are_no_product_of_two_factors(suffixes: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    tensors = {f"{LAYER}.{suffix}": torch.ones(32, 32) for suffix in suffixes}
    refused(save(tmp_path / "x.safetensors", tensors), kind, "train it as a plain LoRA")


def test_a_file_that_is_no_lora(tmp_path: Path) -> None:
    refused(save(tmp_path / "x.safetensors", {"blocks.0.self_attn.q.weight": torch.ones(32, 32)}), "no LoRA factors")
    refused(save(tmp_path / "y.safetensors", {}), "no LoRA factors")


def test_a_file_for_another_base_names_the_bases_that_it_fits(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    world = get_base("world")
    save(path, original_file(random_pairs(world.sites, 1)))
    refused(path, "in small-wan it is 32 x 32", "the file fits world", "--base")
    hunyuan = get_base("hunyuanvideo-i2v")
    save(path, original_file(random_pairs(hunyuan.sites[:1], 1)))
    refused(path, "none of its 1 LoRA layers", "is a site of small-wan", "the file fits hunyuanvideo-i2v")


def test_more_blocks_than_the_base_has(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", original_file(random_pairs(small_wan(num_layers=3).sites)))
    refused(path, "blocks.2.", "lies beyond the last block of small-wan", "--base")
    path = save(path, down_up_file(random_pairs(small_wan(num_layers=3).sites), prefix="lora_unet_"))
    refused(path, "blocks_2_", "lies beyond the last block")


def test_layers_that_no_known_base_has(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", whole_file())
    with pytest.raises(FormatError, match="fit no base that p2e knows; name the base or its folder with --base"):
        read_lora(path)
    path = save(path, original_file(random_pairs(BASE.sites), prefix="diffusion_model.transformer_2."))
    with pytest.raises(FormatError, match="fit no base that p2e knows with two experts"):
        read_lora(path)


def test_keys_full_of_control_characters_stay_on_one_line(tmp_path: Path) -> None:
    tensors = {f"{LAYER}\n\x1b[31m{'x' * 5000}.lora_A.weight": torch.ones(2, 2)}
    refused(save(tmp_path / "x.safetensors", tensors), "none of its 1 LoRA layers")


# Writing


def small_lora(**changes: Any) -> Lora:
    lora = random_lora(BASE, {site.key: 2 for site in BASE.sites})
    return Lora(**{"base": lora.base, "factors": lora.factors, **changes})


@pytest.mark.parametrize(
    ("make", "kwargs", "said"),
    [
        (lambda: small_lora(factors={}), {}, "covers no site"),
        (lambda: random_lora(get_base("world"), {"blocks.5.ffn.0": 1}), {}, "blocks.5.ffn.0 is no site of small-wan"),
        (small_lora, {"fmt": "comfy"}, "choose wan, diffusers or kohya"),
        (small_lora, {"dtype": torch.int8}, "choose bfloat16, float16 or float32"),
        (lambda: small_lora(biases={"blocks.0.ffn.0": torch.ones(48)}), {"fmt": "kohya"}, "write wan or diffusers"),
        (
            lambda: small_lora(factors={"blocks.0.self_attn.q": Factors(torch.full((1, 32), 1e6), torch.ones(32, 1))}),
            {"dtype": torch.float16},
            "blocks.0.self_attn.q holds NaN, infinity or more than torch.float16 can hold",
        ),
        (lambda: small_lora(biases={"blocks.0.ffn.0": torch.ones(9)}), {}, "the bias of blocks.0.ffn.0 is [9]"),
        (
            lambda: small_lora(factors={"blocks.0.ffn.0": Factors(torch.ones(1, 32), torch.ones(32, 1))}),
            {},
            "blocks.0.ffn.0 is 32 x 32, in small-wan it is 48 x 32",
        ),
    ],
)
def test_a_lora_that_cannot_be_written(
    make: Callable[[], Lora], kwargs: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError) as caught:
        write_lora(path, make(), BASE, **kwargs)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_lora(tmp_path / "file" / "x.safetensors", small_lora(), BASE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

"""Headers of LoRA files, and configurations beside them, that are damaged or make no sense."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import RANK, header, original_file, random_pairs, save, small_wan
from torch import Tensor

from p2e.errors import FormatError
from p2e.lora.formats import read_lora

BASE = small_wan()


def refused(path: Path, said: str = "") -> None:
    with pytest.raises(FormatError) as caught:
        read_lora(path, BASE)
    message = str(caught.value)
    assert str(path) in message
    assert said in message
    assert "\n" not in message
    assert len(message) < 500


def whole_file() -> dict[str, Tensor]:
    return original_file(random_pairs(BASE.sites))


NAME = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
HEADERS = [
    "[]", "null", "1", "[" * 50_000, '{"__metadata__":null}', '{"a":1}',
    '{"a":{"dtype":"F32","shape":["x"],"data_offsets":[0,4]}}',
    '{"a":{"dtype":"F32","shape":"ab","data_offsets":[0,4]}}',
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,5]}}',
    '{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
    f'{{"{NAME}":{{"dtype":"F32","shape":[1.0,32.0],"data_offsets":[0,128]}}}}',
    f'{{"{NAME}":{{"dtype":"F32","shape":[1,32],"data_offsets":[Infinity,128]}}}}',
    f'{{"{NAME}":{{"dtype":"F32","shape":[0,{10**30}],"data_offsets":[0,0]}}}}',
    f'{{"{NAME}":{{"dtype":"F32","shape":[-1,-32],"data_offsets":[0,128]}}}}',
    '{"\\ud800.lora_A.weight":{"dtype":"F32","shape":[1,32],"data_offsets":[0,128]}}',
]  # fmt: skip


@pytest.mark.parametrize("text", HEADERS, ids=lambda text: text[:60])
def test_a_header_that_is_no_table_of_tensors(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(4096))
    refused(path)


@settings(max_examples=100, deadline=None)
@given(changes=st.dictionaries(st.integers(0, 10_000), st.integers(0, 255), min_size=1, max_size=3))
def test_damage_to_a_header_is_refused_or_harmless(
    changes: dict[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    metadata = header(r=RANK, lora_alpha=2)
    data = bytearray(save(path, original_file(random_pairs(BASE.sites[:4])), metadata).read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    for place, value in changes.items():
        data[place % (8 + length)] = value
    path.write_bytes(data)
    try:
        lora = read_lora(path, BASE)
    except FormatError as error:
        assert "\n" not in str(error)
    else:
        assert lora.factors


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"lora_adapter_metadata": "{"}, "not valid JSON"),
        ({"lora_adapter_metadata": "[" * 100_000}, "not valid JSON"),
        ({"lora_adapter_metadata": "[]"}, "not a JSON object"),
        (header(r=9, lora_alpha=9), "rank 9 for blocks.0.cross_attn.k, whose factors have rank 4"),
        (header(r="x", lora_alpha=9), "not a number"),
        (header(r=RANK, lora_alpha=float("inf")), "not a number"),
        (header(r=RANK, lora_alpha=1, rank_pattern=[1]), "not a number"),
        (header(r=RANK, lora_alpha=1, alpha_pattern={"(": 1}), "pattern '(' is not valid"),
        (header(r=RANK, lora_alpha=1, use_dora=True), "DoRA"),
        (header(r=RANK, lora_alpha=1, peft_type="LOKR"), "LOKR"),
        ({"p2e.zero_filled": "{"}, "p2e.zero_filled is not a JSON list"),
    ],
)
def test_headers_that_make_no_sense(metadata: dict[str, str], said: str, tmp_path: Path) -> None:
    refused(save(tmp_path / "x.safetensors", whole_file(), metadata), said)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not valid JSON"), (json.dumps({"peft_type": "LOHA"}), "LOHA"), (b"\xff\xfe", "not valid JSON")],
)
def test_configurations_beside_a_file_that_make_no_sense(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", original_file(random_pairs(BASE.sites), prefix="base_model.model."))
    (tmp_path / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=said) as caught:
        read_lora(path, BASE)
    assert str(tmp_path / "adapter_config.json") in str(caught.value)

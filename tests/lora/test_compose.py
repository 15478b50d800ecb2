"""Blends against the dense sum, truncation, strength, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2e.errors import InputError
from p2e.lora.compose import blend, scale
from p2e.lora.lora import Factors, Lora, Provenance

SHAPES = {"blocks.0.self_attn.q": (12, 10), "blocks.0.ffn.0": (20, 10), "blocks.1.ffn.2": (10, 20)}
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def lora(seed: int, rank: int, keys=tuple(SHAPES), base: str = "toy", bias: bool = False) -> Lora:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factors = {key: Factors(draw(rank, SHAPES[key][1]), draw(SHAPES[key][0], rank)) for key in keys}
    biases = {key: draw(SHAPES[key][0]).float() for key in keys} if bias else {}
    return Lora(base, factors, biases, Provenance(source=f"loras/{seed}.safetensors"))


def dense(terms, key):
    return sum(
        (weight * term.factors[key].delta() for term, weight in terms if key in term.factors),
        torch.zeros(SHAPES[key], dtype=torch.float64),
    )


coverages = st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=3, unique=True)
terms_ = st.lists(
    st.tuples(st.integers(0, 999), st.integers(1, 4), coverages, st.floats(-2, 2)), min_size=1, max_size=4
).map(lambda drawn: [(lora(seed, rank, tuple(keys)), weight) for seed, rank, keys, weight in drawn])


@given(terms_)
@PROPERTY
def test_a_blend_is_the_weighted_sum(terms):
    result = blend(terms)
    assert set(result.lora.factors) == {key for term, _ in terms for key in term.factors}
    for key, factors in result.lora.factors.items():
        assert torch.allclose(factors.delta(), dense(terms, key), atol=1e-12)
    assert result.kept_energy == 1 and set(result.kept.values()) == {1.0}


@given(terms_, st.integers(1, 12))
@PROPERTY
def test_a_truncated_blend_is_the_best_of_its_rank(terms, rank):
    result = blend(terms, rank)
    kept = total = 0.0
    for key, factors in result.lora.factors.items():
        assert factors.rank == rank
        whole = dense(terms, key)
        s = torch.linalg.svdvals(whole)
        energy = float(s.square().sum())
        error = float((whole - factors.delta()).square().sum())
        assert error <= float(s[rank:].square().sum()) + 1e-10 * energy
        if energy > 0:
            assert abs(result.kept[key] - (1 - error / energy)) < 1e-9
        kept, total = kept + energy - error, total + energy
    assert abs(result.kept_energy - (kept / total if total else 1)) < 1e-9


def test_one_term_blends_to_itself_and_ranks_pad():
    one = lora(1, 3)
    for key, factors in blend([(one, 1.0)], 5).lora.factors.items():
        assert factors.rank == 5
        assert torch.allclose(factors.delta(), one.factors[key].delta())


def test_biases_are_summed_and_the_recipe_is_kept():
    one, two = lora(1, 2, bias=True), lora(2, 2, keys=("blocks.0.ffn.0",), bias=True)
    result = blend([(one, 0.5), (two, -1.0)]).lora
    assert torch.allclose(
        result.biases["blocks.0.ffn.0"], 0.5 * one.biases["blocks.0.ffn.0"] - two.biases["blocks.0.ffn.0"]
    )
    assert torch.allclose(result.biases["blocks.1.ffn.2"], 0.5 * one.biases["blocks.1.ffn.2"])
    assert json.loads(result.provenance.metadata["p2e.blend"]) == [["1.safetensors", 0.5], ["2.safetensors", -1.0]]


@given(st.floats(-3, 3))
@PROPERTY
def test_strength_scales_the_update(strength):
    one = lora(4, 2, bias=True)
    result = scale(one, strength)
    for key, factors in result.factors.items():
        assert torch.allclose(factors.delta(), strength * one.factors[key].delta())
        assert torch.allclose(result.biases[key], strength * one.biases[key])


def test_half_precision_factors_blend_in_float32():
    one = lora(1, 2)
    half = replace(one, factors={k: Factors(f.a.bfloat16(), f.b.bfloat16()) for k, f in one.factors.items()})
    for key, factors in blend([(half, 0.3)]).lora.factors.items():
        assert factors.a.dtype == torch.float32
        assert torch.allclose(
            factors.delta(), 0.3 * half.factors[key].b.float() @ half.factors[key].a.float(), atol=1e-6
        )


@pytest.mark.parametrize(
    ("terms", "rank", "says"),
    [
        ([], None, "nothing to blend"),
        ([(lora(1, 2), 1.0), (lora(2, 2, base="other"), 1.0)], None, r"different bases .*other, toy"),
        ([(lora(1, 2), float("nan"))], None, "1.safetensors: weight nan"),
        ([(lora(1, 2), 1.0)], 0, "rank 0"),
    ],
)
def test_what_cannot_be_blended_is_refused(terms, rank, says):
    with pytest.raises(InputError, match=says) as error:
        blend(terms, rank)
    assert "\n" not in str(error.value)


def test_shapes_that_differ_and_bad_strengths_are_refused():
    key = "blocks.0.ffn.0"
    wrong = Lora(
        "toy", {key: Factors(torch.zeros(2, 9), torch.zeros(20, 2))}, provenance=Provenance("x/wrong.safetensors")
    )
    with pytest.raises(InputError, match=r"wrong\.safetensors: blocks\.0\.ffn\.0 is 20 x 9, not 20 x 10"):
        blend([(lora(1, 2), 1.0), (wrong, 1.0)])
    with pytest.raises(InputError, match="strength inf"):
        scale(lora(1, 2), float("inf"))

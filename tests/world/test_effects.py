"""The table of effects, and the parameters drawn from it."""

from collections import Counter

import pytest
import torch

from p2e.errors import InputError
from p2e.world.effects import EFFECTS, effect_index, effect_table, sample_params
from p2e.world.parameters import PARAMETERS, EffectParams, parameter_vector
from p2e.world.table.spec import UNSEEN

PAPER_HELD_OUT = {"polarbear_spa", "dj_cat", "blue_mood", "dream_cute_sketch_v4", "fisheye_transformation"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_counts_of_the_splits() -> None:
    counts = Counter(spec.split for spec in EFFECTS)
    assert counts["train"] >= 70
    assert {spec.name for spec in EFFECTS if spec.split == "heldout"} == PAPER_HELD_OUT
    assert counts["ood"] == 27
    assert len({spec.name for spec in EFFECTS}) == len(EFFECTS)


def test_prompts_are_many_distinct_and_of_a_sensible_length() -> None:
    prompts = [prompt for spec in EFFECTS for prompt in spec.prompts]
    assert len({prompt.lower() for prompt in prompts}) == len(prompts)
    for spec in EFFECTS:
        assert len(spec.prompts) >= 14, spec.name
        assert spec.train_prompts + spec.unseen_prompts == spec.prompts and len(spec.unseen_prompts) == UNSEEN
    for prompt in prompts:
        assert 4 <= len(prompt.split()) <= 25, prompt


def test_no_prompt_holds_its_effect_name_as_a_token() -> None:
    for spec in EFFECTS:
        if "_" in spec.name or any(c.isdigit() for c in spec.name):
            assert not any(spec.name in prompt for prompt in spec.prompts), spec.name


def test_unseen_effects_equal_no_training_effect() -> None:
    table = effect_table()
    train = torch.tensor([spec.split == "train" for spec in EFFECTS])
    assert len(torch.unique(table, dim=0)) == len(EFFECTS)
    distance = torch.cdist(table[~train], table[train], p=float("inf"))
    assert (distance > 0.1).all()


def test_ood_effects_compose_or_bring_a_sprite_no_training_effect_has() -> None:
    def sprites(split: str) -> set[str]:
        return {v for spec in EFFECTS if spec.split == split for v in spec.parameters.values() if isinstance(v, str)}

    shown = sprites("train")
    assert sprites("heldout") <= shown
    for spec in EFFECTS:
        new = {v for v in spec.parameters.values() if isinstance(v, str)} - shown
        assert spec.split != "ood" or new or spec.category == "composed", spec.name


def test_clips_of_an_effect_differ_and_the_generator_decides() -> None:
    first = sample_params(effect_index("red_mood"), 4, generator())
    again = sample_params(effect_index("red_mood"), 4, generator())
    other = sample_params(effect_index("red_mood"), 4, generator(1))
    assert torch.equal(first.values, again.values) and torch.equal(first.times, again.times)
    assert not torch.equal(first.values, other.values)
    assert len(torch.unique(first.values, dim=0)) == 4 and len(torch.unique(first.times, dim=0)) == 4


def test_variation_keeps_ids_zeros_and_bounds() -> None:
    index = torch.arange(len(EFFECTS)).repeat_interleave(8)
    params = sample_params(index, None, generator())
    base = effect_table()[index]
    kinds = list(PARAMETERS.values())
    same = torch.tensor([kind in ("fixed", "sprite") for kind in kinds])
    bounded = torch.tensor([kind in ("amount", "colour") for kind in kinds])
    assert torch.equal(params.values[:, same], base[:, same])
    assert (params.values[:, bounded] >= 0).all() and (params.values[:, bounded] <= 1).all()
    sized = torch.tensor([kind == "size" for kind in kinds])
    assert torch.allclose(params.values[:, sized], base[:, sized], rtol=0.151, atol=0)


def test_no_variation_is_the_table_itself() -> None:
    params = sample_params(torch.arange(len(EFFECTS)), None, None, variation=0)
    assert torch.equal(params.values, effect_table())
    assert len(torch.unique(params.times, dim=0)) == 1


def test_specs_indices_and_names_agree() -> None:
    i = effect_index("panda")
    by_spec = sample_params(EFFECTS[i], 3, generator())
    by_index = sample_params([i, i, i], 3, generator())
    assert torch.equal(by_spec.values, by_index.values)
    joined = EffectParams.cat([by_spec, by_index])
    assert len(joined) == 6 and torch.equal(joined["swap"], torch.ones(6))


def test_wrong_names_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="no effect is called"):
        effect_index("teleport")
    with pytest.raises(InputError, match="not a parameter"):
        parameter_vector({"zoon": 1.0})
    with pytest.raises(InputError, match="no sprite"):
        parameter_vector({"swap_sprite": "basilisk"})
    with pytest.raises(InputError, match="effects were given for"):
        sample_params([0, 1], 3, generator())

"""The controls are what they say."""

import torch
from tiny import tiny_lora

from p2e.hypernet.text import sentence_vectors
from p2e.text import TextStates
from p2e.world.controls import mean_lora, nearest_effects


def states_of(*directions: int) -> TextStates:
    """Prompts of two real tokens that point along an axis, and a padded one that does not count."""
    states = torch.zeros(len(directions), 3, 8)
    for row, axis in enumerate(directions):
        states[row, :2, axis] = 1.0 + row
    mask = torch.tensor([True, True, False]).expand(len(directions), 3)
    states[:, 2] = 9.0
    return TextStates(states, mask)


def test_mean_is_the_mean_of_the_updates():
    loras = [tiny_lora(seed=seed, rank=2) for seed in range(3)]
    mean = mean_lora(loras, rank=6)
    for key, factors in mean.factors.items():
        expected = sum(lora.factors[key].delta() for lora in loras) / 3
        torch.testing.assert_close(factors.delta(), expected, atol=1e-6, rtol=1e-5)


def test_sentence_vectors_leave_padding_out():
    vectors = sentence_vectors(states_of(0, 3))
    torch.testing.assert_close(vectors, torch.eye(8)[[0, 3]])


def test_nearest_takes_the_closest_prompt_of_any_effect():
    library = {"a": states_of(0, 1), "b": states_of(2), "c": states_of(3)}
    assert nearest_effects(states_of(1, 3, 2), library) == ["a", "c", "b"]
    assert nearest_effects(states_of(1), library, exclude=["a"])[0] != "a"

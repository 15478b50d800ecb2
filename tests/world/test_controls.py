"""The controls are what they say."""

import torch
from tiny import tiny_lora

from p2e.hypernet.text import sentence_vectors
from p2e.text import TextStates
from p2e.world.controls import mean_lora, nearest_effects, softmax_weights, weighed_lora


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


def test_softmax_weights_the_library_by_similarity():
    library = {"a": states_of(0, 1), "b": states_of(2, 3), "c": states_of(4, 5)}
    weights = softmax_weights(states_of(2, 4), library, 1.0)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert weights.argmax(1).tolist() == [1, 2]
    # An effect with as many prompts on either side of the mean weighs as much as another.
    torch.testing.assert_close(weights[0, 0], weights[0, 2])
    assert softmax_weights(states_of(2), library, 0.01)[0, 1] > weights[0, 1]
    assert softmax_weights(states_of(2), library, 0.1)[0].tolist() == [0, 1, 0]  # what is negligible is left out
    flat = softmax_weights(states_of(2), library, 1e6)
    torch.testing.assert_close(flat, torch.full((1, 3), 1 / 3), atol=1e-4, rtol=0)


def test_a_weighed_lora_is_the_weighed_sum():
    loras = [tiny_lora(seed=seed, rank=2) for seed in range(2)]
    mixed = weighed_lora(loras, [0.25, 0.75], rank=4)
    for key, factors in mixed.factors.items():
        expected = 0.25 * loras[0].factors[key].delta() + 0.75 * loras[1].factors[key].delta()
        torch.testing.assert_close(factors.delta(), expected, atol=1e-6, rtol=1e-5)

"""Grouped LoRAs: each group sees its own update, the base is untouched, training lowers the loss."""

import pytest
import torch
from tiny import Z_CHANNELS, tiny_base, tiny_lora, tiny_states, tiny_transformer

from p2e.adapt.config import AdaptConfig
from p2e.adapt.grouped import GroupedLoras
from p2e.adapt.train import AdaptData, rate, train_loras
from p2e.errors import InputError
from p2e.render.slot import LoraSlot


def inputs(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(rows, 2 * Z_CHANNELS + 4, 2, 4, 4, generator=generator),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": tiny_states(rows).states,
    }


def data(groups: int, clips: int = 3) -> AdaptData:
    generator = torch.Generator().manual_seed(2)
    shape = (groups, clips, Z_CHANNELS, 2, 4, 4)
    latents, condition = torch.randn(2, *shape, generator=generator)
    return AdaptData(latents, condition, torch.stack([tiny_states(2, seed=g).states for g in range(groups)]))


def test_every_group_sees_its_own_update():
    base, transformer = tiny_base(), tiny_transformer()
    loras = [tiny_lora(seed=1, rank=2), tiny_lora(seed=2, rank=4)]
    x = inputs(4)
    grouped = GroupedLoras(base, 2, 4, init=loras)
    with torch.no_grad(), grouped.attached(transformer):
        together = transformer(**x, return_dict=False)[0]
    for group, lora in enumerate(loras):
        slot = LoraSlot(transformer, base, 4)
        slot.load(lora)
        with torch.no_grad():
            alone = transformer(**x, return_dict=False)[0]
        slot.remove()
        rows = slice(2 * group, 2 * group + 2)
        torch.testing.assert_close(together[rows], alone[rows], atol=2e-5, rtol=1e-4)


def test_a_fresh_lora_changes_nothing_and_leaves_the_base_as_it_was():
    transformer, x = tiny_transformer(), inputs(2)
    names = [name for name, _ in transformer.named_parameters()]
    with torch.no_grad():
        before = transformer(**x, return_dict=False)[0]
        with GroupedLoras(tiny_base(), 2, 3).attached(transformer):
            inside = transformer(**x, return_dict=False)[0]
        after = transformer(**x, return_dict=False)[0]
    torch.testing.assert_close(inside, before, atol=1e-6, rtol=1e-6)
    assert torch.equal(after, before)
    assert names == [name for name, _ in transformer.named_parameters()]


def test_start_is_shared_or_each_its_own():
    key = tiny_base().sites[0].key
    shared = GroupedLoras(tiny_base(), 3, 2, shared_start=True).factors[key][0]
    own = GroupedLoras(tiny_base(), 3, 2, shared_start=False).factors[key][0]
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(own[0], own[1])


def test_init_of_lower_rank_leaves_the_further_components_trainable():
    given = tiny_lora(rank=2)
    grouped = GroupedLoras(tiny_base(), 1, 4, init=[given])
    lora = grouped.lora(0)
    for key, factors in given.factors.items():
        torch.testing.assert_close(lora.factors[key].delta(), factors.delta())
        assert lora.factors[key].a[2:].abs().min() > 0


def test_init_of_higher_rank_is_refused():
    with pytest.raises(InputError, match="rank"):
        GroupedLoras(tiny_base(), 1, 2, init=[tiny_lora(rank=4)])


def test_training_lowers_the_loss_and_only_the_loras_move():
    transformer = tiny_transformer()
    weights = {name: p.clone() for name, p in transformer.named_parameters()}
    config = AdaptConfig(rank=4, steps=60, batch=3, learning_rate=1e-2, precision="float32")
    seen: list[torch.Tensor] = []
    train_loras(transformer, GroupedLoras(tiny_base(), 2, 4), data(2), config, on_step=lambda _, x: seen.append(x))
    losses = torch.stack(seen)
    assert (losses[-15:].mean(0) < 0.9 * losses[:15].mean(0)).all()
    assert all(torch.equal(p, weights[name]) for name, p in transformer.named_parameters())


def test_groups_do_not_disturb_each_other():
    config = AdaptConfig(rank=2, steps=4, batch=2, learning_rate=1e-3, precision="float32")
    examples = data(2)
    both = GroupedLoras(tiny_base(), 2, 2, shared_start=True)
    train_loras(tiny_transformer(), both, examples, config)
    swapped = AdaptData(examples.latents[[0, 0]], examples.condition[[0, 0]], examples.text[[0, 0]])
    other = GroupedLoras(tiny_base(), 2, 2, shared_start=True)
    train_loras(tiny_transformer(), other, swapped, config)
    for key, (_, b) in both.factors.items():
        torch.testing.assert_close(b[0], other.factors[key][1][0], atol=1e-6, rtol=1e-3)


def test_rate_is_the_papers_recipe():
    config = AdaptConfig()
    assert rate(config, 0) == pytest.approx(1e-5)  # a tenth of the way up: 1 % of 1,000 steps is 10
    assert rate(config, 10) == pytest.approx(1e-4, rel=1e-3)
    assert rate(config, 999) == pytest.approx(1e-5, rel=1e-2)

"""The objectives agree with their schedulers; times on one side of a boundary have the right distribution."""

from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from p2e.adapt.flow import sample_times
from p2e.adapt.objective import Diffusion, Flow, objective_of, sample_within
from p2e.errors import FormatError


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 3, 2, 2, 2, generator=generator)
    return latents, noise, torch.tensor([0.0, 0.3, 0.7, 1.0])


def test_velocity_is_the_diffusion_schedulers_own() -> None:
    scheduler: Any = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0
    )
    objective = objective_of(scheduler, "base")
    latents, noise, times = drawn()
    steps = objective.timestep(times)
    assert steps.tolist() == [0, 300, 700, 999]
    noisy = objective.mix(latents, noise, times)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, steps))
    torch.testing.assert_close(objective.target(latents, noise, times), scheduler.get_velocity(latents, noise, steps))
    # The released training weighs the error of the implied x_0 by 1 / (1 - c): the same number as the error of v.
    answer = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    implied = scheduler.get_velocity(answer, noisy, steps)
    kept = scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1, 1)
    theirs = ((implied.float() - latents).square() / (1 - kept.float())).flatten(1).mean(1)
    ours = (answer - objective.target(latents, noise, times)).square().flatten(1).mean(1)
    torch.testing.assert_close(ours[1:], theirs[1:], atol=1e-4, rtol=1e-3)


def test_other_answers_of_a_diffusion_scheduler() -> None:
    latents, noise, times = drawn()
    answers: tuple[tuple[Any, torch.Tensor], ...] = (("epsilon", noise), ("sample", latents))
    for answer, expected in answers:
        objective = objective_of(CogVideoXDDIMScheduler(prediction_type=answer), "base")
        assert isinstance(objective, Diffusion)
        assert torch.equal(objective.target(latents, noise, times), expected)


def test_flow_is_told_by_the_scheduler() -> None:
    unipc: Any = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    for scheduler in (unipc, FlowMatchEulerDiscreteScheduler()):
        assert isinstance(objective_of(scheduler, "base"), Flow)
    latents, noise, _ = drawn()
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    mixed = scheduler.scale_noise(latents[1:], scheduler.timesteps[[700, 300, 0]], noise[1:])
    told = scheduler.sigmas[[700, 300, 0]]
    torch.testing.assert_close(Flow().mix(latents[1:], noise[1:], told), mixed)
    with pytest.raises(FormatError, match="DDPMScheduler"):
        objective_of(DDPMScheduler(), "base")


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.9, 1.0), (0.0, 0.9)])
def test_times_within_bounds_are_the_plain_ones_conditioned(sampling: str, low: float, high: float) -> None:
    count, shift = 40_000, 3.0
    plain = sample_times(count, torch.Generator().manual_seed(0), "cpu", sampling=sampling, shift=shift)
    kept = plain[(plain >= low) & (plain <= high)]
    ours = sample_within(count, torch.Generator().manual_seed(1), sampling=sampling, shift=shift, low=low, high=high)
    assert float(ours.min()) >= low and float(ours.max()) <= high
    levels = torch.linspace(0.05, 0.95, 7)
    torch.testing.assert_close(ours.quantile(levels), kept.quantile(levels), atol=0.012, rtol=0)

"""The objective agrees with the pipeline: conditioning, times, velocity."""

import pytest
import torch
from tiny import Z_CHANNELS, tiny_pipeline, tiny_states

from p2e.adapt.flow import conditioned, flow_loss, sample_times
from p2e.adapt.latents import encode_latents
from p2e.adapt.sample import sample_latents


def random_clips(count: int, frames: int = 5, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, frames, 3, size, size), dtype=torch.uint8, generator=generator)


def test_condition_is_the_pipelines_own():
    pipe = tiny_pipeline()
    clips = random_clips(1)
    _, condition = encode_latents(pipe.vae, clips)
    image = clips[:, 0].float() / 127.5 - 1
    _, expected = pipe.prepare_latents(image, 1, Z_CHANNELS, 32, 32, 5, torch.float32, torch.device("cpu"))
    got = conditioned(torch.zeros_like(condition), condition)[:, Z_CHANNELS:]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_sampling_gives_the_pipelines_latents():
    pipe, states = tiny_pipeline(), tiny_states().states
    clips = random_clips(1)
    _, condition = encode_latents(pipe.vae, clips)
    noise = torch.randn(condition.shape, generator=torch.Generator().manual_seed(4))
    got = sample_latents(pipe.transformer, pipe.scheduler, condition, states, noise, steps=3)
    expected = pipe(
        image=clips[:, 0].float() / 255, prompt_embeds=states, height=32, width=32, num_frames=5, guidance_scale=1.0,
        num_inference_steps=3, latents=noise, output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_loss_is_zero_for_the_true_velocity():
    latents, noise = torch.randn(2, Z_CHANNELS, 2, 4, 4), torch.randn(2, Z_CHANNELS, 2, 4, 4)

    def oracle(hidden_states: torch.Tensor, timestep: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        # With x_t and t known, v = (x_t - x_0) / t.
        t = (timestep / 1000).view(-1, 1, 1, 1, 1)
        return ((hidden_states[:, :Z_CHANNELS] - latents) / t,)

    text = torch.zeros(2, 3, 384)
    loss = flow_loss(oracle, latents, latents, text, torch.tensor([0.3, 0.9]), noise)
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-9, rtol=0)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_shift_moves_times_towards_noise(sampling: str):
    def times(shift: float) -> torch.Tensor:
        return sample_times(4000, torch.Generator().manual_seed(0), "cpu", sampling=sampling, shift=shift)

    plain, shifted = times(1.0), times(3.0)
    assert float(plain.min()) >= 0 and float(shifted.max()) <= 1
    assert abs(float(plain.mean()) - 0.5) < 0.02
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))

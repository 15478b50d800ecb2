"""The whole-clip form of the autoencoder gives what diffusers gives in chunks."""

import pytest
import torch
from tiny import tiny_vae

from p2e.adapt.latents import normalise, to_model_range
from p2e.world.train_base import encode_clips
from p2e.world.vae import build_vae, channels_last, decode_clip, encode_clip, psnr


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return build_vae(base_dim=8, decoder_base_dim=8).eval().requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_encoding_equals_diffusers_in_chunks(small, frames: int):
    clip = torch.rand(2, 3, frames, 32, 48, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    mean, log_variance = encode_clip(small, clip)
    expected = small.encode(clip).latent_dist
    torch.testing.assert_close(mean, expected.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(log_variance, expected.logvar, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_decoding_equals_diffusers_in_chunks(small, frames: int):
    latents = 0.5 * torch.randn(2, 48, frames, 4, 6, generator=torch.Generator().manual_seed(frames))
    clip = decode_clip(small, latents)
    assert clip.shape == (2, 3, 4 * (frames - 1) + 1, 32, 48)
    torch.testing.assert_close(clip.clamp(-1, 1), small.decode(latents).sample, atol=1e-5, rtol=1e-4)


def test_channels_last_changes_no_value(small):
    clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    before = encode_clip(small, clip)[0]
    channels_last(small)
    torch.testing.assert_close(encode_clip(small, clip)[0], before, atol=1e-5, rtol=1e-4)


def test_conditions_hold_the_first_frame_alone():
    vae = tiny_vae()
    clips = torch.randint(0, 256, (3, 5, 3, 32, 32), dtype=torch.uint8)
    other = clips.clone()
    other[:, 1:] = 0
    latents, condition = encode_clips(vae, clips)
    assert torch.equal(condition, encode_clips(vae, other)[1])
    assert not torch.equal(latents, condition)


def test_normalised_latents_have_the_configured_statistics():
    vae = tiny_vae()
    vae.register_to_config(latents_mean=[1.0] * 4, latents_std=[2.0] * 4)
    torch.testing.assert_close(normalise(vae, torch.full((1, 4, 1, 2, 2), 5.0)), torch.full((1, 4, 1, 2, 2), 2.0))


def test_psnr_of_a_known_error():
    truth = torch.zeros(2, 3, 1, 4, 4)
    wrong = truth.clone()
    wrong[1] += 0.2
    assert psnr(wrong, truth)[1].item() == pytest.approx(20.0, abs=1e-3)  # 10 log10(4 / 0.04)


def test_model_range_spans_minus_one_to_one():
    clips = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 1)
    assert to_model_range(clips)[0, :, :, 0, 0].unique(dim=0).tolist() == [[-1.0, 1.0]]

"""The renderer over the real pipeline at a tiny size: seeds, LoRAs from memory and from files, errors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from numpy.typing import NDArray
from PIL import Image
from tiny import tiny_base, tiny_lora, tiny_pipeline, tiny_states, tiny_transformer

from p2e.config import RenderConfig
from p2e.errors import FormatError, InputError
from p2e.float8 import Float8Linear
from p2e.lora.formats import write_lora
from p2e.render.conditions import Kept, clip_name, picture_name
from p2e.render.pipeline import Renderer
from p2e.render.prompts import PromptCache
from p2e.render.transformer import use_attention
from p2e.text import TextStates

TINY = RenderConfig(height=32, width=32, frames=5, steps=3, max_rank=8)
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
STATES = tiny_states()


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_pipeline(), tiny_base(), settings=TINY)


def frames(renderer: Renderer, image: Any = IMAGE, **options: Any) -> NDArray[np.uint8]:
    return renderer.render(image, **{"states": STATES, **options}).frames


def test_clip_has_the_asked_size(renderer: Renderer) -> None:
    clip = renderer.render(IMAGE, states=STATES, frames=9, height=48)
    assert clip.frames.shape == (9, 48, 32, 3) and clip.frames.dtype == np.uint8 and clip.fps == 8


def test_a_seed_gives_the_same_bytes_whatever_was_rendered_before(renderer: Renderer) -> None:
    first = frames(renderer, seed=1)
    other = frames(renderer, seed=2, lora=tiny_lora())
    assert np.array_equal(frames(renderer, seed=1), first)
    assert not np.array_equal(other, first)
    fresh = Renderer(tiny_pipeline(), tiny_base(), settings=TINY)
    assert np.array_equal(frames(fresh, seed=1), first)


def test_equals_the_plain_pipeline(renderer: Renderer) -> None:
    plain = tiny_pipeline()
    plain.set_progress_bar_config(disable=True)
    video = plain(
        image=Image.fromarray(IMAGE), prompt_embeds=STATES.states, height=32, width=32, num_frames=5,
        num_inference_steps=3, guidance_scale=1.0, generator=torch.Generator("cpu").manual_seed(4), output_type="np",
    ).frames[0]  # fmt: skip
    assert np.array_equal(frames(renderer, seed=4), (video * 255).round().astype(np.uint8))


def test_strength_zero_and_no_lora_are_the_base(renderer: Renderer) -> None:
    base = frames(renderer)
    lora = tiny_lora(size=1.0)
    assert not np.array_equal(frames(renderer, lora=lora), base)
    assert np.array_equal(frames(renderer, lora=lora, strength=0.0), base)
    assert not np.array_equal(frames(renderer, lora=lora, strength=1.0), base)
    assert np.array_equal(frames(renderer), base)


def test_a_mix_is_a_lora_of_stacked_factors(renderer: Renderer) -> None:
    one, two = tiny_lora(rank=3, seed=1, size=1.0), tiny_lora(rank=5, seed=2, size=1.0)
    mixed = frames(renderer, lora=[(one, 0.5), (two, 0.0)])
    assert np.array_equal(mixed, frames(renderer, lora=one, strength=0.5))
    assert not np.array_equal(mixed, frames(renderer, lora=[(one, 0.5), (two, 0.5)]))
    with pytest.raises(InputError, match="rank 10 does not fit the LoRA slot of rank 8"):
        frames(renderer, lora=[(two, 0.5), (two, 0.5)])


@pytest.mark.parametrize("fmt", ["wan", "diffusers", "kohya"])
def test_slot_equals_the_file_loaded_by_diffusers(renderer: Renderer, tmp_path: Path, fmt: Any) -> None:
    base, lora = tiny_base(), tiny_lora(rank=4, size=0.5)
    path = tmp_path / "effect.safetensors"
    write_lora(path, lora, base, fmt=fmt, dtype=torch.float32)
    plain = tiny_pipeline()
    plain.load_lora_weights(str(path))
    adapted = [name for name, _ in plain.transformer.named_modules() if name.endswith(".lora_A")]
    assert len(adapted) == len(base.sites)
    inputs = {
        "hidden_states": torch.randn(1, 12, 2, 4, 4, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor([700.0]), "encoder_hidden_states": STATES.states, "return_dict": False,
    }  # fmt: skip
    renderer.slot.clear()
    with torch.no_grad():
        base_output = renderer.pipe.transformer(**inputs)[0]
        renderer.slot.load(lora)
        ours, theirs = renderer.pipe.transformer(**inputs)[0], plain.transformer(**inputs)[0]
    assert (ours - base_output).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_batch_equals_single_clips(renderer: Renderer) -> None:
    images = [IMAGE, IMAGE[::-1], np.ascontiguousarray(IMAGE[:, ::-1])]
    lora = tiny_lora(size=0.5)
    batch = renderer.render_batch(images, states=tiny_states(3), lora=lora, seeds=[1, 2, 3])
    assert len(batch) == 3
    for index, clip in enumerate(batch):
        single = frames(renderer, images[index], states=tiny_states(3)[index : index + 1], lora=lora, seed=index + 1)
        assert np.abs(clip.frames.astype(int) - single).max() <= 1
    with pytest.raises(InputError, match="3 images need one seed, or 3"):
        renderer.render_batch(images, states=STATES, seeds=[1, 2])
    with pytest.raises(InputError, match="3 images need one prompt, or 3, not 2"):
        renderer.render_batch(images, states=tiny_states(2))


class CountingEncoder:
    """Token states from a prompt's letters; counts how many prompts it saw."""

    width = 384

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, prompts: Sequence[str]) -> TextStates:
        self.seen += prompts
        parts = [tiny_states(seed=sum(map(ord, prompt))) for prompt in prompts]
        return TextStates(torch.cat([p.states for p in parts]), torch.cat([p.mask for p in parts]))


def test_prompts_are_encoded_once() -> None:
    encoder = CountingEncoder()
    renderer = Renderer(tiny_pipeline(), tiny_base(), settings=TINY, encoder=encoder)
    rain = renderer.render(IMAGE, "rain").frames
    assert np.array_equal(renderer.render(IMAGE, "rain", seed=0).frames, rain)
    renderer.render_batch([IMAGE, IMAGE], ["snow", "rain"])
    assert encoder.seen == ["rain", "snow"]
    assert renderer.encode(["snow", "rain", "snow"]).states.shape == (3, 8, 384)
    assert encoder.seen == ["rain", "snow"]


def test_the_prompts_used_last_are_kept() -> None:
    encoder = CountingEncoder()
    cache = PromptCache(lambda: encoder, size=2)
    for prompts in (["a", "b"], ["a"], ["c"], ["a", "c"], ["b"]):
        assert cache.encode(prompts).states.shape[0] == len(prompts)
    assert encoder.seen == ["a", "b", "c", "b"]
    with pytest.raises(InputError, match="put the prompt in a list"):
        cache.encode("a")


def test_an_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    seen: list[int] = []
    encode = pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda x: seen.append(1) or encode(x))
    renderer = Renderer(pipe, tiny_base(), settings=TINY)
    fresh = Renderer(tiny_pipeline(), tiny_base(), settings=TINY)
    other = 255 - IMAGE
    for image, options in ((IMAGE, {}), (IMAGE, {"lora": tiny_lora()}), (other, {}), (IMAGE, {"seed": 3})):
        assert np.array_equal(frames(renderer, image, **options), frames(fresh, image, **options))
    assert len(seen) == 2
    frames(renderer, frames=9)  # another clip
    renderer.render_batch([IMAGE, other], states=STATES)
    assert len(seen) == 3


def test_the_images_used_last_are_kept() -> None:
    seen: list[str] = []
    kept = Kept(lambda thing, mode="x": seen.append(thing) or thing + mode, lambda thing: thing or None, size=2)
    for thing in "aabcab":
        assert kept(thing) == thing + "x"
    assert kept("b", mode="y") == "by" and kept("") == kept("") == "x"
    assert seen == ["a", "b", "c", "a", "b", "b", "", ""]


def test_only_clips_that_begin_with_a_picture_are_known() -> None:
    clip = torch.zeros(1, 3, 5, 4, 4)
    clip[:, :, 0] = 1
    last, inner = clip.clone(), clip.clone()
    last[:, :, -1] = 0.5
    inner[:, :, 2] = 0.5
    names = [clip_name(clip), clip_name(last), clip_name(clip[:, :, :4]), clip_name(clip.bfloat16())]
    assert None not in names and len(set(names)) == 4 and clip_name(clip.clone()) == names[0]
    assert clip_name(inner) is None and clip_name(clip[0]) is None
    pictures = [Image.fromarray(IMAGE), IMAGE, torch.from_numpy(IMAGE), Image.fromarray(255 - IMAGE)]
    assert len({picture_name(picture) for picture in pictures}) == 4 and picture_name(pictures) is None


def test_euler_steps_for_what_was_distilled(renderer: Renderer) -> None:
    plain = tiny_pipeline()
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain.set_progress_bar_config(disable=True)
    video = plain(
        image=Image.fromarray(IMAGE), prompt_embeds=STATES.states, height=32, width=32, num_frames=5,
        num_inference_steps=2, guidance_scale=1.0, generator=torch.Generator("cpu").manual_seed(0), output_type="np",
    ).frames[0]  # fmt: skip
    base = frames(renderer, steps=2)
    euler = frames(renderer, steps=2, schedule="euler", shift=3.0)
    assert np.array_equal(euler, (video * 255).round().astype(np.uint8))
    assert not np.array_equal(frames(renderer, steps=2, schedule="euler", shift=1.0), euler)
    assert np.array_equal(frames(renderer, steps=2), base) and not np.array_equal(base, euler)  # and back
    with pytest.raises(InputError, match="schedule"):
        frames(renderer, schedule="fastest")


def test_the_backend_of_attention_can_be_chosen(renderer: Renderer) -> None:
    with pytest.raises(InputError, match="attention backend 'fastest' cannot be used"):
        use_attention(tiny_transformer(), "fastest")
    math = Renderer(tiny_pipeline(), tiny_base(), settings=TINY)
    use_attention(math.pipe.transformer, "_native_math")
    assert _AttentionBackendRegistry.get_active_backend()[0] == "native"  # of all others
    assert np.abs(frames(math).astype(int) - frames(renderer).astype(int)).max() <= 1


def test_blocks_in_float8_render_nearly_the_same(renderer: Renderer, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "base")
    coarse = Renderer.open(tmp_path / "base", settings=TINY, fp8=True)
    layer = coarse.pipe.transformer.blocks[0].attn1.to_q
    assert isinstance(layer, Float8Linear) and layer.weight.dtype == torch.float8_e4m3fn
    assert coarse.pipe.transformer.dtype == renderer.pipe.transformer.dtype
    plain = frames(coarse)
    known = frames(renderer)
    assert 0 < np.abs(plain.astype(int) - known).mean() < 8
    changed, known_change = frames(coarse, lora=tiny_lora(coarse.base)), frames(renderer, lora=tiny_lora())
    assert np.abs(changed.astype(int) - known_change).mean() < np.abs(changed.astype(int) - plain).mean()
    assert np.array_equal(frames(coarse), plain)  # the slot leaves no trace


def test_guidance_leads_away_from_the_negative(renderer: Renderer) -> None:
    plain = frames(renderer, guidance=1.0)
    from_nothing = frames(renderer, guidance=3.0)
    from_states = frames(renderer, guidance=3.0, negative=tiny_states(seed=5))
    assert not np.array_equal(plain, from_nothing)
    assert not np.array_equal(from_nothing, from_states)
    assert np.array_equal(plain, frames(renderer, guidance=3.0, negative=STATES))  # away from itself is nowhere


def test_callback_counts_steps_and_can_end_the_render(renderer: Renderer) -> None:
    steps: list[tuple[int, int]] = []
    frames(renderer, callback=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    before = frames(renderer)

    def stop(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frames(renderer, callback=stop)
    assert np.array_equal(frames(renderer), before)


def test_opens_a_folder_that_it_saved(renderer: Renderer, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "base")
    opened = Renderer.open(tmp_path / "base", settings=TINY)
    assert [site.key for site in opened.base.sites] == [site.key for site in tiny_base().sites]
    assert np.array_equal(frames(opened), frames(renderer))
    shipped = opened.render(IMAGE, "a fox turns blue", steps=1)  # through MiniLM
    assert shipped.frames.shape == (5, 32, 32, 3)
    halves = Renderer.open(tmp_path / "base", dtype=torch.bfloat16, settings=TINY)
    assert halves.pipe.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert halves.pipe.vae.dtype == torch.float32
    assert np.abs(frames(halves).astype(int) - frames(renderer)).mean() < 8


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Renderer.open(tmp_path / "nowhere")
    folder = tmp_path / "base"
    tiny_pipeline().save_pretrained(folder)
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(InputError, match=f"device {device} cannot be used"):
            Renderer.open(folder, device)
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = vae.read_bytes()
    vae.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError) as caught:
        Renderer.open(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    vae.unlink()
    torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")  # a pickle is no way round
    with pytest.raises(FormatError, match="not a readable diffusers pipeline"):
        Renderer.open(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(FormatError, match=r"no model_index\.json"):
        Renderer.open(folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "LTXVideoTransformer3DModel"}))
    with pytest.raises(InputError):
        Renderer.open(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 6}, "6 frames cannot be rendered; give 5 or 9"),
        ({"height": 40}, "a height of 40 cannot be rendered; give a multiple of 16"),
        ({"width": 8}, "width"),
        ({"steps": 0}, "steps"),
        ({"guidance": -1.0}, "guidance"),
        ({"seed": -1}, "need one seed"),
        ({"prompt": "a", "states": STATES}, "either a prompt or its token states"),
        ({"states": None}, "either a prompt or its token states"),
        ({"prompt": " ", "states": None}, "the prompt is empty"),
        ({"states": TextStates(torch.zeros(1, 8, 16), torch.ones(1, 8, dtype=torch.bool))}, r"\[N, T, 384\]"),
        ({"image": "image.png"}, "PIL image or an array"),
        ({"image": IMAGE.astype(np.float32)}, r"lie in 0\.\.1"),
        ({"image": IMAGE[:8]}, "at least 16 a side"),
        ({"image": IMAGE[None]}, "put the channels last"),
        ({"strength": float("inf"), "lora": tiny_lora()}, "a strength of inf"),
        ({"strength": 1e38, "lora": tiny_lora(size=1e4)}, "not-a-number"),
    ],
)
def test_bad_arguments_are_one_line(renderer: Renderer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        frames(renderer, **options)
    assert "\n" not in str(caught.value)


def test_text_to_video_base_is_refused() -> None:
    pipe = tiny_pipeline()
    pipe.vae.register_to_config(z_dim=8)
    with pytest.raises(InputError, match="cannot start from an image"):
        Renderer(pipe, tiny_base())

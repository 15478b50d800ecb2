"""Renders clips with diffusers' WanImageToVideoPipeline and one LoRA slot.

A `Renderer` holds the plain pipeline (`renderer.pipe`), without its text encoder: prompts go through `p2e.text`, once
each, and reach the pipeline as token states. Noise is drawn on the CPU, so a seed means the same on every device.

Shapes: N clips in a call, T tokens, D width of the text states, F frames, H x W pixels.
"""

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from p2e.bases import Base, open_base, world_base_folder
from p2e.config import RenderConfig
from p2e.errors import FormatError, InputError
from p2e.lora.lora import Lora
from p2e.render.batch import BatchPipeline
from p2e.render.conditions import keep_conditions
from p2e.render.defaults import render_defaults
from p2e.render.image import fit_image
from p2e.render.prompts import PromptCache
from p2e.render.slot import LoraSlot
from p2e.render.transformer import use_attention, use_float8_blocks
from p2e.render.video import Clip
from p2e.text import TextEncoder, TextStates, encoder_for

__all__ = ["Renderer"]

Mix = Lora | Sequence[tuple[Lora, float]]
Picture = Image.Image | NDArray[Any]


class Renderer:
    """Turns first frames, prompts and LoRAs into clips. One render at a time; other threads wait.

    Args:
        pipe: a WanImageToVideoPipeline; its text encoder is not used.
        base: the site table of its transformer(s).
        encoder: text encoder; None takes `encoder_for(base, folder)` at the first prompt.
        folder: the diffusers folder that `pipe` came from.
        settings: what render() falls back to; None is `render_defaults(base)`.

    Raises:
        InputError: the base cannot start from an image, or the transformer is not one of `base`.

    Example::

        renderer = Renderer.open("world")
        clip = renderer.render(image, "a fox in the snow turns blue", lora=lora, seed=3)
        write_mp4("fox.mp4", clip, scale=4)
    """

    def __init__(
        self,
        pipe: Any,
        base: Base,
        *,
        encoder: TextEncoder | None = None,
        folder: str | Path | None = None,
        settings: RenderConfig | None = None,
    ) -> None:
        self.pipe = pipe
        self.base = base
        self.settings = settings or render_defaults(base)
        self._prompts = PromptCache(lambda: encoder or encoder_for(base, folder))
        self._lock = threading.Lock()
        self._batch: Any = None
        self._scheduler = pipe.scheduler
        transformers = {
            expert: getattr(pipe, name) for expert, name in base.subfolders.items() if getattr(pipe, name, None)
        }
        if not transformers:
            raise InputError(f"the pipeline of {base.name} has no transformer; use a complete diffusers folder")
        self._config = next(iter(transformers.values())).config
        channels = 2 * pipe.vae.config.z_dim + pipe.vae.config.scale_factor_temporal
        if self._config.in_channels != channels and not pipe.config.expand_timesteps:
            raise InputError(f"{base.name} cannot start from an image; render with an image-to-video base")
        self.slot = LoraSlot(transformers, base, self.settings.max_rank)
        pipe.set_progress_bar_config(disable=True)
        keep_conditions(pipe)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        settings: RenderConfig | None = None,
        compile: bool = False,
        attention: str | None = None,
        fp8: bool = False,
    ) -> "Renderer":
        """Opens the shipped world's base by the name "world", or a local diffusers pipeline folder of a Wan base.

        Args:
            dtype: of the transformer and its slot; the autoencoder stays in float32.
            compile: compile the transformer's blocks; swaps of LoRAs do not recompile.
            attention: backend of diffusers' attention, such as "_native_cudnn" or "flash"; None is PyTorch's choice.
            fp8: matrix products of the transformer's blocks in float8: quicker in half the memory, and less exact.

        Raises:
            InputError: there is no such folder or device, the device has no float8, or the base cannot be rendered.
            FormatError: the folder is not a complete diffusers pipeline in safetensors.
        """
        base, _ = open_base(str(folder))
        if base.family != "wan":
            raise InputError(f"{folder}: {base.name} cannot be rendered here; use a Wan image-to-video base")
        path = Path(world_base_folder()) if str(folder) == "world" else Path(folder)
        if not (path / "model_index.json").is_file():
            raise FormatError(f"{path}: no model_index.json; give a local diffusers pipeline folder, or world")
        try:
            pipe = WanImageToVideoPipeline.from_pretrained(
                path, text_encoder=None, tokenizer=None, local_files_only=True, use_safetensors=True,
                dtype={"default": dtype, "vae": torch.float32, "image_encoder": torch.float32},
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise FormatError(f"{path}: not a readable diffusers pipeline ({cause[:160]}); save it again") from None
        transformers = [getattr(pipe, name) for name in base.subfolders.values()]
        try:
            if fp8:
                for transformer in transformers:
                    use_float8_blocks(transformer, torch.device(device))
            pipe.to(device)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(f"device {device} cannot be used ({str(error).splitlines()[0][:120]}); try cpu") from None
        renderer = cls(pipe, base, folder=path, settings=settings)
        for transformer in transformers:
            if attention is not None:
                use_attention(transformer, attention)
            if compile:
                transformer.compile_repeated_blocks(fullgraph=True)
        return renderer

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """Token states [N, T, D] of prompts; each is encoded once and kept.

        Raises:
            InputError: a prompt is empty or too long.
        """
        return self._prompts.encode(prompts)

    def render(
        self,
        image: Picture,
        prompt: str | None = None,
        *,
        states: TextStates | None = None,
        lora: Mix | None = None,
        strength: float = 1.0,
        seed: int = 0,
        frames: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        negative: str | TextStates | None = None,
        schedule: str | None = None,
        shift: float | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> Clip:
        """One clip that starts from `image`. On one machine the same arguments give the same bytes.

        Args:
            image: PIL, or an array [H, W, 3]; scaled to cover the clip and cut about its centre.
            prompt: what the base reads; or give its token `states` [1, T, D] instead.
            lora: a LoRA, or several with weights to mix; None renders the base.
            strength: scale of the LoRA's update; 0 is the base.
            seed: of the initial noise, 0 to 2^63 - 1.
            frames, steps, guidance, height, width, schedule, shift: None takes `self.settings`.
            negative: prompt or states for guidance above 1; None takes `self.settings.negative_prompt`.
            callback: called with (steps done, steps) after every step; what it raises ends the render.

        Raises:
            InputError: an argument cannot be used, or the LoRA does not fit.
        """
        clips = self.render_batch(
            [image], None if prompt is None else [prompt], states=states, lora=lora, strength=strength, seeds=[seed],
            frames=frames, steps=steps, guidance=guidance, height=height, width=width, negative=negative,
            schedule=schedule, shift=shift, callback=callback,
        )  # fmt: skip
        return clips[0]

    def render_batch(
        self,
        images: Sequence[Picture],
        prompts: Sequence[str] | None = None,
        *,
        states: TextStates | None = None,
        lora: Mix | None = None,
        strength: float = 1.0,
        seeds: Sequence[int] | int = 0,
        frames: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        negative: str | TextStates | None = None,
        schedule: str | None = None,
        shift: float | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> list[Clip]:
        """N clips with one LoRA in one pass: an image each, a prompt and a seed each or one for all.

        Each clip is that of `render` up to the rounding of batched products. Arguments and errors are as there.
        """
        asked = {"frames": frames, "steps": steps, "guidance": guidance, "height": height, "width": width,
                 "schedule": schedule, "shift": shift}  # fmt: skip
        known = self.settings.model_dump()
        settings = RenderConfig.parse({**known, **{k: v for k, v in asked.items() if v is not None}}, "render")
        self._check_size(settings)
        if not images:
            raise InputError("there is no image to start from; give at least one")
        count = len(images)
        pictures = [fit_image(image, settings.height, settings.width) for image in images]
        seeds = [seeds] * count if isinstance(seeds, int) else list(seeds)
        if len(seeds) != count or any(not 0 <= seed < 1 << 63 for seed in seeds):
            raise InputError(f"{count} images need one seed, or {count}, from 0 to 2^63 - 1, not {seeds}")
        with self._lock:
            text = self._text(count, prompts, states)
            negative_text = None
            if settings.guidance > 1:
                negative_text = self._negative(text, settings.negative_prompt if negative is None else negative)
            self._set_lora(lora, strength)
            video = self._run(pictures, text, negative_text, seeds, settings, callback)
        if not video.isfinite().all():
            raise InputError("the render came out as not-a-number; lower the strength of the LoRA, or use float32")
        pixels = video.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
        return [Clip(clip, settings.fps) for clip in pixels]

    def _check_size(self, settings: RenderConfig) -> None:
        vae, patch = self.pipe.vae.config, self._config.patch_size
        factor = vae.scale_factor_temporal
        if settings.frames % factor != 1 % factor:
            nearest = (settings.frames - 1) // factor * factor + 1
            raise InputError(f"{settings.frames} frames cannot be rendered; give {nearest} or {nearest + factor}")
        for name, value, cells in (("height", settings.height, patch[1]), ("width", settings.width, patch[2])):
            multiple = math.lcm(16, vae.scale_factor_spatial * cells)
            if value % multiple:
                raise InputError(f"a {name} of {value} cannot be rendered; give a multiple of {multiple}")

    def _text(self, count: int, prompts: Sequence[str] | None, states: TextStates | None) -> Tensor:
        if (prompts is None) == (states is None):
            raise InputError("give either a prompt or its token states")
        tensor = self.encode(prompts).states if states is None and prompts is not None else states.states  # pyright: ignore
        if tensor.ndim != 3 or tensor.shape[2] != self._config.text_dim:
            raise InputError(f"text states are [N, T, {self._config.text_dim}], not {list(tensor.shape)}; encode again")
        if tensor.shape[0] not in (1, count):
            raise InputError(f"{count} images need one prompt, or {count}, not {tensor.shape[0]}")
        return tensor.expand(count, -1, -1)

    def _negative(self, text: Tensor, negative: str | TextStates) -> Tensor:
        if negative == "":
            return torch.zeros_like(text)
        if isinstance(negative, TextStates):
            return self._text(len(text), None, negative)
        return self._text(len(text), [negative], None)

    def _set_lora(self, lora: Mix | None, strength: float) -> None:
        loras = () if lora is None else ((lora, 1.0),) if isinstance(lora, Lora) else tuple(lora)
        if not loras:
            self.slot.clear()
        elif len(loras) == len(self.slot.loaded) and all(
            new is old and weight == old_weight
            for (new, weight), (old, old_weight) in zip(loras, self.slot.loaded, strict=True)
        ):
            self.slot.set_strength(strength)
        else:
            self.slot.load_mixed(loras, strength)

    def _run(
        self,
        pictures: list[Image.Image],
        text: Tensor,
        negative: Tensor | None,
        seeds: list[int],
        settings: RenderConfig,
        callback: Callable[[int, int], None] | None,
    ) -> Tensor:
        """[N, F, 3, H, W] in 0..1."""

        def on_step(_pipe: Any, index: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
            if callback:
                callback(index + 1, settings.steps)
            return {}

        def call(pipe: Any, image: Any, part: slice, generator: Any) -> Tensor:
            pipe.scheduler = scheduler
            return pipe(
                image=image, prompt_embeds=text[part].to(pipe._execution_device),
                negative_prompt_embeds=None if negative is None else negative[part].to(pipe._execution_device),
                height=settings.height, width=settings.width, num_frames=settings.frames,
                num_inference_steps=settings.steps, guidance_scale=settings.guidance, generator=generator,
                output_type="pt", callback_on_step_end=on_step,
            ).frames  # fmt: skip

        scheduler = self._scheduler
        if settings.schedule == "euler":
            scheduler = FlowMatchEulerDiscreteScheduler(shift=settings.shift)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if len(pictures) == 1 or self._config.image_dim is not None:  # CLIP states are repeated as conditions are
            each = [call(self.pipe, p, slice(i, i + 1), generators[i]) for i, p in enumerate(pictures)]
            return torch.cat(each)
        if self._batch is None:
            options = {name: self.pipe.config[name] for name in ("boundary_ratio", "expand_timesteps")}
            self._batch = BatchPipeline(**self.pipe.components, **options)
            self._batch.set_progress_bar_config(disable=True)
        image = self.pipe.video_processor.pil_to_numpy(pictures)
        return call(self._batch, self.pipe.video_processor.numpy_to_pt(image), slice(None), generators)

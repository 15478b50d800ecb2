"""A random pipeline folder of every family that p2e knows: real classes, tiny sizes, their own text encoders.

All take clips of 5 or 9 frames of 32 x 32. Autoencoders whose pipelines draw latents have a posterior without width
here, so that what they draw is its mean.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from tiny import Z_CHANNELS, tiny_base, tiny_transformer, tiny_vae
from tokenizers import Tokenizer, models, pre_tokenizers

from p2e.bases.wan import wan_base

D: Any = diffusers  # their annotations know one size of every tuple alone
T: Any = transformers

__all__ = ["CAPTION", "TINY_FAMILIES", "save_family", "tiny_family"]

CAPTION = "a red light comes on"
WIDTH = 32  # of text states, where a family brings its own encoder
SPECIAL = ["<pad>", "</s>", "<unk>", "<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def tokenizer(length: int) -> Any:
    """Words of the caption and of HunyuanVideo's template, one token each."""
    split = pre_tokenizers.Whitespace()
    text = f"{DEFAULT_PROMPT_TEMPLATE['template']} {CAPTION}"
    for special in SPECIAL:
        text = text.replace(special, " ")
    words = sorted({word for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    return T.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length,
        additional_special_tokens=SPECIAL[3:], padding_side="right",
    )  # fmt: skip


def t5(cls: Any, config: Any) -> Any:
    sizes = {"num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16}
    # Values that bfloat16 holds, as p2e.text reads weights in that.
    return cls(config(vocab_size=256, d_model=WIDTH, **sizes)).bfloat16().float().eval()


def flow_scheduler(**options: Any) -> Any:
    return D.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, **options)


def wan(
    *, channels: int, experts: int = 1, clip: bool = False, tokens: bool = False, own_text: bool = False,
    patch: int = 1,
) -> Callable[[], Any]:  # fmt: skip
    def build() -> Any:
        base = wan_base(
            "custom", num_layers=2, heads=2, head_dim=16, ffn=64, in_channels=channels, out_channels=Z_CHANNELS,
            text_dim=WIDTH if own_text else tiny_base().text_dim, patch_size=(1, patch, patch), freq_dim=16,
            image_dim=WIDTH if clip else None,
        )  # fmt: skip
        parts: dict[str, Any] = {"vae": tiny_vae(), "scheduler": flow_scheduler(), "tokenizer": None}
        parts |= {"text_encoder": None, "transformer": tiny_transformer(base)}
        if own_text:
            parts |= {"text_encoder": t5(T.UMT5EncoderModel, T.UMT5Config), "tokenizer": tokenizer(512)}
        if experts == 2:
            parts |= {"transformer_2": tiny_transformer(base, seed=1), "boundary_ratio": 0.9}
        if clip:
            size = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            parts["image_encoder"] = T.CLIPVisionModel(T.CLIPVisionConfig(**size, image_size=28, patch_size=14)).eval()
            parts["image_processor"] = T.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28)
        if channels == Z_CHANNELS and not tokens:
            return D.WanPipeline(**parts)
        return D.WanImageToVideoPipeline(**parts, expand_timesteps=tokens)

    return build


def narrow(convolution: Any, mean_channels: int) -> None:
    """Gives an encoder's last layer a posterior without width."""
    with torch.no_grad():
        convolution.weight[mean_channels:] = 0
        convolution.bias[mean_channels:] = -30


def ltx() -> Any:
    vae: Any = D.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), patch_size=1, patch_size_t=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
    )  # fmt: skip
    narrow(vae.encoder.conv_out.conv, 8)
    vae.latents_mean.copy_(torch.linspace(-0.1, 0.1, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    transformer = D.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=2, caption_channels=WIDTH,
    )  # fmt: skip
    scheduler = D.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return D.LTXImageToVideoPipeline(scheduler, vae, t5(T.T5EncoderModel, T.T5Config), tokenizer(128), transformer)


def hunyuan(form: str) -> Callable[[], Any]:
    def build() -> Any:
        vae: Any = D.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
            mid_block_add_attention=True,
        )  # fmt: skip
        transformer = D.HunyuanVideoTransformer3DModel(
            in_channels=4 if form == "token_replace" else 9, out_channels=4, num_attention_heads=2,
            attention_head_dim=16, num_layers=1, num_single_layers=1, num_refiner_layers=1, text_embed_dim=WIDTH,
            pooled_projection_dim=16, rope_axes_dim=(4, 6, 6), image_condition_type=form,
            guidance_embeds=form == "token_replace",
        )  # fmt: skip
        words = tokenizer(400)
        size: dict[str, Any] = {"intermediate_size": 32, "num_attention_heads": 2}
        vision = T.CLIPVisionConfig(hidden_size=16, num_hidden_layers=2, image_size=336, patch_size=14, **size)
        text = T.LlamaConfig(
            hidden_size=WIDTH, num_hidden_layers=3, num_key_value_heads=2, vocab_size=len(words), pad_token_id=0, **size
        )
        image_token = words.convert_tokens_to_ids("<image>")
        llava = T.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, pad_token_id=0)
        llava.image_token_index = llava.image_token_id = image_token
        clip = T.CLIPTextConfig(
            hidden_size=16, num_hidden_layers=1, vocab_size=len(words), eos_token_id=1, pad_token_id=0, **size
        )
        parts: dict[str, Any] = {
            "text_encoder": T.LlavaForConditionalGeneration(llava).eval(), "tokenizer": words,
            "transformer": transformer, "vae": vae, "scheduler": D.FlowMatchEulerDiscreteScheduler(shift=7.0),
            "text_encoder_2": T.CLIPTextModel(clip).eval(), "tokenizer_2": tokenizer(77),
            "image_processor": T.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336),
        }  # fmt: skip
        return D.HunyuanVideoImageToVideoPipeline(**parts)

    return build


def cogvideox(patch_t: int | None) -> Callable[[], Any]:
    def build() -> Any:
        vae: Any = D.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
            temporal_compression_ratio=4, scaling_factor=0.7, invert_scale_latents=patch_t is not None,
        )  # fmt: skip
        narrow(vae.encoder.conv_out.conv, 4)
        transformer = D.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=8,
            text_embed_dim=WIDTH, num_layers=2, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
            patch_size_t=patch_t, temporal_compression_ratio=4, max_text_seq_length=16,
            use_rotary_positional_embeddings=True, use_learned_positional_embeddings=patch_t is None,
            patch_bias=patch_t is None, ofs_embed_dim=None if patch_t is None else 8,
        )  # fmt: skip
        scheduler = D.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0,
            timestep_spacing="trailing",
        )  # fmt: skip
        text = t5(T.T5EncoderModel, T.T5Config)
        return D.CogVideoXImageToVideoPipeline(tokenizer(226), text, vae, transformer, scheduler)

    return build


TINY_FAMILIES: dict[str, Callable[[], Any]] = {
    "world": wan(channels=2 * Z_CHANNELS + 4),
    # Beside image states the class takes the text to be 512 tokens, which is what UMT5 gives.
    "wan2.1-i2v": wan(channels=2 * Z_CHANNELS + 4, clip=True, own_text=True, patch=2),
    "wan2.1-t2v": wan(channels=Z_CHANNELS, own_text=True, patch=2),
    "wan2.2-i2v": wan(channels=2 * Z_CHANNELS + 4, experts=2),
    "wan2.2-ti2v": wan(channels=Z_CHANNELS, tokens=True, patch=2),
    "ltx": ltx,
    "hunyuan": hunyuan("token_replace"),
    "hunyuan-concat": hunyuan("latent_concat"),
    "cogvideox": cogvideox(None),
    "cogvideox1.5": cogvideox(2),
}


def tiny_family(name: str) -> Any:
    """The whole pipeline, random, in evaluation mode."""
    torch.manual_seed(0)
    pipe = TINY_FAMILIES[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_family(name: str, folder: Path) -> Path:
    tiny_family(name).save_pretrained(folder)
    return folder

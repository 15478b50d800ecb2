"""A Qwen3-VL small enough for two CPU cores, with a tokenizer of its own: the architecture, the files and the chat of
the large ones, so that a server takes it through the same code. Weights are random until `eval.judge.train` trains
them.
"""

from pathlib import Path
from typing import Any

from eval.judge.rubric import SYSTEM
from eval.judge.world_words import phrase
from p2e.config import Settings
from p2e.errors import OutputError
from p2e.world.effects import EFFECTS

__all__ = ["ANSWER_START", "CHAT_TEMPLATE", "TinyConfig", "build_model", "build_processor", "write_tiny"]

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
SIDE = 96  # pixels of a frame as the model sees it, in 3 x 3 tokens for two frames
ANSWER = '{"reason":"Seen: . Asked: .","effect":60,"context":20,"temporal":20,"hard_fail":false},"hard_fail":true}'
ANSWER_START = "<|im_end|>\n<|im_start|>assistant\n"  # what the template puts between a question and its answer

CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type in ('image', 'image_url') -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type in ('video', 'video_url') -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


class TinyConfig(Settings):
    """Sizes; the defaults make about a million parameters, 2 MB in bfloat16.

    Attributes:
        width: of both transformers, a multiple of 64, which is the width of a head; layers: of the language model.
        vision_layers: of the vision encoder, whose first layer's output is also added to the language model's.
        vocabulary: tokens at most, those of single bytes among them.
        positions: tokens of a prompt with its answer, at most.
    """

    width: int = 128
    layers: int = 2
    vision_layers: int = 2
    vocabulary: int = 2048
    positions: int = 4096


def build_processor(config: TinyConfig) -> Any:
    """Tokenizer, image and video processors, in one. The tokenizer is trained on the rubric and on the words of the
    world's effects, and is the same on every machine: bytes, and pairs that come often there; digits stand alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(_corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=config.positions,
        additional_special_tokens=list(SPECIAL[1:]), clean_up_tokenization_spaces=False,
    )  # fmt: skip
    pixels = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    frames = {"shortest_edge": 16 * SIDE * SIDE, "longest_edge": 16 * SIDE * SIDE}
    shared = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=pixels, **shared, **halves), tokenizer,  # pyright: ignore[reportArgumentType]
        Qwen3VLVideoProcessor(size=frames, cap_pixels_per_frame=False, **shared, **halves),  # pyright: ignore
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def _corpus() -> list[str]:
    """The rubric, an answer, and what training shows of the world's words."""
    told = [spec for spec in EFFECTS if spec.split == "train"]
    return [SYSTEM, ANSWER, *(phrase(s.parameters) for s in told), *(p for s in told for p in s.train_prompts)]


def build_model(config: TinyConfig, tokenizer: Any, seed: int = 0) -> Any:
    """The model in float32, its weights drawn from `seed`."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": config.width, "intermediate_size": 3 * config.width,
        "num_hidden_layers": config.layers, "num_attention_heads": config.width // 64,
        "num_key_value_heads": config.width // 64, "head_dim": 64, "max_position_embeddings": config.positions,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10], "mrope_interleaved": True,
        },
        "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision = {
        "depth": config.vision_layers, "hidden_size": config.width, "intermediate_size": 3 * config.width,
        "num_heads": config.width // 64, "out_hidden_size": config.width, "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0], "patch_size": 16,
    }  # fmt: skip
    whole = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(whole)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def write_tiny(folder: str | Path, config: TinyConfig | None = None, seed: int = 0) -> Path:
    """Model, tokenizer and processors as `vllm serve` takes them; weights in bfloat16.

    Raises:
        OutputError: the folder cannot be written.
    """
    import torch

    config, folder = config or TinyConfig(), Path(folder)
    processor = build_processor(config)
    model = build_model(config, processor.tokenizer, seed)
    try:
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}); choose another place") from None
    return folder

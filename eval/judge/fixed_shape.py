"""The tiny judge's forward pass for training: every question has one shape, so that a GPU waits for nothing.

transformers' own pass asks the GPU for sizes, attends within each picture by itself, and reads the rubric once for
every clip of a batch. Here shapes are known beforehand, all pictures are attended within at once, and the rubric, which
comes first and is the same for all, is read once. Weights are the model's; a test holds both passes to each other.

Shapes: B clips; N = 9 pictures each (the starting one, and 8 pairs of frames); Q patches a picture, Q/4 tokens; D
width; K tokens before the pictures, M from the first picture to the mark behind the last, R after it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FixedShape", "patches"]

PATCH, MERGE = 16, 2


def patches(image: Tensor, frames: Tensor) -> Tensor:
    """What the processor makes of pictures: [B, N, Q, 3 * 2 * 16 * 16] of images [B, 3, H, W] and frames
    [B, 16, 3, H, W], uint8; patches of one token stand together."""
    video = torch.cat([image[:, None].expand(-1, 2, -1, -1, -1), frames], 1).float() / 127.5 - 1
    b, _, c, h, w = video.shape
    rows, columns = h // PATCH // MERGE, w // PATCH // MERGE
    x = video.view(b, -1, 2, c, rows, MERGE, PATCH, columns, MERGE, PATCH)
    return x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(b, video.shape[1] // 2, -1, c * 2 * PATCH * PATCH)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on [..., T, d]."""
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


class FixedShape(nn.Module):
    """Args:
    model: a Qwen3VLForConditionalGeneration.
    inputs: of any one question with its pictures, as the processor gives them.
    length: R.
    """

    before: Tensor
    middle: Tensor
    places: Tensor
    order: Tensor
    arranged: Tensor
    text_cos: Tensor
    text_sin: Tensor
    vision_cos: Tensor
    vision_sin: Tensor

    def __init__(self, model: Any, inputs: dict[str, Tensor], length: int) -> None:
        super().__init__()
        self.model = model
        inner, visual = model.model, model.model.visual
        ids, kinds = inputs["input_ids"][0], inputs["mm_token_type_ids"][0]
        seen = kinds.nonzero()[:, 0]
        ends = (ids == model.config.vision_end_token_id).nonzero()[:, 0]
        first, last = int(seen[0]), int(ends[-1]) + 1
        with torch.no_grad():
            positions, _ = inner.get_rope_index(
                inputs["input_ids"][:1], inputs["mm_token_type_ids"][:1], inputs["image_grid_thw"][:1],
                inputs["video_grid_thw"][:1],
            )  # fmt: skip
            later = torch.arange(length).expand(3, 1, -1) + int(positions[:, 0, :last].max()) + 1
            where = torch.cat([positions[:, :1, :last], later], 2)
            text = inner.language_model.rotary_emb(torch.zeros(1), where)
            _, height, width = inputs["image_grid_thw"][0].tolist()
            if height * width != visual.config.num_position_embeddings or height != width:
                raise ValueError(f"pictures of {height} x {width} patches for a grid of {visual.num_grid_per_side}")
            cells = torch.arange(height * width)
            order = cells.view(height // MERGE, MERGE, width // MERGE, MERGE).permute(0, 2, 1, 3).flatten()
            vision = visual.rotary_pos_emb(torch.zeros(1), torch.stack([order // width, order % width], 1))
        arranged = torch.arange(last - first)
        arranged[seen - first] = torch.arange(len(seen)) + last - first  # pictures' tokens stand behind the words
        constants = {
            "arranged": arranged, "before": ids[:first], "middle": ids[first:last], "places": seen - first,
            "order": order, "text_cos": text[0], "text_sin": text[1], "vision_cos": vision[0], "vision_sin": vision[1],
        }  # fmt: skip
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def vision(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Patches [B, N, Q, P] -> tokens [B, N Q/4, D], and those of the shallow layers."""
        visual = self.model.model.visual
        b, n, q, _ = pixels.shape
        weight = visual.patch_embed.proj
        x = F.linear(pixels.view(b * n, q, -1), weight.weight.flatten(1), weight.bias)
        x = x + visual.pos_embed(self.order)
        heads, deep = visual.blocks[0].attn.num_heads, []
        for i, block in enumerate(visual.blocks):
            query, key, value = block.attn.qkv(block.norm1(x)).view(b * n, q, 3, heads, -1).permute(2, 0, 3, 1, 4)
            query, key = (_turned(t, self.vision_cos, self.vision_sin).to(value.dtype) for t in (query, key))
            y = F.scaled_dot_product_attention(query, key, value)
            x = x + block.attn.proj(y.transpose(1, 2).reshape(b * n, q, -1))
            x = x + block.mlp(block.norm2(x))
            if i in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(i)]
                deep.append(merger(x.flatten(0, 1)).view(b, -1, merger.linear_fc2.out_features))
        return visual.merger(x.flatten(0, 1)).view(b, -1, visual.merger.linear_fc2.out_features), deep

    def hidden(self, pixels: Tensor, tail: Tensor) -> Tensor:
        """[B, 1 + R, D] after the last layer: of the mark behind the pictures, and of a tail [B, R] of tokens."""
        text = self.model.model.language_model
        b, length = tail.shape
        tokens, deep = self.vision(pixels)
        k, m = len(self.before), len(self.middle)
        prefix = text.embed_tokens(self.before)[None]
        words = text.embed_tokens(self.middle).expand(b, -1, -1)
        middle = torch.cat([words, tokens.to(words.dtype)], 1)[:, self.arranged]
        rest = torch.cat([middle, text.embed_tokens(tail)], 1)
        cos, sin = self.text_cos, self.text_sin
        mask = torch.ones(m + length, k + m + length, dtype=torch.bool, device=tail.device).tril(k)
        for i, layer in enumerate(text.layers):
            prefix, keys, values = self._attend(layer, prefix, cos[:, :k], sin[:, :k], None, None, None)
            rest, _, _ = self._attend(layer, rest, cos[:, k:], sin[:, k:], keys, values, mask)
            prefix, rest = (x + layer.mlp(layer.post_attention_layernorm(x)) for x in (prefix, rest))
            if i < len(deep):
                rest = rest.index_add(1, self.places, deep[i].to(rest.dtype))
        return text.norm(rest[:, m - 1 :])

    @staticmethod
    def _attend(
        layer: Any, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor | None, values: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x plus its attention, and its keys and values; to those of the prefix [1, h, K, d], too, if there are any."""
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        shape = (*x.shape[:2], -1, attention.head_dim)
        query = attention.q_norm(attention.q_proj(normed).view(shape)).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(normed).view(shape)).transpose(1, 2)
        value = attention.v_proj(normed).view(shape).transpose(1, 2)
        query, key = (_turned(t, cos, sin).to(value.dtype) for t in (query, key))
        if keys is not None and values is not None:
            key = torch.cat([keys.expand(len(x), -1, -1, -1), key], 2)
            value = torch.cat([values.expand(len(x), -1, -1, -1), value], 2)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return x + attention.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], -1)), key, value

    def forward(self, pixels: Tensor, tail: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens of `labels` [B, R], which is -100 wherever nothing is to be learnt."""
        logits = self.model.lm_head(self.hidden(pixels, tail)[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)

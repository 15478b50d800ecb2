"""Matrix products in float8, for the backbone at inference: about twice the rate of bfloat16 on a GPU that has them.

Both factors are rounded to e4m3 with a scale a row (of the activations: a token; of the weight: an output channel), so
that no row's size costs another one precision. Weights are rounded once, activations in every product.

Shapes: N tokens, d_in, d_out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Float8Linear", "to_float8", "use_float8"]

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
TINY = 1e-12


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., N, K] -> its rows in float8, and their scales [..., N, 1] in float32: x is nearly their product."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=TINY) / LARGEST
    return (x.float() / scale).to(FLOAT8), scale


class Float8Linear(nn.Module):
    """A bias-free linear layer in float8; on a CPU the same rounding, and the product in the input's type."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_float8(layer.weight.detach())
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale.mT.contiguous(), persistent=False)  # [1, d_out]

    weight: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = to_float8(x.flatten(0, -2))
        if x.is_cuda:
            y = torch._scaled_mm(rows, self.weight.mT, scale, self.scale, out_dtype=x.dtype, use_fast_accum=True)
        else:
            y = (F.linear(rows.float(), self.weight.float()) * scale * self.scale).to(x.dtype)
        return y.unflatten(0, x.shape[:-1])


def use_float8(block: nn.Module) -> None:
    """Puts float8 layers in the place of a backbone block's linear layers, but for those that read the prompt: it has
    few tokens."""
    for name, layer in list(block.named_modules()):
        if isinstance(layer, nn.Linear) and name not in ("text_attention.key", "text_attention.value"):
            block.set_submodule(name, Float8Linear(layer))

"""Matrix products in float8, at inference: on a GPU that has them, about twice the rate of bfloat16 in half the memory.

Both factors are rounded to e4m3 with a scale a row (of the activations: a token; of the weight: an output channel), so
that no row's size costs another one precision. Weights are rounded once, activations in every product.

Shapes: N tokens, d_in, d_out.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2e.errors import InputError

__all__ = ["Float8Linear", "check_float8", "to_float8", "use_float8"]

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
TINY = 1e-12
MULTIPLE = 16  # of both widths of a product


def check_float8(device: torch.device) -> None:
    """Refuses a GPU without float8 products; a CPU rounds alike and multiplies in float32.

    Raises:
        InputError: the GPU is older than Ada and Hopper.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise InputError(f"{name} has no matrix products in float8 (an H100, L40 or RTX 40 has); leave fp8 out")


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., N, K] -> its rows in float8, and their scales [..., N, 1] in float32: x is nearly their product."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=TINY) / LARGEST
    return (x.float() / scale).to(FLOAT8), scale


class Float8Linear(nn.Module):
    """A linear layer in float8; on a CPU the same rounding, and the product in float32.

    Args:
        layer: whose weight is rounded; its bias is shared.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
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
        return (y if self.bias is None else y + self.bias).unflatten(0, x.shape[:-1])


def use_float8(module: nn.Module, leave: Collection[str] = ()) -> None:
    """Puts float8 layers in the place of a module's linear layers.

    Args:
        leave: names of layers that stay as they are, as do those whose widths are no multiple of 16.
    """
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.Linear) or name in leave:
            continue
        if layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0:
            module.set_submodule(name, Float8Linear(layer))

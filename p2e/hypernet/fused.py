"""A network whose attentions run in the Triton kernels of `p2e.hypernet.kernels`: for inference on a GPU.

Shapes: B sequences, N queries, T keys, H heads of width k, d = H k; S sites, E effects, n latents a site, r rank.
"""

import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.layers import Attention, KeysValues, RMSNorm
from p2e.hypernet.model import Bound, Hypernet

__all__ = ["Decompressor", "FusedAttention", "can_fuse", "use_fused"]

LARGEST_SCORE = 60.0
LARGEST_RANK = 128  # of a factor whose rows a kernel holds in registers


def can_fuse(checkpoint: Checkpoint) -> bool:
    """Whether the kernels know this network, its numbers and its device."""
    config, device = checkpoint.config, checkpoint.device
    width = config.width // config.heads
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and checkpoint.dtype in (torch.bfloat16, torch.float16)
        and width in (16, 32, 64, 128)
        and config.rank <= LARGEST_RANK
        and importlib.util.find_spec("triton") is not None
    )


def is_bounded(queries: nn.Module, keys: nn.Module) -> bool:
    """Whether a softmax of normalised queries and keys needs no maximum taken out. A score is at most
    max|g_q| max|g_k| sqrt(k) in size; 2 to the LARGEST_SCORE is far from what float32 and bfloat16 cannot hold."""
    q, k = gain(queries), gain(keys)
    if q is None or k is None:
        return False
    return float(q.abs().max() * k.abs().max()) * math.sqrt(len(q)) / math.log(2) <= LARGEST_SCORE


def gain(norm: nn.Module) -> Tensor | None:
    return norm.weight if isinstance(norm, RMSNorm) else None


class FusedAttention(nn.Module):
    """`Attention`, with the same parameters, on a kernel: heads stay side by side, norms are taken where they are used.

    Queries, keys and values are as projected, [..., N, d] and [..., T, d].
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.query, self.key, self.value, self.out = attention.query, attention.key, attention.value, attention.out
        self.query_norm, self.key_norm = attention.query_norm, attention.key_norm
        self.bounded = is_bounded(self.query_norm, self.key_norm)

    def queries(self, x: Tensor) -> Tensor:
        return self.query(x)

    def keys_values(self, context: Tensor) -> KeysValues:
        return self.key(context), self.value(context)

    def gathered(self, queries: Tensor, context: KeysValues, mask: Tensor | None = None) -> Tensor:
        from p2e.hypernet.kernels import attend  # needs Triton, which not every machine has

        gains = gain(self.query_norm), gain(self.key_norm)
        return attend(queries.contiguous(), *context, self.heads, mask, *gains, self.bounded)

    def forward(self, x: Tensor, context: Tensor | KeysValues, mask: Tensor | None = None) -> Tensor:
        read = self.keys_values(context) if isinstance(context, Tensor) else context
        return self.out(self.gathered(self.queries(x), read, mask))


class Decompressor:
    """`Hypernet.decompressed` on a kernel; the folded values are made once."""

    @torch.no_grad()
    def __init__(self, model: Hypernet) -> None:
        self.model, self.values = model, model.folded_values()
        self.bounded = is_bounded(model.decompress.query_norm, model.decompress.key_norm)

    def __call__(self, bound: Bound, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [E, S, n, d] -> A^ [S, E, r, d_in], B^ [S, E, d_out, r]."""
        from p2e.hypernet.kernels import decompress

        attention, x = self.model.decompress, self.model.latent_norm(latents)
        keys = attention.key_norm(attention.key(x).unflatten(-1, (attention.heads, -1)))
        values = F.linear(x, self.values).unflatten(-1, (2, attention.heads, -1))
        return decompress(bound.queries, keys, values, bound.b, bound.a, gain(attention.query_norm), self.bounded)


def use_fused(model: nn.Module) -> None:
    """Puts kernels in the place of a network's attentions, but for the decompressor, whose whole is one."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Attention) and name != "decompress":
            model.set_submodule(name, FusedAttention(layer))

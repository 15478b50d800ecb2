"""The transformer parts that the hypernetwork and its variants share: attention, gated feed-forward, pre-norm block.

Shapes: E effects, S sites, n latent tokens a site, T text tokens, d width, H heads, k = d / H.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2e.config import HypernetConfig

__all__ = ["Attention", "Block", "FeedForward", "KeysValues", "RMSNorm", "linear"]

KeysValues = tuple[Tensor, Tensor]  # [..., H, N, k] each


def linear(d_in: int, d_out: int, gain: float = 1.0) -> nn.Linear:
    """A bias-free linear layer whose output has `gain` times the root mean square of its input at the start."""
    layer = nn.Linear(d_in, d_out, bias=False)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(d_in))
    return layer


class RMSNorm(nn.Module):
    """RMS norm over the last axis that keeps its input's type, so that bf16 activations stay bf16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # Autocast would widen it to float32, and all that follows; the kernel sums in float32 anyhow.
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, (x.shape[-1],)) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention, in steps, so that queries or keys which many calls share are computed once."""

    def __init__(self, config: HypernetConfig, gain: float = 1.0) -> None:
        super().__init__()
        d, self.heads = config.width, config.heads
        self.query = linear(d, d)
        self.key = linear(d, d)
        self.value = linear(d, d)
        self.query_norm = RMSNorm(d // self.heads) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(d // self.heads) if config.qk_norm else nn.Identity()
        self.out = linear(d, d, gain)

    def queries(self, x: Tensor) -> Tensor:
        """[..., N, d] -> [..., H, N, k]."""
        return self.query_norm(self.split(self.query(x)))

    def keys_values(self, context: Tensor) -> KeysValues:
        """[..., N, d] -> twice [..., H, N, k]."""
        return self.key_norm(self.split(self.key(context))), self.split(self.value(context))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def gathered(self, queries: Tensor, context: KeysValues, mask: Tensor | None = None) -> Tensor:
        """What each query gathers, before the output projection: [B, H, N, k], twice [B, H, T, k] -> [B, N, d]."""
        allowed = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(queries, *context, attn_mask=allowed)
        return y.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, context: Tensor | KeysValues, mask: Tensor | None = None) -> Tensor:
        """x [B, N, d], context [B, T, d] or what `keys_values` made of it, mask [B, T] True where it may be attended
        to -> [B, N, d]."""
        read = self.keys_values(context) if isinstance(context, Tensor) else context
        return self.out(self.gathered(self.queries(x), read, mask))


class FeedForward(nn.Module):
    """Gated feed-forward, W_down (silu(W_gate x) * W_up x); gate and up are one product."""

    def __init__(self, config: HypernetConfig, gain: float = 1.0) -> None:
        super().__init__()
        inner = int(config.ffn_ratio * config.width)
        self.up = linear(config.width, 2 * inner)
        self.down = linear(inner, config.width, gain)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One block of the backbone: self-attention over a site's latents, cross-attention to the text, feed-forward.

    With `across_sites`, a further attention runs over the sites of the call, at equal latent index.
    """

    def __init__(self, config: HypernetConfig) -> None:
        super().__init__()
        d, gain = config.width, 1 / math.sqrt(3 * config.layers)  # keeps the residual stream near 1 at any depth
        self.self_norm = RMSNorm(d)
        self.self_attention = Attention(config, gain)
        self.site_norm = RMSNorm(d) if config.across_sites else None
        self.site_attention = Attention(config, gain) if config.across_sites else None
        self.text_norm = RMSNorm(d)
        self.text_attention = Attention(config, gain)
        self.ffn_norm = RMSNorm(d)
        self.ffn = FeedForward(config, gain)

    def forward(self, x: Tensor, text: Tensor | KeysValues, mask: Tensor) -> Tensor:
        """x [E, S, n, d], text [E, T, d] or its keys and values, mask [E, T] -> [E, S, n, d]."""
        return self.read(self.mix(x), text, mask)

    def mix(self, x: Tensor) -> Tensor:
        """The part that no prompt enters: attention among latents. [E, S, n, d] -> [E, S, n, d]."""
        effects, sites, n, _ = x.shape
        y = self.self_norm(x).flatten(0, 1)
        x = x + self.self_attention(y, y).unflatten(0, (effects, sites))
        if self.site_attention is not None and self.site_norm is not None:
            y = self.site_norm(x).transpose(1, 2).flatten(0, 1)
            x = x + self.site_attention(y, y).unflatten(0, (effects, n)).transpose(1, 2)
        return x

    def read(self, x: Tensor, text: Tensor | KeysValues, mask: Tensor) -> Tensor:
        """The rest: attention to the text, and the feed-forward."""
        _, sites, n, _ = x.shape
        # Every latent asks the text on its own, so all sites of an effect go in as one long query: keys and values
        # of the text are made once an effect, not once a (site, effect).
        y = self.text_norm(x).flatten(1, 2)
        x = x + self.text_attention(y, text, mask).unflatten(1, (sites, n))
        return x + self.ffn(self.ffn_norm(x))

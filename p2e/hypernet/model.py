"""The hypernetwork of Prompt2Effect, equations 4 to 12: (W0 of a site, effect prompt) -> canonical factors (A^, B^).

Shapes
    S  sites of one shape          E  effects, one prompt each      d_out, d_in  shape of a site's W0
    d  hidden width                n  latent tokens a site          M = d_out + d_in  weight tokens a site
    r  rank                        T  text tokens                   H, k  heads and their width, H k = d

What depends on the site alone (`bind`: tokens, compression, queries of the decompressor) is kept apart from what
depends on the prompt (`backbone`, `decompress`): every effect of a training step shares the first, and at inference
it is computed once for a base.

Between the output projection of the decompressor and the heads stands nothing but sums, so the two fold into one
[d, r] matrix, in training as at inference. The residual of the decompressor (`HypernetConfig.residual`, X + CrossAttn)
keeps that: Head(X + O y) = Head X + (Head O) y, and Head X is prompt-independent, so it belongs to the binding.

Parameters at the paper's setting (d 2048, 14 layers, 32 heads, n 256, r 32, wan2.1-i2v-14b, text 4096), in millions:
    77.6 projections of W0, 0.6 latents and embeddings, 16.8 compressor, 8.4 text projection,
    1174.6 backbone (a layer: 16.8 self-attention, 16.8 cross-attention, 50.3 gated feed-forward),
    16.8 decompressor, 0.1 heads: 1.295 billion in all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2e.bases.base import Base
from p2e.config import HypernetConfig
from p2e.hypernet.layers import Attention, Block, KeysValues, RMSNorm, linear
from p2e.hypernet.text import TextInput

__all__ = ["Bound", "Hypernet", "Sites", "WeightTokens", "Weights", "position_codes"]

# W0 [S, d_out, d_in]; for the variants that replace it, what stands for its rows [S, d_out, *] and columns [S, d_in, *]
Weights = Tensor | tuple[Tensor, Tensor]

EMBEDDING_STD = 0.5  # of block and module embeddings, beside weight tokens of about 1
HEAD_GAIN = 0.1  # predictions start near zero: dW is tiny, and neither head is at a saddle of the update's error


class Sites(NamedTuple):
    """Sites of one shape: weights (as `prepare` gives them), block [S] and module [S] indices in the base."""

    weights: Weights
    block: Tensor
    module: Tensor


class Bound(NamedTuple):
    """What the hypernetwork knows of S sites of one shape before it sees a prompt.

    Attributes:
        latents: Z of eq. 8, [S, n, d].
        queries: of the decompressor, as projected, [S, M, d].
        b, a: prompt-independent part of the prediction, [S, d_out, r] and [S, d_in, r]; zeros without the residual.
    """

    latents: Tensor
    queries: Tensor
    b: Tensor
    a: Tensor


def position_codes(length: int, width: int, device: torch.device) -> Tensor:
    """1D sinusoidal codes [length, width], root mean square 1."""
    frequency = torch.exp(torch.arange(width // 2, device=device) * (-2 * math.log(10_000) / width))
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1) * math.sqrt(2)


class WeightTokens(nn.Module):
    """Equation 4: rows and columns of W0, each projected to d. One projection a width of the base."""

    def __init__(self, config: HypernetConfig, base: Base) -> None:
        super().__init__()
        self.p_b = nn.ModuleDict({str(w): linear(w, config.width) for w in sorted({s.d_in for s in base.sites})})
        self.p_a = nn.ModuleDict({str(w): linear(w, config.width) for w in sorted({s.d_out for s in base.sites})})

    def prepare(self, w0: Tensor, block: Tensor, module: Tensor) -> Weights:
        """What is done to W0 [S, d_out, d_in] once, before training or binding. Here nothing: the network reads W0."""
        return w0

    def forward(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """-> row tokens [S, d_out, d], column tokens [S, d_in, d]. Each matrix is divided by its RMS first."""
        if isinstance(weights, Tensor):
            rows = unit_rms(weights)
            columns = rows.mT
        else:
            rows, columns = map(unit_rms, weights)
        return self.p_b[str(rows.shape[-1])](rows), self.p_a[str(columns.shape[-1])](columns)


def unit_rms(x: Tensor) -> Tensor:
    """Each matrix of x [S, *, *] divided by the root mean square of its entries, computed in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # Row by row first: one float32 sum over 26 million squares loses a thousandth on a CPU.
    rows = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    scale = torch.linalg.vector_norm(rows, dim=-2, keepdim=True) / math.sqrt(x[0].numel())
    return (x / scale.clamp(min=1e-15)).to(x.dtype)


class Hypernet(nn.Module):
    """H_phi. Modules stand in the order of use.

    Args:
        config: sizes.
        base: the base whose sites it predicts; its widths, blocks and module types size the projections and embeddings.
        tokens: what makes tokens of a site's weights; None is equation 4. The ablations pass their own.
    """

    def __init__(self, config: HypernetConfig, base: Base, tokens: nn.Module | None = None) -> None:
        super().__init__()
        d, self.config = config.width, config
        self.tokens = WeightTokens(config, base) if tokens is None else tokens
        self.block_embedding = nn.Embedding(base.num_blocks, d)
        self.module_embedding = nn.Embedding(len(base.modules), d)
        self.token_norm = RMSNorm(d)
        self.latents = nn.Parameter(torch.randn(config.latents, d))
        self.compress = Attention(config)
        self.text_input = TextInput(config.text, base.text_dim)
        self.text = linear(base.text_dim, d)
        self.text_norm = RMSNorm(d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.latent_norm = RMSNorm(d)
        self.decompress = Attention(config)
        self.head_b = linear(d, config.rank, HEAD_GAIN)
        self.head_a = linear(d, config.rank, HEAD_GAIN)
        for embedding in (self.block_embedding, self.module_embedding):
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)

    def prepare(self, w0: Tensor, block: Tensor, module: Tensor) -> Weights:
        """Raw W0 [S, d_out, d_in] of sites -> what `forward` takes for them."""
        return self.tokens.prepare(w0, block, module)  # pyright: ignore[reportCallIssue]

    def weight_tokens(self, sites: Sites) -> tuple[Tensor, int]:
        """Equations 4 and 5, with the codes of appendix D -> X [S, M, d], rows first; d_out."""
        rows, columns = self.tokens(sites.weights)
        d_out, d_in, half = rows.shape[1], columns.shape[1], self.config.width // 2
        x = torch.cat([rows, columns], dim=1)
        # Rows carry their code in one half of the channels, columns in the other: row 3 is not column 3.
        row_codes = F.pad(position_codes(d_out, half, x.device), (0, half))
        column_codes = F.pad(position_codes(d_in, half, x.device), (half, 0))
        codes = torch.cat([row_codes, column_codes]) * (self.config.position_scale * math.sqrt(2))
        return self.token_norm(x + codes.to(x.dtype) + self.site_embedding(sites)), d_out

    def site_embedding(self, sites: Sites) -> Tensor:
        """e_block + e_module, [S, 1, d]."""
        return (self.block_embedding(sites.block) + self.module_embedding(sites.module))[:, None]

    def compressed(self, x: Tensor) -> Tensor:
        """Equation 6: X [S, M, d] -> Q [S, n, d]. The learned queries stay as a residual: they tell latents apart."""
        queries = self.compress.queries(self.latents)
        y = self.compress.gathered(queries.expand(len(x), *queries.shape), self.compress.keys_values(x))
        return self.latents + self.compress.out(y)

    def bind(self, sites: Sites) -> Bound:
        """Equations 4 to 8 and the queries of equation 10: everything that does not depend on the prompt."""
        x, d_out = self.weight_tokens(sites)
        latents = self.compressed(x) + self.site_embedding(sites)
        b, a = self.head_b(x[:, :d_out]), self.head_a(x[:, d_out:])
        if not self.config.residual:
            b, a = torch.zeros_like(b), torch.zeros_like(a)
        return Bound(latents, self.decompress.query(x), b, a)

    def text_keys_values(self, text: Tensor) -> list[KeysValues]:
        """Token states [E, T, d_text] -> keys and values of each block's attention to them, which no site changes."""
        states = self.text_norm(self.text(text))
        return [block.text_attention.keys_values(states) for block in self.blocks]  # pyright: ignore

    def backbone(self, latents: Tensor, text: Tensor | Sequence[KeysValues], text_mask: Tensor) -> Tensor:
        """Equation 9: Z [S, n, d], token states [E, T, d_text] (or what `text_keys_values` made of them), mask [E, T]
        -> E [E, S, n, d]; sites do not mix."""
        states = [self.text_norm(self.text(text))] * len(self.blocks) if isinstance(text, Tensor) else text
        x = latents.expand(len(text_mask), -1, -1, -1)
        for block, state in zip(self.blocks, states, strict=True):
            x = block(x, state, text_mask)
        return x

    def heads(self) -> tuple[Tensor, Tensor]:
        """The heads of B^ and A^ with the output projection of the decompressor folded in, [r, d] each."""
        out = self.decompress.out.weight
        return self.head_b.weight @ out, self.head_a.weight @ out

    def folded_values(self) -> Tensor:
        """The decompressor's value projection with `heads` folded in, [2 H r, d]: B^'s for every head of attention,
        then A^'s. What a query gathers of such values is its row of a factor, once the heads are summed up."""
        value = self.decompress.value.weight.unflatten(0, (self.config.heads, -1))  # [H, k, d]
        parts = [head.unflatten(1, (self.config.heads, -1)) for head in self.heads()]  # [r, H, k]
        return torch.stack([torch.einsum("rhk,hkd->hrd", part, value) for part in parts]).flatten(0, 2)

    def decompressed(
        self, bound: Bound, latents: Tensor, heads: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Equations 10 to 12: latents [E, S, n, d] -> A^ [S, E, r, d_in], B^ [S, E, d_out, r].

        Args:
            heads: what `heads` gives, where it is kept.
        """
        sites, tokens, _ = bound.queries.shape
        effects, d_out = len(latents), bound.b.shape[1]
        keys, values = self.decompress.keys_values(self.latent_norm(latents))
        # (site, head) is the head axis of one product, so that the queries are shared by all effects without a copy.
        queries = self.decompress.query_norm(self.decompress.split(bound.queries))
        queries = queries.flatten(0, 1).expand(effects, -1, -1, -1)
        y = F.scaled_dot_product_attention(queries, keys.flatten(1, 2), values.flatten(1, 2))
        y = y.transpose(1, 2).reshape(effects, tokens, sites, -1)
        head_b, head_a = heads or self.heads()
        b, a = F.linear(y[:, :d_out], head_b), F.linear(y[:, d_out:], head_a)
        return (a.permute(2, 0, 3, 1) + bound.a.mT[:, None]), (b.permute(2, 0, 1, 3) + bound.b[:, None])

    def predict_sites(self, groups: Sequence[Sites], text: Tensor, text_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`forward` for sites of several shapes: the backbone, which knows no shapes, runs once for all of them."""
        bounds = [self.bind(sites) for sites in groups]
        latents = self.backbone(torch.cat([bound.latents for bound in bounds]), text, text_mask)
        parts = latents.split([len(bound.latents) for bound in bounds], dim=1)
        return [self.decompressed(bound, part) for bound, part in zip(bounds, parts, strict=True)]

    def forward(
        self, w0: Weights, block: Tensor, module: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicts the factors of S sites of one shape for E effects, in the units of the training targets.

        Args:
            w0: [S, d_out, d_in] (for an ablation that replaces it, what `prepare` made of it).
            block, module: indices of each site in the base, [S].
            text: token states [E, T, d_text], as `text_input` gives them; padding is never attended to.
            text_mask: [E, T], True on real tokens.

        Returns:
            A^ [S, E, r, d_in] and B^ [S, E, d_out, r].
        """
        return self.predict_sites([Sites(w0, block, module)], text, text_mask)[0]

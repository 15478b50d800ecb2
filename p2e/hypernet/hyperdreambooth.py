"""A baseline in the style of HyperDreamBooth, adapted from faces and images to prompts and video LoRAs.

Kept from that method: the predictor sees only the condition (here the prompt's token states) and learned queries,
never W0; a transformer decoder turns them into weights; the prediction starts at zero and is refined a few times, each
pass reading the weights so far and adding a correction. It is meant to be trained on raw factors (a library prepared
with raw targets).

Changed: its queries are one a layer, here 2 r a site (each row of A and each column of B has its own, through a
linear map shared by all sites of a width, as one query could not hold a site of a video model); its frozen random
bases are left out, because targets that they do not span cannot be regressed; the backbone is that of the hypernetwork,
so sizes compare.

Shapes: S sites of one shape, E effects, r rank, d width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from p2e.bases.base import Base
from p2e.config import HypernetConfig
from p2e.hypernet.layers import Block, RMSNorm, linear
from p2e.hypernet.model import HEAD_GAIN, Sites, Weights
from p2e.hypernet.text import TextInput

__all__ = ["HyperDreamBooth"]


class HyperDreamBooth(nn.Module):
    """Prompt -> factors without W0, by iterative refinement.

    Args:
        config: `latents`, `weights` and `residual` do not apply.
        base: the base whose sites it predicts.
    """

    def __init__(self, config: HypernetConfig, base: Base) -> None:
        super().__init__()
        d, self.config = config.width, config
        widths = sorted({s.d_in for s in base.sites} | {s.d_out for s in base.sites})
        self.queries = nn.Parameter(torch.randn(2 * config.rank, d))
        self.block_embedding = nn.Embedding(base.num_blocks, d)
        self.module_embedding = nn.Embedding(len(base.modules), d)
        self.read = nn.ModuleDict({str(w): linear(w, d) for w in widths})
        self.text_input = TextInput(config.text, base.text_dim)
        self.text = linear(base.text_dim, d)
        self.text_norm = RMSNorm(d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.out_norm = RMSNorm(d)
        self.write = nn.ModuleDict({str(w): linear(d, w, HEAD_GAIN) for w in widths})

    def prepare(self, w0: Tensor, block: Tensor, module: Tensor) -> Weights:
        """Nothing is kept of the weights but their shape."""
        return w0.new_empty(*w0.shape[:2], 0), w0.new_empty(w0.shape[0], w0.shape[2], 0)

    def predict_sites(self, groups: Sequence[Sites], text: Tensor, text_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """As `Hypernet.predict_sites`. Tokens know no shape, so a pass through the backbone is one for all groups."""
        states = self.text_norm(self.text(text))
        effects, r = len(states), self.config.rank
        counts = [len(group.block) for group in groups]
        embedding = torch.cat([self.block_embedding(g.block) + self.module_embedding(g.module) for g in groups])
        queries = (self.queries + embedding[:, None]).expand(effects, -1, -1, -1)  # [E, S, 2 r, d]
        shapes = [(g.weights[0].shape[1], g.weights[1].shape[1]) for g in groups]  # d_out, d_in
        # B is kept transposed, as a column of B is a token.
        factors = [
            (states.new_zeros(effects, n, r, d_in), states.new_zeros(effects, n, r, d_out))
            for n, (d_out, d_in) in zip(counts, shapes, strict=True)
        ]
        for _ in range(self.config.iterations):
            read = [torch.cat([self.read[str(x.shape[-1])](x) for x in pair], dim=2) for pair in factors]
            x = queries + torch.cat(read, dim=1)
            for block in self.blocks:
                x = block(x, states, text_mask)
            parts = self.out_norm(x).split(counts, dim=1)
            factors = [
                (a + self.write[str(d_in)](part[:, :, :r]), b + self.write[str(d_out)](part[:, :, r:]))
                for (a, b), part, (d_out, d_in) in zip(factors, parts, shapes, strict=True)
            ]
        return [(a.transpose(0, 1), b.permute(1, 0, 3, 2)) for a, b in factors]

    def forward(
        self, w0: Weights, block: Tensor, module: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `Hypernet.forward`; of `w0` only the shape is read."""
        return self.predict_sites([Sites(w0, block, module)], text, text_mask)[0]

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
        """As `Hypernet.predict_sites`."""
        states = self.text_norm(self.text(text))
        return [self.refined(sites, states, text_mask) for sites in groups]

    def refined(self, sites: Sites, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = sites.weights
        d_out, d_in, r = rows.shape[1], columns.shape[1], self.config.rank
        embedding = (self.block_embedding(sites.block) + self.module_embedding(sites.module))[:, None]
        queries = (self.queries + embedding).expand(len(states), -1, -1, -1)  # [E, S, 2 r, d]
        a = states.new_zeros(len(states), len(rows), r, d_in)
        b = states.new_zeros(len(states), len(rows), r, d_out)  # B transposed: a column of B is a token
        for _ in range(self.config.iterations):
            x = queries + torch.cat([self.read[str(d_in)](a), self.read[str(d_out)](b)], dim=2)
            for block in self.blocks:
                x = block(x, states, mask)
            x = self.out_norm(x)
            a = a + self.write[str(d_in)](x[:, :, :r])
            b = b + self.write[str(d_out)](x[:, :, r:])
        return a.transpose(0, 1), b.permute(1, 0, 3, 2)

    def forward(
        self, w0: Weights, block: Tensor, module: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `Hypernet.forward`; of `w0` only the shape is read."""
        return self.predict_sites([Sites(w0, block, module)], text, text_mask)[0]

"""The paper's ablations and its baseline, by configuration: `build_hypernet` reads a `HypernetConfig` and assembles.

Each is a network that `prepare`s raw weights once, takes text as its `text_input` gives it, and predicts
`predict_sites(groups, text, mask)`, so training and prediction know nothing of them:
    weights "none"            learned static queries in place of the weight tokens, compression bypassed (table 8)
    weights "truncated_svd"   U_r and V_r of W0 in place of its rows and columns (table 8)
    weights "noise"           a fixed random matrix a site in place of W0 ("Noise", table 3)
    ensemble                  one network a block of the base ("Ensemble", table 3)
    hyperdreambooth           the baseline of tables 1 and 2, see `p2e.hypernet.hyperdreambooth`
Raw factors in place of canonical ones are a property of the prepared library; the number of latents and attention
across sites are plain settings of the model.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from p2e.bases.base import Base
from p2e.config import HypernetConfig, TextConfig
from p2e.hypernet.hyperdreambooth import HyperDreamBooth
from p2e.hypernet.layers import linear
from p2e.hypernet.model import Hypernet, Sites, Weights, WeightTokens, unit_rms
from p2e.hypernet.text import TextInput

__all__ = ["Ensemble", "FactorTokens", "NoiseTokens", "Predictor", "StaticTokens", "build_hypernet"]


class Predictor(Protocol):
    """What training and prediction need of a network. All are `nn.Module`s as well."""

    text_input: TextInput

    def prepare(self, w0: Tensor, block: Tensor, module: Tensor) -> Weights: ...

    def predict_sites(
        self, groups: Sequence[Sites], text: Tensor, text_mask: Tensor
    ) -> list[tuple[Tensor, Tensor]]: ...


def build_hypernet(config: HypernetConfig, base: Base) -> "Hypernet | Ensemble | HyperDreamBooth":
    """The network that `config` asks for, with fresh parameters from torch's default generator."""
    if config.architecture == "hyperdreambooth":
        return HyperDreamBooth(config, base)
    if config.ensemble:
        return Ensemble(config, base)
    if config.weights == "none":
        return StaticHypernet(config, base)
    tokens = {"full": WeightTokens, "truncated_svd": FactorTokens, "noise": NoiseTokens}[config.weights]
    return Hypernet(config, base, tokens(config, base))


class NoiseTokens(WeightTokens):
    """Equation 4 on a standard normal matrix of W0's shape. It is drawn once a site, so it can serve as the site's
    name and as that of each row and column, but it says nothing of W0."""

    def prepare(self, w0: Tensor, block: Tensor, module: Tensor) -> Weights:
        sites = zip(block.tolist(), module.tolist(), strict=True)
        noise = [torch.randn(w0.shape[1:], generator=torch.Generator().manual_seed(b * 1009 + m)) for b, m in sites]
        return torch.stack(noise).to(w0)


class FactorTokens(nn.Module):
    """Row i is U_r[i], column j is V_r[j], of the r leading singular directions of W0; the sign of each direction
    makes the largest entry of U_r positive. The singular values are left out, as in the paper."""

    def __init__(self, config: HypernetConfig, base: Base) -> None:
        super().__init__()
        smallest = min(min(site.d_out, site.d_in) for site in base.sites)
        self.rank = min(config.svd_rank or max(1, smallest // 2), smallest)
        self.p_b = linear(self.rank, config.width)
        self.p_a = linear(self.rank, config.width)

    def prepare(self, w0: Tensor, block: Tensor, module: Tensor) -> Weights:
        u, _, vh = torch.linalg.svd(w0.to(torch.promote_types(w0.dtype, torch.float32)), full_matrices=False)
        u, v = u[..., : self.rank], vh.mT[..., : self.rank]
        sign = u.gather(1, u.abs().argmax(1, keepdim=True)).sign()
        return (u * sign).contiguous().to(w0.dtype), (v * sign).contiguous().to(w0.dtype)

    def forward(self, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.p_b(unit_rms(weights[0])), self.p_a(unit_rms(weights[1]))


class StaticTokens(nn.Module):
    """One learned vector a row index and a column index, shared by all sites: only block and module embeddings tell
    sites apart."""

    def __init__(self, config: HypernetConfig, base: Base) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(max(site.d_out for site in base.sites), config.width))
        self.columns = nn.Parameter(torch.randn(max(site.d_in for site in base.sites), config.width))

    def prepare(self, w0: Tensor, block: Tensor, module: Tensor) -> Weights:
        """Nothing is kept of the weights but their shape."""
        return w0.new_empty(*w0.shape[:2], 0), w0.new_empty(w0.shape[0], w0.shape[2], 0)

    def forward(self, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (sites, d_out, _), d_in = weights[0].shape, weights[1].shape[1]
        return self.rows[:d_out].expand(sites, -1, -1), self.columns[:d_in].expand(sites, -1, -1)


class StaticHypernet(Hypernet):
    """The hypernetwork on static tokens. With nothing to compress, its latents are the learned queries themselves."""

    def __init__(self, config: HypernetConfig, base: Base) -> None:
        super().__init__(config, base, StaticTokens(config, base))
        del self.compress

    def compressed(self, x: Tensor) -> Tensor:
        return self.latents.expand(len(x), -1, -1)


class Ensemble(nn.Module):
    """One hypernetwork a block of the base, each of the size that the configuration gives; they share nothing.

    Sites are routed by their block on the host, so a step needs a synchronisation and fits no CUDA graph.
    """

    def __init__(self, config: HypernetConfig, base: Base) -> None:
        super().__init__()
        single = config.model_copy(update={"ensemble": False, "text": TextConfig()})  # its text is prepared for all
        self.text_input = TextInput(config.text, base.text_dim)
        self.members = nn.ModuleList(build_hypernet(single, base) for _ in range(base.num_blocks))

    def member(self, block: int) -> Hypernet:
        member = self.members[block]
        assert isinstance(member, Hypernet)
        return member

    def prepare(self, w0: Tensor, block: Tensor, module: Tensor) -> Weights:
        return self.member(0).prepare(w0, block, module)

    def predict_sites(self, groups: Sequence[Sites], text: Tensor, text_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        blocks = [group.block.tolist() for group in groups]
        found: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in groups]
        for block in sorted({b for row in blocks for b in row}):
            places = [[i for i, b in enumerate(row) if b == block] for row in blocks]
            used = [g for g, place in enumerate(places) if place]
            parts = [take_sites(groups[g], places[g]) for g in used]
            for g, (a, b) in zip(used, self.member(block).predict_sites(parts, text, text_mask), strict=True):
                found[g].update({place: (a[i], b[i]) for i, place in enumerate(places[g])})
        return [
            (torch.stack([row[i][0] for i in range(len(row))]), torch.stack([row[i][1] for i in range(len(row))]))
            for row in found
        ]

    def forward(
        self, w0: Weights, block: Tensor, module: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.predict_sites([Sites(w0, block, module)], text, text_mask)[0]


def take_sites(sites: Sites, places: list[int]) -> Sites:
    weights = sites.weights
    kept = weights[places] if isinstance(weights, Tensor) else (weights[0][places], weights[1][places])
    return Sites(kept, sites.block[places], sites.module[places])

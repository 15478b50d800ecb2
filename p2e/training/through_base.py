"""The second stage of training: predicted LoRAs are put into the frozen base, and the base's own loss is minimised.

The first stage regresses factors, so it spends its capacity on everything that a LoRA holds, chance included. Here only
what the update does to the video counts. The gradient goes through the base to the factors, and from there into the
hypernetwork:

    factors = H(W0, prompt)      leaves = copies of the factors inside the base
    loss(base + leaves) -> d loss / d leaves -> the same gradient at the factors -> the hypernetwork

Leaves keep their place in memory, so the base can be compiled once.

Shapes: E effects a step, n clips of each, S sites of a shape, r rank, Z latent channels, T text tokens, D their width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p2e.adapt.flow import Clips, flow_loss
from p2e.adapt.grouped import GroupedLoras
from p2e.bases.base import Base
from p2e.config import LossConfig
from p2e.hypernet.losses import combine, site_errors
from p2e.training.data import Group, Source, Targets

__all__ = ["ThroughBase"]


class ThroughBase:
    """The gradient of the base's loss with respect to a hypernetwork.

    Args:
        model: the hypernetwork (`p2e.hypernet.variants.Predictor`).
        source: of the library it was trained on; gives sites, scales and targets.
        transformer: the frozen base, on the source's device.
        effects: E.
        regression: weight of the first stage's loss on the same predictions, which holds them near the library; 0 is
            the base's loss alone.
        compiled: run the base under torch.compile.
    """

    def __init__(
        self, model: nn.Module, source: Source, transformer: nn.Module, effects: int, *, regression: float = 0.0,
        dtype: torch.dtype = torch.float32, compiled: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.source, self.dtype, self.regression = model, source, dtype, regression
        self.effects, self.device = effects, source.device
        base: Base = source.base
        everything = [torch.arange(len(group.sites)) for group in source.groups]
        all_effects = torch.arange(len(source.splits))
        self.targets: list[Targets] = [source.targets(i, sites, all_effects) for i, sites in enumerate(everything)]
        self.scales = [(self._scale(group, 0), self._scale(group, 1)) for group in source.groups]
        transformer.requires_grad_(False)
        self._slot = GroupedLoras(base, effects, source.library.rank, device=self.device).attached(transformer)
        parameters = self._slot.__enter__()
        place = {site.key: 2 * i for i, site in enumerate(base.sites)}
        # Leaves by shape, in the order of the groups; sites that no LoRA covers keep B = 0.
        self.leaves = [
            ([parameters[place[s.key]] for s in group.sites], [parameters[place[s.key] + 1] for s in group.sites])
            for group in source.groups
        ]
        self.transformer: Any = torch.compile(transformer) if compiled else transformer

    def _scale(self, group: Group, side: int) -> Tensor:
        """Of A (side 0) or B (side 1) of a group's sites, [S, 1, 1, 1]."""
        values = [self.source.scales[site.key][side] for site in group.sites]
        return torch.tensor(values, device=self.device).view(-1, 1, 1, 1)

    def close(self) -> None:
        """Takes the LoRAs out of the base."""
        self._slot.__exit__(None, None, None)

    def predict(self, text: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A^ [S, E, r, d_in] and B^ [S, E, d_out, r] of every site, a pair a shape, in units of the targets.

        Args:
            text, mask: what the hypernetwork reads of E prompts, [E, T', D] and [E, T'].
        """
        with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            return self.model.predict_sites([t.sites for t in self.targets], text, mask)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def _fill(self, predicted: Sequence[tuple[Tensor, Tensor]]) -> None:
        for pair, scales, leaves in zip(predicted, self.scales, self.leaves, strict=True):
            for factors, scale, places in zip(pair, scales, leaves, strict=True):
                targets: list[Tensor] = list(places)
                torch._foreach_copy_(targets, list((factors.float() * scale).unbind(0)))

    def base_losses(self, clips: Clips) -> Tensor:
        """Mean flow loss of each effect, [E], under the LoRAs that were filled in."""
        with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            losses = flow_loss(self.transformer, *clips)
        return losses.view(self.effects, -1).mean(1)

    def backward(self, text: Tensor, mask: Tensor, effects: Tensor, clips: Clips) -> Tensor:
        """Adds the gradient to the hypernetwork's parameters -> the base's loss of each effect, [E].

        Args:
            text, mask: as for `predict`.
            effects: indices in the library, [E]; only `regression` asks for their targets.
        """
        predicted = self.predict(text, mask)
        self._fill(predicted)
        losses = self.base_losses(clips)
        leaves = [leaf for pair in self.leaves for side in pair for leaf in side]
        gradients = iter(torch.autograd.grad(losses.mean(), leaves))
        outputs: list[Tensor] = []
        upstream: list[Tensor | None] = []
        for pair, scales, places in zip(predicted, self.scales, self.leaves, strict=True):
            for factors, scale, side in zip(pair, scales, places, strict=True):
                outputs.append(factors)
                upstream.append((torch.stack([next(gradients) for _ in side]) * scale).to(factors.dtype))
        if self.regression:
            outputs.append(self.regression * self._library_loss(predicted, effects))
            upstream.append(None)
        torch.autograd.backward(outputs, upstream)  # pyright: ignore[reportArgumentType]
        return losses.detach()

    def _library_loss(self, predicted: Sequence[tuple[Tensor, Tensor]], effects: Tensor) -> Tensor:
        config = LossConfig(update=0.5)
        errors, weights = [], []
        for (a_hat, b_hat), targets in zip(predicted, self.targets, strict=True):
            errors.append(site_errors(a_hat, b_hat, targets.a[:, effects], targets.b[:, effects], config.epsilon))
            weights.append(targets.weight[:, effects])
        return combine(errors, weights, config).loss

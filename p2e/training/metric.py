"""Errors measured where the base is sensitive: the metric of a site, made from its moments (`p2e.adapt.moments`).

An update is compared after its roots have been applied, R_out dW R_in with R = M^(power / 2): power 1 is the curvature
of the base's loss in K-FAC's approximation, power 0 the Frobenius norm of the paper. Moments are divided by the mean of
their eigenvalues first, and damped, so that no direction is free.

Sites differ in how much their updates do: `weight` is a site's share of the energy of the library's updates, to the
same power, with mean 1 over the sites.

Shapes: N sites of one shape, r rank, E effects.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from p2e.bases.base import Site
from p2e.config import MetricConfig
from p2e.errors import InputError
from p2e.files import SafetensorsFile

__all__ = ["SiteMetric", "read_metric", "root"]


class SiteMetric(NamedTuple):
    """Roots R_in [N, d_in, d_in] and R_out [N, d_out, d_out], and weight [N]."""

    input: Tensor
    output: Tensor
    weight: Tensor

    def take(self, sites: Tensor) -> "SiteMetric":
        return SiteMetric(self.input[sites], self.output[sites], self.weight[sites])

    def factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A [N, E, r, d_in] and B [N, E, d_out, r] seen through the roots, float32."""
        r_in, r_out = self.input[:, None], self.output[:, None]
        return a.float() @ r_in, r_out @ b.float()


def root(moment: Tensor, power: float, damping: float) -> Tensor:
    """(M / mean eigenvalue + damping)^(power / 2) of a symmetric matrix [d, d], computed in float64."""
    m = moment.double()
    value, vector = torch.linalg.eigh(m / m.diagonal().mean().clamp(min=1e-300))
    return ((vector * (value.clamp(min=0) + damping) ** (power / 2)) @ vector.mT).to(torch.float32)


def read_metric(config: MetricConfig, base: str, groups: Sequence[Sequence[Site]]) -> list[SiteMetric]:
    """The metric of the sites of each group; the sites of a group have one shape.

    Raises:
        InputError: the file is missing or damaged, is of another base, or lacks a site.
    """
    if not Path(config.moments).exists():
        raise InputError(f"metric.moments: {config.moments} is not there; give the file of the base's moments")
    with SafetensorsFile(Path(config.moments)) as file:
        if (other := file.metadata.get("base")) != base:
            raise InputError(f"{config.moments}: moments of {other}, not of {base}; measure those of {base}")
        for site in (site for group in groups for site in group):
            if f"{site.key}.input" not in file:
                raise InputError(f"{config.moments}: has no moments of {site.key}; measure them for all sites")

        def roots(sites: Sequence[Site], side: str) -> Tensor:
            found = (file.read(f"{site.key}.{side}") for site in sites)
            return torch.stack([root(moment, config.power, config.damping) for moment in found])

        energy = [torch.cat([file.read(f"{s.key}.energy") for s in sites]).double() for sites in groups]
        weights = [e.clamp(min=0) ** config.power for e in energy]
        mean = torch.cat(weights).mean().clamp(min=1e-300)
        return [
            SiteMetric(roots(sites, "input"), roots(sites, "output"), (weight / mean).float())
            for sites, weight in zip(groups, weights, strict=True)
        ]

"""What a LoRA is, in plain values that print as JSON."""

from collections import Counter
from typing import Any

from p2e.bases.base import Base
from p2e.lora.canonical import energy
from p2e.lora.lora import Lora

__all__ = ["lora_summary", "site_energies"]


def site_energies(lora: Lora) -> dict[str, float]:
    """Site key -> ||dW||_F^2, by Gram matrices."""
    return {key: float(energy(factors.a, factors.b)) for key, factors in lora.factors.items()}


def lora_summary(lora: Lora, base: Base) -> dict[str, Any]:
    """A description of a LoRA whose every value is JSON.

    Returns:
        base, source, family ("F1" to "F7"), ranks (rank -> number of sites), sites (covered, total), modules (module
        type -> covered, total, norm), scales (scale folded in -> number of sites), norm (||dW||_F over all sites),
        parameters, biases, ignored (key of the file -> reason) and the file's metadata.
    """
    energies = site_energies(lora)
    modules: dict[str, dict[str, Any]] = {}
    for module in base.modules:
        sites = [site.key for site in base.sites if site.module == module]
        covered = [key for key in sites if key in energies]
        norm = sum(energies[key] for key in covered) ** 0.5
        modules[module] = {"covered": len(covered), "total": len(sites), "norm": norm}
    ranks = Counter(factors.rank for factors in lora.factors.values())
    scales = Counter(float(lora.provenance.scales.get(key, 1.0)) for key in lora.factors)
    return {
        "base": lora.base,
        "source": lora.provenance.source,
        "family": lora.provenance.family,
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "sites": {"covered": len(lora.factors), "total": len(base.sites)},
        "modules": modules,
        "scales": {f"{scale:g}": count for scale, count in sorted(scales.items())},
        "norm": sum(energies.values()) ** 0.5,
        "parameters": sum(f.a.numel() + f.b.numel() for f in lora.factors.values()),
        "biases": len(lora.biases),
        "ignored": dict(lora.provenance.ignored),
        "metadata": dict(lora.provenance.metadata),
    }

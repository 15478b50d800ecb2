"""Second moments of what enters and leaves the sites of a base: where an update shows, and where it does not.

For small changes the base's loss grows with an update dW of a site, y = W0 x, by its curvature, which K-FAC (Martens
and Grosse, 2015) approximates by a product of two moments:

    C = E[x x^T]  [d_in, d_in]      G = E[g g^T]  [d_out, d_out],  g = d loss / d y      |dW|^2 = tr(G dW C dW^T)

The mean runs over tokens, clips and times, with trained LoRAs in place, for that is where predictions should come out.
`p2e.training.metric` makes of it a metric for errors.

Shapes: G LoRAs, n clips each, B = G n clips; S sites.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2e.adapt.flow import Clips, flow_loss
from p2e.adapt.grouped import GroupedLoras
from p2e.bases.base import Base
from p2e.files import write_safetensors
from p2e.lora.lora import Lora

__all__ = ["SiteMoments", "write_moments"]


class SiteMoments:
    """Sums of C and G of the sites of a base, float32, on the transformer's device.

    A site that the transformer splits over several layers has one input, and its outputs side by side.
    """

    def __init__(self, base: Base, device: torch.device) -> None:
        self.base, self.batches = base, 0
        self.inputs = {s.key: torch.zeros(s.d_in, s.d_in, device=device) for s in base.sites}
        self.outputs = {s.key: torch.zeros(s.d_out, s.d_out, device=device) for s in base.sites}

    def add(self, transformer: nn.Module, loras: GroupedLoras, loss: Callable[[], Tensor]) -> Tensor:
        """Adds one batch: `loss` calls the transformer, and its losses [B] are returned."""
        gradients: dict[str, list[Tensor]] = {site.key: [] for site in self.base.sites}
        hooks: list[Any] = []
        with loras.attached(transformer):
            modules = dict(transformer.named_modules())
            for site in self.base.sites:
                for number, part in enumerate(site.parts):
                    hook = self._hook(site.key, gradients[site.key], with_input=number == 0)
                    hooks.append(modules[part.name].register_forward_hook(hook))
            try:
                losses = loss()
                losses.sum().backward()  # each clip's own gradient, so that the number of clips does not matter
            finally:
                for hook in hooks:
                    hook.remove()
            transformer.zero_grad()
        for key, found in gradients.items():
            g = torch.cat(found, dim=-1)
            self.outputs[key].addmm_(g.mT, g, alpha=1 / len(g))
        self.batches += 1
        return losses.detach()

    def _hook(self, key: str, gradients: list[Tensor], with_input: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if with_input:
                x = inputs[0].detach().flatten(0, -2).float()
                self.inputs[key].addmm_(x.mT, x, alpha=1 / len(x))
            place = len(gradients)
            gradients.append(output.new_zeros(0))  # backward runs in the opposite order

            def keep(gradient: Tensor) -> None:
                gradients[place] = gradient.flatten(0, -2).float()

            output.register_hook(keep)

        return hook

    def tensors(self) -> dict[str, Tensor]:
        """KEY.input and KEY.output, the means over the batches."""
        count = max(self.batches, 1)
        inputs = {f"{key}.input": value / count for key, value in self.inputs.items()}
        return inputs | {f"{key}.output": value / count for key, value in self.outputs.items()}


def write_moments(
    path: Path, base: Base, transformer: Any, loras: Iterable[list[Lora]], batches: Iterable[Clips],
    device: torch.device,
) -> float:  # fmt: skip
    """Measures the moments and the mean energy of the LoRAs' updates under them, and writes both.

    Args:
        loras: for each batch, one LoRA a group.
        batches: the clips of each batch, those of a group side by side.

    Returns:
        The mean loss.
    """
    moments, total, seen = SiteMoments(base, device), [], []
    for group, clips in zip(loras, batches, strict=True):
        attached = GroupedLoras(base, len(group), max(lora.rank for lora in group), device=device, init=group)
        total.append(moments.add(transformer, attached, partial(flow_loss, transformer, *clips)).mean().item())
        seen += group
    tensors = moments.tensors()
    for site in base.sites:
        c, g = tensors[f"{site.key}.input"], tensors[f"{site.key}.output"]
        energies = [energy(lora, site.key, c, g) for lora in seen if site.key in lora.factors]
        mean = torch.stack(energies).mean() if energies else c.new_zeros(())
        tensors[f"{site.key}.energy"] = mean.view(1)
    write_safetensors(path, {key: value.cpu().contiguous() for key, value in tensors.items()}, {"base": base.name})
    return sum(total) / len(total)


def energy(lora: Lora, key: str, c: Tensor, g: Tensor) -> Tensor:
    """tr(G dW C dW^T) of one site, from r x r products."""
    a, b = (x.to(c) for x in (lora.factors[key].a, lora.factors[key].b))
    return ((a @ c @ a.mT) * (b.mT @ g @ b)).sum()

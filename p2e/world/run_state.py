"""What a stage that trains keeps on disk, so that it can be cut off at any time and go on: one safetensors file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2e.files import SafetensorsFile, write_safetensors

__all__ = ["RunState"]


class RunState:
    """Parameters, their average, optimizer state, step and seconds of a run.

    Args:
        path: the file; its folder is made when it is first written.
        settings: of the run. A file of another run is left alone until the first save, which replaces it.
        more: further tensors of the run, saved under their names and put back in place.
    """

    def __init__(
        self, path: Path, model: nn.Module, average: nn.Module, optimizers: Sequence[torch.optim.Optimizer],
        settings: Any, more: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.more = more or {}
        self.path, self.model, self.average, self.optimizers = path, model, average, optimizers
        self.digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def save(self, step: int, seconds: float) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            for optimizer in self.optimizers:
                if parameter in optimizer.state:
                    state = optimizer.state[parameter]
                    tensors |= {f"state.{key}.{name}": v for key, v in state.items() if isinstance(v, Tensor)}
        tensors |= {f"average.{name}": value for name, value in self.average.named_parameters()}
        tensors |= {f"more.{name}": value for name, value in self.more.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"settings": self.digest, "step": str(step), "seconds": f"{seconds:.3f}"}
        write_safetensors(self.path, {k: v.contiguous().cpu() for k, v in tensors.items()}, metadata)

    def step(self) -> int:
        """The step at which the run was saved, 0 where it was not."""
        if not self.path.exists():
            return 0
        with SafetensorsFile(self.path) as file:
            return int(file.metadata["step"]) if file.metadata.get("settings") == self.digest else 0

    @torch.no_grad()
    def load(self) -> tuple[int, float]:
        """Puts the run back where it was saved -> its step and seconds; zeros where there is nothing."""
        if not self.path.exists():
            return 0, 0.0
        with SafetensorsFile(self.path) as file:
            if file.metadata.get("settings") != self.digest:
                return 0, 0.0
            owner = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
            for name, parameter in self.model.named_parameters():
                parameter.copy_(file.read(f"model.{name}"))
                found = {}
                for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                    if (full := f"state.{key}.{name}") in file:
                        value = file.read(full).to(parameter.device)
                        # The strides of the parameter, for it may be channels last.
                        found[key] = (
                            torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                        )
                owner[parameter].state[parameter] = found
            for name, value in self.average.named_parameters():
                value.copy_(file.read(f"average.{name}"))
            for name, value in self.more.items():
                value.copy_(file.read(f"more.{name}"))
            return int(file.metadata["step"]), float(file.metadata["seconds"])

"""What a fine-tuning run keeps beside its output, so that it can be cut off and go on: one safetensors file."""

from pathlib import Path

import torch
from torch import Tensor, nn

from p2e.errors import InputError
from p2e.files import SafetensorsFile, write_safetensors

__all__ = ["AdaptState"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class AdaptState:
    """Factors, AdamW's moments, step and mean loss of one transformer's run.

    Draws need no state: every step has a generator of its own (`p2e.adapt.batches`).

    Args:
        path: the file.
        digest: of everything that the result depends on.
        every: steps between two saves; 0 is never.
    """

    def __init__(self, path: Path, digest: str, every: int) -> None:
        self.path, self.digest, self.every = path, digest, every

    def keep(self, done: int, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, tail: Tensor) -> None:
        """Saves after every so many steps."""
        if self.every and done % self.every == 0:
            self.save(done, parameters, optimizer, tail)

    def save(self, done: int, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, tail: Tensor) -> None:
        tensors = {"tail": tail}
        for index, parameter in enumerate(parameters):
            tensors[f"{index}.value"] = parameter.detach()
            state = optimizer.state[parameter]
            tensors |= {f"{index}.{name}": state[name] for name in MOMENTS if name in state}
        write_safetensors(self.path, tensors, {"p2e.run": self.digest, "p2e.step": str(done)})

    @torch.no_grad()
    def load(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, tail: Tensor) -> int:
        """Puts the run back where it was saved -> the steps done; 0 where nothing was.

        Raises:
            InputError: the file is of a run of other settings, clips or base.
        """
        if not self.path.exists():
            return 0
        with SafetensorsFile(self.path) as file:
            if file.metadata.get("p2e.run") != self.digest:
                raise InputError(
                    f"{self.path}: belongs to an unfinished run of other settings, clips or base; go on with those, "
                    "delete the file, or write elsewhere"
                )
            tail.copy_(file.read("tail"))
            for index, parameter in enumerate(parameters):
                parameter.copy_(file.read(f"{index}.value"))
                names = [name for name in MOMENTS if f"{index}.{name}" in file]
                if names:
                    state = {name: file.read(f"{index}.{name}") for name in names}
                    # AdamW keeps its count on the host unless it is fused.
                    fused = optimizer.param_groups[0]["fused"]
                    optimizer.state[parameter] = {
                        name: value if name == "step" and not fused else value.to(parameter.device)
                        for name, value in state.items()
                    }
            return int(file.metadata["p2e.step"])

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

"""What a fine-tuning run keeps beside its output, so that it can be cut off and go on: one safetensors file."""

from pathlib import Path

import torch

from p2e.adapt.train import LoraRun
from p2e.errors import InputError
from p2e.files import SafetensorsFile, write_safetensors

__all__ = ["AdaptState"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class AdaptState:
    """The `RunKeeper` of `p2e adapt`: factors, AdamW's moments, step and mean loss of one transformer's run.

    Draws need no state: every step has a generator of its own (`p2e.adapt.batches`).

    Args:
        path: the file.
        digest: of everything that the result depends on.
        every: steps between two saves; 0 is never.
    """

    def __init__(self, path: Path, digest: str, every: int) -> None:
        self.path, self.digest, self.every = path, digest, every

    def look(self, run: LoraRun, step: int) -> None:
        """Saves after every so many steps."""
        if self.every and step and step % self.every == 0:
            self.save(run, step)

    def save(self, run: LoraRun, step: int) -> None:
        tensors = {"tail": run.tail}
        for index, parameter in enumerate(run.parameters):
            tensors[f"{index}.value"] = parameter.detach()
            state = run.optimizer.state[parameter]
            tensors |= {f"{index}.{name}": state[name] for name in MOMENTS if name in state}
        write_safetensors(self.path, tensors, {"p2e.run": self.digest, "p2e.step": str(step)})

    @torch.no_grad()
    def restore(self, run: LoraRun) -> int:
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
            run.tail.copy_(file.read("tail"))
            for index, parameter in enumerate(run.parameters):
                parameter.copy_(file.read(f"{index}.value"))
                names = [name for name in MOMENTS if f"{index}.{name}" in file]
                if names:
                    state = {name: file.read(f"{index}.{name}") for name in names}
                    # AdamW keeps its count on the host unless it is fused.
                    fused = run.optimizer.param_groups[0]["fused"]
                    run.optimizer.state[parameter] = {
                        name: value if name == "step" and not fused else value.to(parameter.device)
                        for name, value in state.items()
                    }
            return int(file.metadata["p2e.step"])

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

"""Everything that a run must keep to go on to the bit: parameters, optimizer, average, step, random state.

One safetensors file, written by rename, so that it is whole or not there; its header holds the step and the
settings. Orders of sites, effects and prompts are functions of the step (`p2e.training.batches`), so they need none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2e.config import TrainConfig
from p2e.errors import ConfigError, FormatError
from p2e.files import SafetensorsFile, write_safetensors

__all__ = ["load_state", "save_state"]

FORMAT = "p2e-training-1"
# Settings that may change between a run and its continuation: they do not alter what a step computes.
FREE = {
    "output", "steps", "device", "checkpoint_every", "evaluate_every", "log_every", "compile", "cuda_graph",
    "resident_gb", "tensorboard", "checkpoint_precision", "library", "base",
}  # fmt: skip


def save_state(
    path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None,
    config: TrainConfig, hashes: Mapping[str, str],
) -> None:  # fmt: skip
    """Writes the state after `step` steps.

    Args:
        hashes: of base and library; a continuation must have the same.
    """
    tensors: dict[str, Tensor] = {"random.cpu": torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.named_parameters()}
    settings = {"config": config.model_dump(mode="json"), **hashes}
    write_safetensors(path, tensors, {"format": FORMAT, "step": str(step), "settings": json.dumps(settings)})


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None,
    config: TrainConfig, hashes: Mapping[str, str],
) -> int:  # fmt: skip
    """Reads a state into `model`, `optimizer` and `average`, in place -> its step.

    Raises:
        FormatError: the file is corrupt.
        ConfigError: the folder holds a run with other settings, another base or another library.
    """
    with SafetensorsFile(path) as file:
        try:
            step, settings = int(file.metadata["step"]), json.loads(file.metadata["settings"])
            check_same(path, settings, {"config": config.model_dump(mode="json"), **hashes})
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(file.read(f"model.{name}"))
                    optimizer.state[parameter] = {
                        key: restored(file.read(f"optimizer.{name}.{key}"), key, parameter, optimizer)
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }
                for name, value in average.named_parameters() if average is not None else ():
                    value.copy_(file.read(f"average.{name}"))
            torch.set_rng_state(file.read("random.cpu"))
        except (KeyError, ValueError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise FormatError(
                f"{path}: not the state of this run ({error!r}); remove it to start anew, or choose another output"
            ) from None
    return step


def restored(value: Tensor, key: str, parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Optimizer state on its device: the step count stays on the CPU unless the optimizer is fused or capturable."""
    on_device = key != "step" or optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    return value.to(parameter.device) if on_device else value


def check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    # Settings that came after the old run was saved stood at their defaults then.
    old = {**old, "config": TrainConfig.parse(old["config"], str(path)).model_dump(mode="json")}
    changed = [key for key in new if key != "config" and old.get(key) != new[key]]
    changed += [key for key, value in new["config"].items() if key not in FREE and old["config"].get(key) != value]
    if changed:
        raise ConfigError(
            f"{path.parent}: holds a run with another {', '.join(changed)}; choose another output, or the same settings"
        )

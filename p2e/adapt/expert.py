"""Training one LoRA on one transformer of a base of any family: batches of mixed sizes through its adapter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from p2e.adapt.batches import Batches, generator_at
from p2e.adapt.config import FineTuneConfig
from p2e.adapt.encode import Example, stack
from p2e.adapt.families import Adapter
from p2e.adapt.grouped import GroupedLoras
from p2e.adapt.objective import sample_within
from p2e.adapt.state import AdaptState
from p2e.adapt.train import optimise
from p2e.errors import InputError

__all__ = ["open_transformer", "times_of", "train_expert"]

LARGE = 1_000_000_000  # weights from which on a base is held in bfloat16 and recomputes activations
RESIDENT = 2 << 30  # bytes of records that are kept on the device


def times_of(adapter: Adapter, expert: str | None) -> tuple[float, float]:
    """The times that a transformer is in charge of: all, or its side of the boundary, the noisy one for the first."""
    if adapter.boundary is None:
        return 0.0, 1.0
    return (adapter.boundary, 1.0) if expert == adapter.base.experts[0] else (0.0, adapter.boundary)


def open_transformer(adapter: Adapter, expert: str | None, device: str | torch.device) -> Any:
    """The frozen transformer, in the type and with the checkpointing that its size and the settings ask for.

    Raises:
        FormatError: its weights cannot be read.
        InputError: checkpointing is asked for and the class has none.
    """
    config, weights = adapter.config, adapter.base_weights
    large = weights >= LARGE
    halved = config.weights == "bfloat16" or (config.weights == "auto" and large and config.precision == "bfloat16")
    transformer = adapter.load_transformer(expert, torch.bfloat16 if halved else torch.float32, device)
    if config.checkpointing or (config.checkpointing is None and large):
        try:
            transformer.enable_gradient_checkpointing()
        except ValueError as error:
            raise InputError(f"{adapter.folder}: {str(error)[:120]}; set checkpointing: false") from None
    return transformer


def train_expert(
    adapter: Adapter, expert: str | None, transformer: Any, loras: GroupedLoras, examples: Sequence[Example], *,
    state: AdaptState | None = None, on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Trains the one LoRA of `loras` in place and returns its mean loss over the last tenth of the steps, [1]."""
    config: FineTuneConfig = adapter.config
    device = next(transformer.parameters()).device
    batches = Batches([example.bucket for example in examples], config.batch, config.seed)
    records = _resident([example.record for example in examples], device)
    low, high = times_of(adapter, expert)
    given = "shift" in config.model_fields_set
    shifts = {b: config.shift if given else adapter.shift(*b) for b in {example.bucket for example in examples}}
    sampling = config.sampling if "sampling" in config.model_fields_set else adapter.sampling

    def losses_of(step: int, number: int) -> Tensor:
        index = step * config.accumulate + number
        picks = batches.at(index)
        batch = stack([records[pick] for pick in picks], device)
        generator = generator_at(config.seed, index, device)
        times = sample_within(
            len(picks), generator, sampling=sampling, shift=shifts[examples[picks[0]].bucket], low=low, high=high
        )
        noise = torch.randn(batch["latents"].shape, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return adapter.loss(transformer, batch, times, noise).mean(0, keepdim=True)

    with loras.attached(transformer) as parameters:
        return optimise(parameters, losses_of, 1, config, accumulate=config.accumulate, on_step=on_step, keeper=state)


def _resident(records: Sequence[dict[str, Tensor]], device: torch.device) -> list[dict[str, Tensor]]:
    """The records on the device where they take little of it; captions that examples share stay one tensor."""
    unique = {id(tensor): tensor for record in records for tensor in record.values()}
    if sum(tensor.numel() * tensor.element_size() for tensor in unique.values()) <= RESIDENT:
        unique = {key: tensor.to(device) for key, tensor in unique.items()}
    return [{name: unique[id(tensor)] for name, tensor in record.items()} for record in records]

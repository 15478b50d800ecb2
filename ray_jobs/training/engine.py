"""The hypernetwork under DeepSpeed: one step over a worker's micro-batches, and the whole network put together again.

The step is that of `p2e.training.step.TrainStep`: the mean gradient of all micro-batches, clipped, then AdamW at the
rate of the step, then the moving average. ZeRO spreads its state over the workers, which changes the order of sums and
nothing else.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from p2e.config import TrainConfig
from p2e.hypernet.layers import Block
from p2e.hypernet.losses import Losses
from p2e.hypernet.variants import build_hypernet
from p2e.schedule import average_decay
from p2e.training.data import Batch
from p2e.training.setup import Run
from p2e.training.step import Objective, rate
from ray_jobs.training.config import ZeroConfig
from ray_jobs.training.stream import Slots

__all__ = ["Engine", "compile_blocks"]


class Engine:
    """A run's network, objective and optimizer under DeepSpeed.

    Args:
        run: the run; its model is taken over.
        slots: how workers share a step.
        rank: of this worker.

    Attributes:
        average: this worker's part of the moving average, or None where there is none.
    """

    def __init__(self, run: Run, zero: ZeroConfig, slots: Slots, rank: int, *, universal: bool = False) -> None:
        import deepspeed

        if run.device.type == "cpu":
            # Of use on CPUs only; it needs a compiler, and the peers of a killed worker would spin in it.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.run, self.zero, self.slots, self.rank = run, zero, slots, rank
        self.names = [name for name, _ in run.model.named_parameters()]
        # DeepSpeed casts buffers with the parameters; the fixed map of the text stays as it was fitted.
        self.fixed = {name: value.detach().cpu().clone() for name, value in run.model.named_buffers()}
        objective: nn.Module = Objective(run.model, run.config.loss, run.dtype)
        if run.config.compile:
            compile_blocks(objective)
        config = run.config
        optimizer = torch.optim.AdamW(
            objective.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay,
            fused=run.device.type == "cuda",
        )  # fmt: skip
        settings = deepspeed_settings(zero, config, slots, run.device.type == "cuda", universal)
        self.engine: Any = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=settings, dist_init_required=False
        )[0]
        self.average: list[Tensor] | None = None
        if config.ema is not None:
            self.average = [part.detach().clone() for part in self.masters()]

    def close(self) -> None:
        """Lets go of the network and the optimizer: DeepSpeed's hooks hold them through nodes of autograd, where no
        collector of garbage sees the cycle."""
        self.engine.destroy()
        if hasattr(self.engine.optimizer, "unregister_grad_acc_post_hooks"):  # ZeRO's optimizers have them
            self.engine.optimizer.unregister_grad_acc_post_hooks()

    def parameters(self) -> list[nn.Parameter]:
        return list(self.engine.module.model.parameters())

    def masters(self) -> Sequence[Tensor]:
        """The float32 values that this worker's optimizer holds, as ZeRO has cut them."""
        if self.zero.stage == 0:
            return self.parameters()
        if self.zero.stage == 3:
            return self.engine.optimizer.fp32_partitioned_groups_flat
        return self.engine.optimizer.single_partition_of_fp32_groups

    def step(self, step: int, batches: Iterator[Batch]) -> Tensor:
        """One optimizer step -> this worker's share of the scalars of `Losses`, [4], on the device: their sum over the
        workers is the mean over the micro-batches."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate(self.run.config, step)
        scalars = torch.zeros(len(Losses._fields), device=self.run.device)
        for slot, batch in enumerate(batches):
            losses: Losses = self.engine(batch)
            counts = self.slots.counts(slot, self.rank)
            # DeepSpeed takes the mean over all slots of all workers, padding among them.
            share = self.slots.each * self.slots.world / self.slots.parts if counts else 0.0
            self.engine.backward(losses.loss * share)
            self.engine.step()
            if counts:
                scalars += torch.stack([scalar.detach().float() for scalar in losses]) / self.slots.parts
        if self.average is not None and self.run.config.ema is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list(self.masters()), 1 - average_decay(self.run.config.ema, step))
        return scalars

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average stands in the place of the optimizer's values."""
        if self.average is None:
            yield
            return
        masters = list(self.masters())
        kept = [part.detach().clone() for part in masters]
        with torch.no_grad():
            torch._foreach_copy_(masters, self.average)
            try:
                yield
            finally:
                torch._foreach_copy_(masters, kept)

    def values(self) -> Iterator[tuple[str, Tensor | None]]:
        """Name and whole float32 value of every parameter, on the CPU of the first worker, None on the others. All
        workers must go through it."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in zip(self.names, self.parameters(), strict=True):
            value = parameter if self.zero.stage == 0 else safe_get_full_fp32_param(parameter)
            assert value is not None
            yield name, value.detach().float().cpu().reshape(self.shapes[name]) if self.rank == 0 else None

    @property
    def shapes(self) -> dict[str, torch.Size]:
        named = zip(self.names, self.parameters(), strict=True)
        return {name: getattr(value, "ds_shape", value.shape) for name, value in named}

    def whole(self) -> nn.Module | None:
        """The network for inference (the average, where there is one), on the CPU of the first worker; None on the
        others. All workers must call it."""
        with self._averaged():
            values = {name: value for name, value in self.values() if value is not None}
        if self.rank:
            return None
        with torch.device("meta"):
            model = build_hypernet(self.run.config.hypernet, self.run.base)
        model.load_state_dict({**values, **self.fixed}, assign=True)
        return model.requires_grad_(False)

    def set_average(self, values: dict[str, Tensor]) -> None:
        """Takes the average from whole float32 values, cut as this worker's optimizer is."""
        from deepspeed.utils import safe_set_full_fp32_param

        assert self.average is not None
        masters = list(self.masters())
        kept = [part.detach().clone() for part in masters]
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters(), strict=True):
                value = values[name].to(self.run.device)
                if self.zero.stage == 0:
                    parameter.copy_(value)
                else:
                    safe_set_full_fp32_param(parameter, value)
            torch._foreach_copy_(self.average, masters)
            torch._foreach_copy_(masters, kept)


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compiles each block of a network in place.

    Blocks share one compiled graph, which takes seconds where the whole takes minutes. And their gradients arrive block
    by block: the backward pass of a whole graph hands them all over at its end, so that no reduction overlaps with it.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False, **options)


def deepspeed_settings(
    zero: ZeroConfig, config: TrainConfig, slots: Slots, on_gpu: bool, universal: bool
) -> dict[str, Any]:
    """What `deepspeed.initialize` reads. A sample of DeepSpeed is a micro-batch here."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": slots.each,
        "train_batch_size": slots.each * slots.world,
        "gradient_clipping": config.clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_bucket_size": zero.bucket,
            "allgather_bucket_size": zero.bucket,
        },
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 1 << 30,
    }
    if zero.parameters == "bfloat16":
        # DeepSpeed's own check would leave out a step in silence, at the cost of further passes over all gradients and
        # a wait for the GPU; a loss that is not finite ends the run.
        settings |= {
            "bf16": {"enabled": True, "check_grad_overflow": False},
            "data_types": {"grad_accum_dtype": "fp32"},
        }
    return settings

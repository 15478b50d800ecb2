"""One optimizer step, apart from any loop: the same with and without Ray, eager, compiled, or as a CUDA graph.

Nothing here synchronises with the host: losses stay on the device until somebody reads them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from p2e.config import LossConfig, TrainConfig
from p2e.hypernet.losses import Losses, blended_errors, combine, site_errors
from p2e.schedule import average_decay, warm_cosine
from p2e.training.batches import Sampler
from p2e.training.data import Batch, Source

__all__ = ["GraphedStep", "Objective", "TrainStep", "make_optimizer", "rate"]


class Objective(nn.Module):
    """A hypernetwork with its loss: the module to compile, or to hand to DDP or DeepSpeed, whose forward is the loss.

    Args:
        model: a hypernetwork (`p2e.hypernet.variants.Predictor`).
        loss: weights of the objective.
        dtype: type of the matrix products of the network; the losses are computed in float32.
    """

    def __init__(self, model: nn.Module, loss: LossConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.loss, self.dtype = model, loss, dtype

    def forward(self, batch: Batch) -> Losses:
        # No cache of casted parameters: a CUDA graph must hold the casts.
        with torch.autocast(batch.text.device.type, self.dtype, self.dtype != torch.float32, cache_enabled=False):
            predicted = self.model.predict_sites(batch.sites, batch.text, batch.text_mask)  # pyright: ignore[reportCallIssue]
        errors, weights = [], []
        for group, (a_hat, b_hat) in enumerate(predicted):
            a, b, weight = batch.a[group], batch.b[group], batch.weight[group]
            if batch.metric is not None:
                metric = batch.metric[group]
                with torch.autocast(batch.text.device.type, enabled=False):
                    (a_hat, b_hat), (a, b) = metric.factors(a_hat, b_hat), metric.factors(a, b)
                weight = weight * metric.weight[:, None]
            found = site_errors(a_hat, b_hat, a, b, self.loss.epsilon)
            if batch.share is not None:
                found, weight = blended_errors(
                    found, a_hat, b_hat, a, b, weight, batch.share, self.loss.epsilon, self.loss.blend
                )
            errors.append(found)
            weights.append(weight)
        return combine(errors, weights, self.loss)


def rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, then constant or a cosine down to `final_fraction`."""
    final = config.final_fraction if config.decay == "cosine" else 1.0
    warmup = round(config.warmup_fraction * config.steps)
    return config.learning_rate * warm_cosine(step, warmup, step / config.steps, final)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; on a GPU fused, with its rate in a tensor, so that a CUDA graph can hold the step."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(
        model.parameters(),
        lr=torch.tensor(config.learning_rate, device="cuda") if on_gpu else config.learning_rate,
        betas=config.betas, weight_decay=config.weight_decay, fused=on_gpu, capturable=on_gpu,
    )  # fmt: skip


class TrainStep:
    """Gradient, clipping, AdamW, moving average.

    Args:
        objective: the loss, possibly compiled or wrapped.
        model: the parameters' owner.
        average: a copy of the model that follows it, or None.
    """

    def __init__(
        self, objective: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig,
        average: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self.objective, self.optimizer, self.config = objective, optimizer, config
        self.parameters: list[Tensor] = list(model.parameters())
        self.averaged: list[Tensor] | None = None if average is None else list(average.parameters())
        self.approach = torch.zeros((), device=self.parameters[0].device)  # a tensor, for a CUDA graph to read

    def set_step(self, step: int) -> None:
        """Sets what depends on the step: the rate, and how far the average moves towards the weights."""
        if self.config.ema is not None:
            self.approach.fill_(1 - average_decay(self.config.ema, step))
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate(self.config, step))
            else:
                group["lr"] = rate(self.config, step)

    def __call__(self, *batches: Batch) -> Tensor:
        """One step on the mean loss of some micro-batches -> the scalars of `Losses`, [4], on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        scalars: list[Tensor] = []
        for batch in batches:
            losses: Losses = self.objective(batch)
            (losses.loss / len(batches)).backward()
            scalars.append(torch.stack([scalar.detach() for scalar in losses]))
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        if self.averaged is not None and self.config.ema is not None:
            with torch.no_grad():
                change = torch._foreach_sub(self.parameters, self.averaged)
                torch._foreach_mul_(change, self.approach)
                torch._foreach_add_(self.averaged, change)
        return torch.stack(scalars).mean(0)


class GraphedStep:
    """A `TrainStep` on a resident source, captured once and replayed with the row of each step as its only input."""

    def __init__(self, step: TrainStep, source: Source, sampler: Sampler) -> None:
        self.row = sampler.plan(0, 1)[0].to(source.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Warm-up steps must leave no trace: everything that a step changes is put back.
        kept = self._tensors(step)
        saved = [tensor.detach().clone() for tensor in kept]
        with torch.cuda.stream(stream):
            for _ in range(3):
                step(source.batch(self.row, sampler.widths))
        torch.cuda.current_stream().wait_stream(stream)
        step.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = step(source.batch(self.row, sampler.widths))
        with torch.no_grad():
            for tensor, value in zip(kept, saved, strict=True):
                tensor.copy_(value)
            fresh = {id(tensor) for tensor in kept}
            for tensor in self._tensors(step):
                if id(tensor) not in fresh:  # optimizer state that the warm-up made starts at zero
                    tensor.zero_()

    @staticmethod
    def _tensors(step: TrainStep) -> Sequence[Tensor]:
        state = [value for entry in step.optimizer.state.values() for value in entry.values()]
        return [*step.parameters, *(step.averaged or []), *(value for value in state if isinstance(value, Tensor))]

    def __call__(self, row: Tensor) -> Tensor:
        """One step on a sampler's row -> the scalars of `Losses`, [4], valid until the next step."""
        self.row.copy_(row, non_blocking=True)
        self.graph.replay()
        return self.losses

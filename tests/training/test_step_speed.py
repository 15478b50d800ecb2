"""What keeps a step fast must not change what it computes: compiled blocks, bf16 norms, text without padding."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TinyRun
from torch._dynamo.testing import CompileCounterWithBackend

from p2e.hypernet.layers import RMSNorm
from p2e.text import PAD_TO, TextStates
from p2e.training.data import Batch
from p2e.training.loop import Trainer
from p2e.training.step import Objective
from ray_jobs.training.engine import compile_blocks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("speed"))


def first_batch(trainer: Trainer) -> Batch:
    return trainer.source.batch(trainer.sampler.plan(0, 1)[0], trainer.sampler.widths)


def gradients(trainer: Trainer, objective: torch.nn.Module) -> list[torch.Tensor]:
    trainer.model.zero_grad()
    objective(first_batch(trainer)).loss.backward()
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "changes",
    [{"layers": 4}, {"architecture": "hyperdreambooth"}, {"ensemble": True}],
    ids=["paper", "hdb", "ensemble"],
)
def test_compiled_blocks_share_a_graph_and_compute_the_same(tiny: TinyRun, changes: dict[str, object]) -> None:
    trainer = tiny.trainer("blocks", hypernet=changes)
    known = gradients(trainer, Objective(trainer.model, trainer.config.loss))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    objective = Objective(trainer.model, trainer.config.loss)
    compile_blocks(objective, backend=counter)
    torch.testing.assert_close(gradients(trainer, objective), known)
    assert counter.frame_count >= 1
    if (
        "layers" in changes
    ):  # the first block's input is one tensor, expanded over the effects; the others share a graph
        assert counter.frame_count <= 2


def test_norms_are_not_widened_by_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU autocast makes their output float32, on a CPU it does not: seen here is that they run without it."""
    x, seen, kept = torch.randn(3, 16).bfloat16(), [], torch.nn.functional.rms_norm

    def spy(*arguments: Any) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return kept(*arguments)

    monkeypatch.setattr(torch.nn.functional, "rms_norm", spy)
    with torch.autocast("cpu", torch.bfloat16):
        y = RMSNorm(16)(x)
    assert seen == [False] and y.dtype == torch.bfloat16
    known = x.float() / x.float().square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(y.float(), known, rtol=2e-2, atol=2e-2)


@dataclasses.dataclass
class Padded:
    """An encoder that pads further."""

    inner: object
    width: int
    tokens: int

    def encode(self, prompts: Sequence[str]) -> TextStates:
        found = self.inner.encode(prompts)  # pyright: ignore[reportAttributeAccessIssue]
        missing = self.tokens - found.states.shape[1]
        pad = torch.nn.functional.pad
        return TextStates(pad(found.states, (0, 0, 0, missing)), pad(found.mask, (0, missing)))


def test_padding_that_no_prompt_needs_is_cut_off(tiny: TinyRun, tmp_path: Path) -> None:
    plain = tiny.trainer("plain")
    encoder = Padded(tiny.encoder, tiny.encoder.width, 512)
    padded = Trainer(tiny.config("padded"), tiny.base, tiny.weights, tiny.library, encoder)
    assert plain.source.text.shape[1] == 8  # it has no more
    assert padded.source.text.shape[1] == padded.source.text_mask.shape[1] == PAD_TO
    assert int(padded.source.text_mask.sum()) == int(plain.source.text_mask.sum()) > 0
    losses = [Objective(t.model, t.config.loss)(first_batch(t)).loss for t in (plain, padded)]
    torch.testing.assert_close(losses[1], losses[0])

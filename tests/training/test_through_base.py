"""The second stage's gradient is that of the base's loss, and following it lowers that loss."""

from pathlib import Path
from typing import cast

import pytest
import torch
from tiny import Z_CHANNELS, tiny_states, tiny_transformer
from tiny_training import TinyRun
from torch import Tensor, nn

from p2e.adapt.flow import Clips
from p2e.hypernet.variants import Predictor, build_hypernet
from p2e.training.data import open_source
from p2e.training.through_base import ThroughBase

EFFECTS, CLIPS = 2, 2


def through(folder: Path, regression: float = 0.0) -> ThroughBase:
    run = TinyRun(folder)
    config = run.config()
    torch.manual_seed(0)
    model = build_hypernet(config.hypernet, run.base)
    source = open_source(
        run.base, run.weights, run.library, run.encoder, cast(Predictor, model), device=torch.device("cpu"),
        dtype=torch.float32, resident_bytes=1e9,
    )  # fmt: skip
    stage = ThroughBase(model, source, tiny_transformer(run.base), EFFECTS, regression=regression)
    # The library's updates are a fiftieth of the base's weights, too little to see in a loss in single precision.
    stage.scales = [(20 * a, 20 * b) for a, b in stage.scales]
    return stage


def clips(seed: int = 3) -> Clips:
    generator = torch.Generator().manual_seed(seed)
    rows = EFFECTS * CLIPS
    x, c, noise = torch.randn(3, rows, Z_CHANNELS, 2, 4, 4, generator=generator)
    return Clips(x, c, tiny_states(rows).states, torch.rand(rows, generator=generator), noise)


def prompts(stage: ThroughBase) -> tuple[Tensor, Tensor, Tensor]:
    effects = torch.tensor(stage.source.train[:EFFECTS])
    rows = torch.tensor([stage.source.prompts[int(i)][0] for i in effects])
    return stage.source.text[rows], stage.source.text_mask[rows], effects


def loss(stage: ThroughBase, text: Tensor, mask: Tensor) -> float:
    with torch.no_grad():
        stage._fill(stage.predict(text, mask))
        return stage.base_losses(clips()).mean().item()


def test_the_gradient_is_that_of_the_bases_loss(tmp_path: Path):
    stage = through(tmp_path)
    text, mask, effects = prompts(stage)
    losses = stage.backward(text, mask, effects, clips())
    assert losses.mean().item() == pytest.approx(loss(stage, text, mask), rel=1e-5)
    parameters = [p for p in stage.model.parameters() if p.grad is not None]
    slope = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)
    assert slope > 0
    step = 0.02 / slope**0.5

    def move(by: float) -> None:
        with torch.no_grad():
            for p in parameters:
                assert p.grad is not None
                p.add_(by * p.grad / slope**0.5)

    move(step)
    above = loss(stage, text, mask)
    move(-2 * step)
    below = loss(stage, text, mask)
    assert (above - below) / (2 * step) == pytest.approx(slope**0.5, rel=0.05)


def test_following_it_lowers_the_loss_and_leaves_the_base_alone(tmp_path: Path):
    stage = through(tmp_path, regression=0.1)
    base = cast(nn.Module, stage.transformer)
    before = {name: value.clone() for name, value in base.named_parameters() if ".a" not in name and ".b" not in name}
    text, mask, effects = prompts(stage)
    first = loss(stage, text, mask)
    optimizer = torch.optim.AdamW(stage.model.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        stage.backward(text, mask, effects, clips())
        optimizer.step()
    assert loss(stage, text, mask) < 0.97 * first
    stage.close()
    after = dict(base.named_parameters())
    assert all(torch.equal(after[name.replace(".linear.", ".")], value) for name, value in before.items())
    assert not any(".linear." in name for name in after)


def test_regression_pulls_towards_the_library(tmp_path: Path):
    stage = through(tmp_path, regression=50.0)
    text, mask, effects = prompts(stage)
    optimizer = torch.optim.AdamW(stage.model.parameters(), lr=3e-3)

    def error() -> float:
        with torch.no_grad():
            return float(stage._library_loss(stage.predict(text, mask), effects))

    first = error()
    for _ in range(25):
        optimizer.zero_grad()
        stage.backward(text, mask, effects, clips())
        optimizer.step()
    assert error() < 0.8 * first

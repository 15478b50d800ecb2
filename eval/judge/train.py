"""Trains the tiny judge on the world's clips, on one GPU or CPU.

    python -m eval.judge.train runs/tiny-judge --steps 20000

It goes on from the last checkpoint in the folder. What it learns from depends on the step alone, so a run that was
broken off ends with the weights of one that was not. What it is worth is told at the end, in evaluation.json.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from eval.judge.clip_store import ClipConfig, ClipStore
from eval.judge.fixed_shape import FixedShape
from eval.judge.local_backend import model_inputs
from eval.judge.tiny import TinyConfig, build_model, build_processor
from eval.judge.tiny_score import score_tiny, shown
from eval.judge.world_data import SOURCES, draw_examples
from p2e.config import Settings
from p2e.errors import ConfigError
from p2e.files import atomic_path, write_text

__all__ = ["TrainTinyConfig", "train"]

REPORT_EVERY = 200
MAX_BYTES = 16 << 20  # of the weights in bfloat16


class TrainTinyConfig(Settings):
    """Attributes:
    batch: clips a step.
    keep_every: steps between checkpoints.
    measured: clips of each source that are looked at, in the end.
    """

    model: TinyConfig = TinyConfig(width=192, layers=8, vision_layers=4)
    clips: ClipConfig = ClipConfig()
    steps: int = Field(default=20_000, ge=1)
    batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=500, ge=0)
    keep_every: int = Field(default=1000, ge=1)
    measured: int = Field(default=512, ge=8)
    seed: int = Field(default=0, ge=0, lt=1 << 15)


def train(
    folder: str | Path, config: TrainTinyConfig, device: str | None = None, report: Callable[[str], Any] = print,
    *, drawers: int = 0, until: float = math.inf,
) -> Path | None:  # fmt: skip
    """Trains to the end and writes the model to FOLDER/model, as `vllm serve` takes it.

    Args:
        drawers: processes that draw clips ahead.
        until: time.monotonic() at which to write a checkpoint and stop, with None.

    Raises:
        ConfigError: the weights would be above 16 MB, or the folder holds another run.
    """
    folder = Path(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    processor = build_processor(config.model)
    model = build_model(config.model, processor.tokenizer, config.seed)
    if (size := 2 * sum(weight.numel() for weight in model.parameters())) > MAX_BYTES:
        raise ConfigError(f"model: its weights are {size} bytes, more than {MAX_BYTES}; make it narrower")
    fixed = FixedShape(model.train(), model_inputs(processor, shown(draw_examples(0, 1))), config.clips.tail).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=0.01, fused=device == "cuda"
    )
    step = _restore(folder, config, model, optimizer, device)
    loss_of = torch.compile(fixed, mode="reduce-overhead") if device == "cuda" else fixed
    store = ClipStore(folder / "clips", config.clips, config.model, config.seed, device, drawers)
    total, begun = torch.zeros((), device=device), time.monotonic()
    try:
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step, config)
            inputs = store.batch(step, config.batch)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = loss_of(*inputs)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.detach()
            step += 1
            if step % REPORT_EVERY == 0:
                report(f"step {step}  loss {total.item() / REPORT_EVERY:.4f}  {time.monotonic() - begun:.0f} s")
                total.zero_()
            stopping = time.monotonic() > until
            if step % config.keep_every == 0 or step == config.steps or stopping:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                with atomic_path(folder / "state.pt") as temporary:
                    torch.save(state, temporary)
            if stopping and step < config.steps:
                return None
    finally:
        store.close()
    return _finish(folder, config, model.eval(), processor)


def _finish(folder: Path, config: TrainTinyConfig, model: Any, processor: Any) -> Path:
    """Measures the model and writes it."""
    found = {source: score_tiny(model, processor, source, config.measured) for source in SOURCES[1:]}
    write_text(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def _restore(folder: Path, config: TrainTinyConfig, model: Any, optimizer: Any, device: str) -> int:
    """Takes up the checkpoint, if there is one -> steps done."""
    known = folder / "config.json"
    if known.is_file() and TrainTinyConfig.load(known) != config:
        raise ConfigError(f"{folder} holds a run with other settings; choose another folder, or remove it")
    write_text(known, config.to_json())
    if not (folder / "state.pt").is_file():
        return 0
    state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _schedule(step: int, config: TrainTinyConfig) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def main() -> None:
    import typer

    def run(
        folder: Path, steps: int = 20_000, batch: int = 64, device: str | None = None, drawers: int = 4,
        seconds: float = math.inf,
    ) -> None:  # fmt: skip
        """Trains the tiny judge, or goes on with it; after so many seconds it stops with a checkpoint."""
        config = TrainTinyConfig(steps=steps, batch=batch)
        print(train(folder, config, device, drawers=drawers, until=time.monotonic() + seconds))

    typer.run(run)


if __name__ == "__main__":
    main()

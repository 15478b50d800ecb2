"""Trains the tiny judge on the world's clips, on one GPU or CPU.

    python -m eval.judge.train runs/tiny-judge --steps 20000

It goes on from the last checkpoint in the folder. What it learns from depends on the step alone, so a run that was
broken off ends with the weights of one that was not. `evaluate` is told at the end, into evaluation.json.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from eval.judge.frames import chosen_frames
from eval.judge.parse import parse_verdict
from eval.judge.rubric import SYSTEM, effect_text
from eval.judge.tiny import TinyConfig, build_model, build_processor
from eval.judge.world_data import Example, draw_examples
from eval.metrics.base import Unscorable
from p2e.config import Settings
from p2e.errors import ConfigError
from p2e.files import atomic_path, write_text
from p2e.render.video import Clip

__all__ = ["TrainTinyConfig", "evaluate", "model_inputs", "rank_correlation", "train"]

EVALUATION_SEED = 9_100_000_001  # beyond 32 bits: no step's
MAX_BYTES = 16 << 20  # of the weights in bfloat16


class TrainTinyConfig(Settings):
    """Attributes:
    length: tokens that every example is padded to; one shape, so that a GPU compiles and plans once.
    keep_every: steps between checkpoints.
    measured: unseen clips that `evaluate` looks at.
    """

    model: TinyConfig = TinyConfig(width=192, layers=6, vision_layers=4)
    steps: int = Field(default=20_000, ge=1)
    batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=200, ge=0)
    length: int = Field(default=1024, ge=64)
    keep_every: int = Field(default=500, ge=1)
    measured: int = Field(default=512, ge=8)
    seed: int = Field(default=0, ge=0, lt=1 << 15)


def model_inputs(processor: Any, examples: Sequence[Example], length: int | None = None) -> dict[str, Any]:
    """Tensors of a batch; the same prompt, frames and times as `eval.judge.requests` sends a server.

    Args:
        length: to train on: the answers follow, `labels` is -100 wherever none stands, all rows have this length.
            None is for generation: no answers, padded at the left.

    Raises:
        ConfigError: an example is longer.
    """
    import torch

    texts, images, videos, metadata, answers = [], [], [], [], []
    for one in examples:
        frames = chosen_frames(Clip(one.clip.permute(0, 2, 3, 1).contiguous().numpy()), 16, 96)
        parts = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": effect_text(one.prompt)}]
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}]
        answer = one.verdict.model_dump_json() + "<|im_end|>"
        asked = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        texts.append(asked + (answer if length else ""))
        answers.append(processor.tokenizer(answer)["input_ids"])
        images.append(one.image)
        videos.append(torch.from_numpy(frames.pixels.copy()).permute(0, 3, 1, 2))
        told = frames.metadata
        metadata.append({name: told[name] for name in ("fps", "frames_indices", "total_num_frames", "duration")})
    processor.tokenizer.padding_side = "right" if length else "left"
    inputs = processor(
        text=texts, images=images, videos=videos, video_metadata=metadata, do_sample_frames=False, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    found = dict(inputs)
    found.pop("video_metadata", None)
    if length is None:
        return found
    if (longest := found["input_ids"].shape[1]) > length:
        raise ConfigError(f"length: {length} tokens are too few, an example has {longest}")
    blank = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    for name, value in blank.items():
        found[name] = torch.nn.functional.pad(found[name], (0, length - longest), value=value)
    labels = torch.full_like(found["input_ids"], -100)
    for row, answer in enumerate(answers):
        end = int(found["attention_mask"][row].sum())
        labels[row, end - len(answer) : end] = torch.tensor(answer)
    return {**found, "labels": labels}


def train(folder: str | Path, config: TrainTinyConfig, device: str | None = None, report: Any = print) -> Path:
    """Trains to the end and writes the model to FOLDER/model, as `vllm serve` takes it.

    Raises:
        ConfigError: the weights would be above 16 MB, or the folder holds another run.
    """
    import torch

    folder = Path(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    processor = build_processor(config.model)
    model = build_model(config.model, processor.tokenizer, config.seed).to(device).train()
    if (size := 2 * sum(weight.numel() for weight in model.parameters())) > MAX_BYTES:
        raise ConfigError(f"model: its weights are {size} bytes, more than {MAX_BYTES}; make it narrower")
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    step = _restore(folder, config, model, optimizer, device)
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config)
        examples = draw_examples((config.seed << 16) * (1 << 16) + step, config.batch)
        inputs = {name: value.to(device) for name, value in model_inputs(processor, examples, config.length).items()}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**inputs).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0 or step == config.steps:
            report(f"step {step}  loss {loss.item():.4f}")
        if step % config.keep_every == 0 or step == config.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            with atomic_path(folder / "state.pt") as temporary:
                torch.save(state, temporary)
    found = evaluate(model.eval(), processor, config.measured)
    write_text(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def _restore(folder: Path, config: TrainTinyConfig, model: Any, optimizer: Any, device: str) -> int:
    """Takes up the checkpoint, if there is one -> steps done."""
    import torch

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
    """Linear warm-up, then a cosine to a twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def evaluate(model: Any, processor: Any, count: int, batch: int = 16) -> dict[str, Any]:
    """On effects, wordings and scenes that training never showed.

    Returns:
        spearman: of the total with the oracle's fidelity; answered: share of clips with a verdict; orders: in what
        share of pairs the truth is above the rest; fails_hard: share, by kind.
    """
    import torch

    examples = draw_examples(EVALUATION_SEED, count, unseen=True)
    totals: list[tuple[Example, int, bool]] = []
    for start in range(0, count, batch):
        part = examples[start : start + batch]
        inputs = {name: value.to(model.device) for name, value in model_inputs(processor, part).items()}
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=96, do_sample=False)
        texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for one, text in zip(part, texts, strict=True):
            try:
                verdict = parse_verdict(text)
            except Unscorable:
                continue
            totals.append((one, verdict.total, verdict.hard_fail))
    of_kind: dict[str, list[tuple[int, bool]]] = {}
    for one, total, failed in totals:
        of_kind.setdefault(one.kind, []).append((total, failed))
    orders = {}
    for worse in ("wrong", "still", "noise"):
        pairs = [a > b for a, _ in of_kind.get("truth", []) for b, _ in of_kind.get(worse, [])]
        orders[f"truth > {worse}"] = sum(pairs) / len(pairs) if pairs else None
    fails = {kind: sum(failed for _, failed in rows) / len(rows) for kind, rows in of_kind.items()}
    return {
        "spearman": rank_correlation([one.fidelity for one, *_ in totals], [total for _, total, _ in totals]),
        "answered": len(totals) / count, "orders": orders, "fails_hard": fails,
    }  # fmt: skip


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, ties sharing their mean rank; None of fewer than two, or where one side has no order."""
    import numpy as np

    if len(first) < 2:
        return None
    ranks = []
    for values in (np.asarray(first, float), np.asarray(second, float)):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    import typer

    def run(folder: Path, steps: int = 20_000, batch: int = 64, device: str | None = None) -> None:
        """Trains the tiny judge, or goes on with it."""
        print(train(folder, TrainTinyConfig(steps=steps, batch=batch), device))

    typer.run(run)


if __name__ == "__main__":
    main()

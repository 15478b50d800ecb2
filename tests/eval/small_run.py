"""A run's folder as a sweep leaves it, made of small clips and made-up scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.run_files import ClipRow, Score, lines_of
from eval.suite import Suite
from p2e.render.video import Clip, write_mp4

METHODS = (("Base", "base"), ("LoRA", "lora"), ("Zero-shot", "zero"), ("Mean LoRA", "mean"))
# What each method's clips are worth, before effect and scene add to it.
LEVELS = {"Base": 10.0, "LoRA": 80.0, "Zero-shot": 60.0, "Mean LoRA": 20.0}


@dataclass(frozen=True)
class SmallRun:
    """A run of 4 methods, 5 effects (3 training, 2 OOD), 2 scenes.

    Attributes:
        values: (method, effect, scene, metric) -> score.
    """

    folder: Path
    suite: Suite
    values: dict[tuple[str, str, str, str], float]


def small_run(folder: Path, **changes: Any) -> SmallRun:
    """Writes one.

    Args:
        changes: `words` for names and prompts instead of plain ones; `drop` and `fail`: sets of (method, effect, scene,
            metric) without a score, and with an error for one; `unrendered`: sets of (method, effect, scene).
    """
    words = changes.get("words", {})
    effects = [f"effect_{number}" for number in range(5)]
    suite = Suite.parse({
        "name": words.get("name", "small"), "base": "world", "reference": "LoRA", "baseline": "Base",
        "effects": [{"name": name, "prompt": words.get("prompt", f"it does {name}"),
                     "category": "mood" if at < 3 else "motion", "split": "train" if at < 3 else "ood"}
                    for at, name in enumerate(effects)],
        "scenes": [{"id": f"s{n}", "category": words.get("category", "single"), "image": f"world:{n}"}
                   for n in range(2)],
        "methods": [{"title": title, "column": column} for title, column in METHODS],
        "metrics": [{"name": "clip_score"}, {"name": "mean_motion"}], "judge": {"backend": "openai"},
    })  # fmt: skip
    (folder / "clips").mkdir(parents=True)
    (folder / "scores").mkdir()
    (folder / "suite.json").write_text(suite.to_json())
    rows, scores, values = [], [], {}
    for m, (method, _) in enumerate(METHODS):
        for e, effect in enumerate(effects):
            for s, scene in enumerate(suite.scenes):
                cell, key = (method, effect, scene.id), f"{m}{e}{s}"
                if cell in changes.get("unrendered", ()):
                    rows.append(row(cell, None, words.get("error", "TypeError: no such")))
                    continue
                rows.append(row(cell, key))
                frames = np.full((5, 32, 32, 3), 20 + 40 * m, np.uint8)
                frames[:, : 4 * (e + 1), : 8 * (s + 1)] = 200
                write_mp4(folder / "clips" / f"{key}.mp4", Clip(frames))
                made = {
                    "clip_score": LEVELS[method] / 10 + e,
                    "mean_motion": 1.0 + m,
                    "judge": LEVELS[method] + 2 * e + s,
                }
                for metric, value in made.items():
                    whole = (*cell, metric)
                    if whole in changes.get("drop", ()):
                        continue
                    failed = whole in changes.get("fail", ())
                    values |= {} if failed else {whole: value}
                    scores.append(
                        Score(key=f"{key}-{metric}", clip=key, effect=effect, metric=metric, recipe=f"{metric}/1",
                              value=None if failed else value, error="refused: no" if failed else "",
                              details={"reason": words.get("reason", f"it {effect}s")} if metric == "judge" else {})
                    )  # fmt: skip
    (folder / "clips.jsonl").write_text(lines_of(rows))
    (folder / "scores" / "a.jsonl").write_text(lines_of(scores))
    return SmallRun(folder, suite, values)


def row(cell: tuple[str, str, str], clip: str | None, error: str = "") -> ClipRow:
    method, effect, scene = cell
    return ClipRow(
        method=method, effect=effect, scene=scene, prompt=effect, image=f"images/{scene}.png", clip=clip,
        error="" if clip else error,
    )  # fmt: skip

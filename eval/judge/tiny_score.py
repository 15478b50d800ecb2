"""What a tiny judge is worth: its verdicts on the world's clips against the oracle's."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from eval.judge.frames import chosen_frames
from eval.judge.local_backend import texts_of
from eval.judge.parse import parse_verdict
from eval.judge.requests import Shown
from eval.judge.tiny import SIDE
from eval.judge.verdict import Verdict
from eval.judge.world_data import Example, Source, draw_examples
from eval.metrics.base import Unscorable
from eval.metrics.sampling import FRAMES
from p2e.render.video import Clip

__all__ = ["answers", "rank_correlation", "score_tiny", "shown"]

EVALUATION_SEED = 9_100_000_001  # beyond 32 bits and below training's seeds: no step's
NEW_TOKENS = 160


def shown(examples: Sequence[Example]) -> list[Shown]:
    """Drawn clips as questions."""
    found = []
    for one in examples:
        image = Image.fromarray(one.image.cpu().permute(1, 2, 0).contiguous().numpy())
        clip = Clip(one.clip.cpu().permute(0, 2, 3, 1).contiguous().numpy())
        found.append(Shown(image, chosen_frames(clip, FRAMES, SIDE), one.prompt))
    return found


def answers(model: Any, processor: Any, examples: Sequence[Example], batch: int = 64) -> list[Verdict | None]:
    """Verdicts, the likeliest token each time; None where an answer is none."""
    found: list[Verdict | None] = []
    for start in range(0, len(examples), batch):
        for text, finish, _ in texts_of(model, processor, shown(examples[start : start + batch]), NEW_TOKENS):
            try:
                found.append(parse_verdict(text, finish))
            except Unscorable:
                found.append(None)
    return found


def score_tiny(model: Any, processor: Any, source: Source, count: int, seed: int = EVALUATION_SEED) -> dict[str, Any]:
    """Verdicts on drawn clips.

    Returns:
        spearman: of the total with the oracle's fidelity; answered: share of clips with a verdict; effect_error: mean
        error of the points for the effect; orders: in what share of pairs the truth is above the rest; fails_hard:
        share, by kind.
    """
    examples = draw_examples(seed, count, source)
    told = answers(model, processor, examples)
    rows = [(one, verdict) for one, verdict in zip(examples, told, strict=True) if verdict is not None]
    by_kind: dict[str, list[Verdict]] = {}
    for one, verdict in rows:
        by_kind.setdefault(one.kind, []).append(verdict)
    orders = {}
    for worse in ("wrong", "still", "noise"):
        pairs = [a.total > b.total for a in by_kind.get("truth", []) for b in by_kind.get(worse, [])]
        orders[f"truth > {worse}"] = sum(pairs) / len(pairs) if pairs else None
    errors = [abs(verdict.effect - one.verdict.effect) for one, verdict in rows]
    return {
        "spearman": rank_correlation([one.fidelity for one, _ in rows], [verdict.total for _, verdict in rows]),
        "answered": len(rows) / count,
        "effect_error": sum(errors) / len(errors) if errors else None,
        "orders": orders,
        "fails_hard": {kind: sum(v.hard_fail for v in found) / len(found) for kind, found in by_kind.items()},
    }


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

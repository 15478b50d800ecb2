"""How sure a prediction should be of a prompt that resembles nothing: rules tried where the truth is known.

    python -m eval.studies.hidden_anchors --world DIR [--checkpoint DIR/checkpoint] [--every N] [--scenes 8] [--out F]

DIR is a world with base/ and text/ (`p2e world rebuild`). A training effect whose own anchor is hidden stands for an
effect that training never saw. Each rule says for a sentence v which directions the network reads and how strongly
their updates count; it is scored on training effects with their anchor hidden and with it (wording before last, half of
the scenes), and on all effects by their last wording.

Shapes: N prompts, F anchors, K directions, D width.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.studies.rendered import Renders, joined, open_study, study_parser
from p2e.bases import WeightReader
from p2e.files import write_text
from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.text import CHANCE, FAMILIAR, MEANT, Components, TextInput
from p2e.lora.lora import Lora
from p2e.predict import predict_loras
from p2e.text import TextStates
from p2e.world.effects import EFFECTS, EffectSpec
from p2e.world.hypernet import KeptEncoder
from p2e.world.makers import WORLD

SHARP = 0.03  # temperature of the pursuit
MIXED, NEGLIGIBLE = 6, 0.1  # anchors of a mixture at most, and the least weight in it, of the largest
HIDDEN = -9.0  # a cosine that no softmax hears
# `mix` adds up the predictions for the nearest anchors instead of predicting once between them.
RULES: tuple[dict[str, Any], ...] = (
    {}, {"components": 1}, {"temperature": 0.05}, {"hedge": 4.0}, {"hedge": 8.0}, {"mix": True},
    {"mix": True, "temperature": 0.05}, {"mix": True, "temperature": 0.08}, {"mix": True, "hedge": 4.0},
)  # fmt: skip


class Rules:
    """The anchors of a checkpoint, and what its training prompts say of them."""

    def __init__(self, text: TextInput, states: Mapping[str, TextStates], trained: Sequence[EffectSpec]) -> None:
        self.text, self.names = text, [spec.name for spec in trained]
        seen = text._vectors(joined(dict(states), [(s.name, i) for s in trained for i in range(len(s.train_prompts))]))
        self.familiar = torch.quantile((seen @ text.centres.mT).amax(1), FAMILIAR)
        ratio = self.pursuit(seen, None)[2]
        self.low, self.high = torch.quantile(ratio, torch.tensor([CHANCE, MEANT]))

    def cosines(self, vectors: Tensor, hidden: Tensor | None) -> Tensor:
        """To the anchors, [N, F], those at `hidden` [N] out of hearing."""
        found = F.normalize(vectors, dim=-1) @ self.text.centres.mT
        return found if hidden is None else found.scatter(1, hidden[:, None], HIDDEN)

    def pursuit(self, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines [N, F], the second direction [N, D] and its share [N], as `TextInput` has them."""
        cosine = self.cosines(v, hidden)
        first = F.normalize(torch.softmax(cosine / SHARP, -1) @ self.text.centres, dim=-1)
        left = v - (first * v).sum(-1, keepdim=True) * first
        second = torch.softmax(self.cosines(left, hidden) / SHARP, -1) @ self.text.centres
        both = torch.stack([first, F.normalize(second, dim=-1)], 1)
        c = torch.linalg.solve(both @ both.mT + 1e-4 * torch.eye(2), both @ v[..., None])[..., 0]
        return cosine, both[:, 1], c[:, 1] / c[:, 0].clamp(min=1e-6)

    def read(
        self, v: Tensor, hidden: Tensor | None, *, temperature: float = SHARP, hedge: float = 0.0, mix: bool = False,
        components: int = 2,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Directions [N, K, D] and strengths [N, K]."""
        cosine, second, ratio = self.pursuit(v, hidden)
        strange = self.familiar / cosine.amax(1, keepdim=True).clamp(min=0.05)
        weights = torch.softmax(cosine / (temperature * strange.clamp(min=1) ** hedge), -1)
        if mix:
            strength, nearest = weights.topk(MIXED, 1)
            strength = F.normalize(strength * (strength >= NEGLIGIBLE * strength[:, :1]), p=1, dim=1)
            directions = self.text.centres[nearest]
        else:
            directions, strength = F.normalize(weights @ self.text.centres, dim=-1)[:, None], torch.ones(len(v), 1)
        if components == 2:
            share = ((ratio - self.low) / (self.high - self.low)).clamp(0, 1)
            directions = torch.cat([directions, second[:, None]], 1)
            strength = torch.cat([strength, share[:, None]], 1)
        return directions, strength


def predicted(
    checkpoint: Checkpoint, weights: WeightReader, states: dict[str, TextStates], rules: Rules,
    specs: Sequence[EffectSpec], wording: int, hide: bool, rule: dict[str, Any],
) -> list[Lora]:  # fmt: skip
    text = rules.text
    vectors = text._vectors(joined(states, [(spec.name, wording) for spec in specs]))
    hidden = torch.tensor([rules.names.index(spec.name) for spec in specs]) if hide else None
    directions, strength = rules.read(vectors, hidden, **rule)
    read = F.rms_norm(directions.flatten(0, 1), directions.shape[-1:], eps=1e-12)[:, None]
    found = Components(TextStates(read, torch.ones(len(read), 1, dtype=torch.bool)), strength)
    text.components = lambda _: found  # pyright: ignore[reportAttributeAccessIssue]
    prompts = [spec.prompts[wording] for spec in specs]
    return predict_loras(checkpoint, weights, prompts, KeptEncoder(states))


def main() -> None:
    parser = study_parser(__doc__, scenes=8)
    parser.add_argument("--every", type=int, default=1, help="take every so manieth effect")
    given = parser.parse_args()
    world, checkpoint = open_study(given)
    states, weights = dict(world.states), WeightReader(WORLD, given.world / "base")
    trained = [spec for spec in EFFECTS if spec.split == "train"]
    rules = Rules(checkpoint.model.text_input, states, trained)  # pyright: ignore[reportArgumentType]
    some, everything = trained[:: given.every], EFFECTS[:: given.every]
    half, whole = (Renders(world, scenes) for scenes in (max(1, given.scenes // 2), given.scenes))
    result: dict[str, dict[str, dict[str, float]]] = {}
    for rule in RULES:
        row: dict[str, dict[str, float]] = {}
        for name, render, specs, wording, hide in (
            ("hidden", half, some, -2, True), ("trained", half, some, -2, False), ("all", whole, everything, -1, False),
        ):  # fmt: skip
            loras = predicted(checkpoint, weights, states, rules, specs, wording, hide, rule)
            scores = render(specs, loras, wording)
            row[name] = dict(zip([spec.name for spec in specs], scores, strict=True))
        result[json.dumps(rule)] = row
        hidden = torch.tensor(list(row["hidden"].values()))
        splits = {
            split: [row["all"][spec.name] for spec in everything if spec.split == split]
            for split in ("train", "heldout", "ood")
        }
        means = {split: round(sum(values) / max(len(values), 1), 3) for split, values in splits.items()}
        print(
            f"{rule}: hidden {hidden.mean():.3f} (not under -1: {hidden.clamp(min=-1).mean():.3f}), {means}", flush=True
        )
        if given.out:
            write_text(given.out, json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

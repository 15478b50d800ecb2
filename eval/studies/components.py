"""Prompts that ask for two effects: what matching pursuit hears of them, and what sums of updates are worth.

    python -m eval.studies.components --world DIR [--checkpoint DIR/checkpoint] [--scenes 2] [--out FILE.json]

DIR is a world with base/, library/ and text/ (`p2e world rebuild`). Written are, of the wordings of composed effects,
the shares in which one or both parts are among the first two anchors of the pursuit; the shares of a second component
in prompts of one effect and of two; and the fidelity, with the last wording, of the trained LoRAs of both parts (their
sum, their mean) and of predictions with one and two components, on composed effects and on every fifth training effect.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch

from eval.studies.rendered import Renders, joined, open_study, study_parser
from p2e.bases import WeightReader
from p2e.files import write_text
from p2e.hypernet.text import TextInput
from p2e.lora.formats import read_lora
from p2e.lora.lora import Lora
from p2e.predict import predict_loras
from p2e.text import TextStates
from p2e.world.controls import weighed_lora
from p2e.world.effects import EFFECTS, EffectSpec
from p2e.world.hypernet import KeptEncoder
from p2e.world.makers import WORLD
from p2e.world.table.composed import PARTS
from p2e.world.table.spec import UNSEEN

RANK = 32
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def heard(text: TextInput, states: dict[str, TextStates], trained: Sequence[str]) -> dict[str, Any]:
    """What two steps of pursuit find."""
    composed = [(name, i) for name in PARTS for i in range(len(states[name].mask))]
    directions, shares = text._pursuit(text._vectors(joined(states, composed)), 2)
    nearest = (directions @ text.centres.mT).argmax(-1).tolist()
    hits = [len({trained[j] for j in row} & set(PARTS[n])) for (n, _), row in zip(composed, nearest, strict=True)]
    single = [(name, i) for name in trained for i in range(len(states[name].mask) - UNSEEN)]
    alone = text._pursuit(text._vectors(joined(states, single)), 2)[1]
    return {
        "wordings": len(hits), "both": sum(h == 2 for h in hits) / len(hits),
        "one or both": sum(h > 0 for h in hits) / len(hits), "second_share_quantiles": list(QUANTILES),
        "composed": torch.quantile(shares[:, 0], torch.tensor(QUANTILES)).tolist(),
        "one effect": torch.quantile(alone[:, 0], torch.tensor(QUANTILES)).tolist(),
    }  # fmt: skip


def main() -> None:
    given = study_parser(__doc__).parse_args()
    world, checkpoint = open_study(given)
    states, encoder = dict(world.states), KeptEncoder(world.states)
    weights = WeightReader(WORLD, given.world / "base")
    trained = [spec.name for spec in EFFECTS if spec.split == "train"]
    text: TextInput = checkpoint.model.text_input  # pyright: ignore[reportAssignmentType]
    result: dict[str, Any] = {"heard": heard(text, states, trained), "fidelity": {}}
    print(json.dumps(result["heard"], indent=1), flush=True)
    render = Renders(world, given.scenes)

    def predicted(specs: Sequence[EffectSpec], single: bool) -> list[Lora]:
        kept = text.config
        if single:
            text.config = kept.model_copy(update={"components": 1})
        try:
            return predict_loras(checkpoint, weights, [spec.prompts[-1] for spec in specs], encoder)
        finally:
            text.config = kept

    def both(specs: Sequence[EffectSpec], weight: float) -> list[Lora]:
        folder = given.world / "library" / "loras"
        parts = [[read_lora(folder / f"{n}.safetensors", WORLD) for n in PARTS[s.name]] for s in specs]
        return [weighed_lora(pair, [weight, weight], RANK) for pair in parts]

    composed = [spec for spec in EFFECTS if spec.name in PARTS]
    known = [spec for spec in EFFECTS if spec.split == "train"][::5]
    columns = {
        "composed: sum of the parts' LoRAs": (composed, both(composed, 1.0)),
        "composed: mean of the parts' LoRAs": (composed, both(composed, 0.5)),
        "composed: predicted, one component": (composed, predicted(composed, single=True)),
        "composed: predicted": (composed, predicted(composed, single=False)),
        "training: predicted, one component": (known, predicted(known, single=True)),
        "training: predicted": (known, predicted(known, single=False)),
    }
    for name, (specs, loras) in columns.items():
        scores = render(specs, loras)
        result["fidelity"][name] = dict(zip([s.name for s in specs], scores, strict=True))
        print(f"{name}: {sum(scores) / len(scores):.3f}", flush=True)
    if given.out:
        write_text(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Where an update counts: LoRAs cut to the directions in which the base is most sensitive.

    python -m eval.studies.curvature --world DIR [--checkpoint DIR/checkpoint] [--scenes 2] [--out FILE.json]

DIR is a world with base/, library/, text/ and moments/ (`p2e world rebuild`). Every fifth training effect's LoRA is
cut, at each site, to a share of the input and of the output directions, those of the largest second moments. Written
are the shares of the update's square and of its curvature energy tr(G dW C dW^T) that the cut loses, and the fidelity
of what is left; the participation ratios of the moments, (sum of eigenvalues)^2 / sum of their squares; and the
relative squared errors of a checkpoint's predictions in the metrics of power 0 (Frobenius), 0.5 and 1, by seen and
unseen wordings.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.studies.rendered import Renders, open_study, study_parser
from p2e.bases import WeightReader
from p2e.config import MetricConfig
from p2e.files import SafetensorsFile, write_text
from p2e.lora.formats import read_lora
from p2e.lora.lora import Factors, Lora
from p2e.predict import predict_loras
from p2e.training.metric import read_metric
from p2e.world.effects import EFFECTS
from p2e.world.hypernet import KeptEncoder
from p2e.world.makers import WORLD

SHARES = (1.0, 0.5, 0.25)
Moments = Mapping[str, tuple[Tensor, Tensor]]  # site key -> C [d_in, d_in], G [d_out, d_out]


def square(x: Factors, left: Tensor | None = None, right: Tensor | None = None) -> float:
    """tr(G dW C dW^T); without moments the square of the Frobenius norm."""
    a, b = x.a.float(), x.b.float()
    inner = a @ a.mT if right is None else a @ right @ a.mT
    outer = b.mT @ b if left is None else b.mT @ left @ b
    return float((inner * outer).sum())


def cut(lora: Lora, moments: Moments, share: float) -> Lora:
    """The update between the most energetic directions, `share` of them on either side."""
    kept = {}
    for key, x in lora.factors.items():
        c, g = (torch.linalg.eigh(m)[1] for m in moments[key])
        c, g = c[:, -round(share * len(c)) :], g[:, -round(share * len(g)) :]
        kept[key] = Factors(x.a.float() @ c @ c.mT, g @ (g.mT @ x.b.float()))
    return Lora(lora.base, kept)


def lost(whole: Lora, part: Lora, moments: Moments) -> tuple[float, float]:
    """Shares of the square and of the curvature energy, over all sites, that the cut takes away."""
    totals = [0.0] * 4
    for key, x in whole.factors.items():
        y, (c, g) = part.factors[key], moments[key]
        rest = Factors(torch.cat([x.a.float(), y.a]), torch.cat([x.b.float(), -y.b], 1))
        # Sites differ in the scale of their moments, which means nothing across them.
        c, g = c / c.diagonal().mean(), g / g.diagonal().mean()
        for i, value in enumerate((square(rest), square(x), square(rest, g, c), square(x, g, c))):
            totals[i] += value
    return totals[0] / totals[1], totals[2] / totals[3]


def errors(predicted: Lora, target: Lora, metric: Mapping[str, tuple[Tensor, Tensor, float]] | None) -> float:
    """Weighed mean over the sites of |dW^ - dW|^2 / |dW|^2 in a metric."""
    total = weights = 0.0
    for key, x in target.factors.items():
        y, weight = predicted.factors[key], 1.0
        parts = [Factors(f.a.float(), f.b.float()) for f in (x, y)]
        if metric is not None:
            right, left, weight = metric[key]
            parts = [Factors(f.a @ right, left @ f.b) for f in parts]
        x, y = parts
        rest = Factors(torch.cat([y.a, x.a]), torch.cat([y.b, -x.b], 1))
        total, weights = total + weight * square(rest) / square(x), weights + weight
    return total / weights


def metric_of(world: Path, power: float) -> dict[str, tuple[Tensor, Tensor, float]]:
    shapes = list(WORLD.shapes.values())
    config = MetricConfig(moments=str(world / "moments" / "moments.safetensors"), power=power)
    found = {}
    for sites, metric in zip(shapes, read_metric(config, WORLD.name, shapes), strict=True):
        for i, site in enumerate(sites):
            found[site.key] = (metric.input[i], metric.output[i], float(metric.weight[i]))
    return found


def participation(matrix: Tensor) -> float:
    return float(matrix.trace() ** 2 / matrix.square().sum())


def main() -> None:
    given = study_parser(__doc__).parse_args()
    world, checkpoint = open_study(given)
    specs = [spec for spec in EFFECTS if spec.split == "train"][::5]
    library = [read_lora(given.world / "library" / "loras" / f"{s.name}.safetensors", WORLD) for s in specs]
    with SafetensorsFile(given.world / "moments" / "moments.safetensors") as file:
        moments = {s.key: (file.read(f"{s.key}.input"), file.read(f"{s.key}.output")) for s in WORLD.sites}
    sides = list(zip(*moments.values(), strict=True))
    result: dict[str, Any] = {
        "participation": [sum(participation(m) for m in side) / len(side) for side in sides], "cuts": {}, "errors": {},
    }  # fmt: skip
    render = Renders(world, given.scenes)
    for share in SHARES:
        parts = library if share == 1 else [cut(lora, moments, share) for lora in library]
        gone = [lost(a, b, moments) for a, b in zip(library, parts, strict=True)]
        scores = render(specs, parts)
        row = [sum(values) / len(values) for values in (*zip(*gone, strict=True), scores)]
        result["cuts"][str(share)] = dict(zip(("square lost", "energy lost", "fidelity"), row, strict=True))
        print(f"share {share}: {result['cuts'][str(share)]}", flush=True)
    weights, encoder = WeightReader(WORLD, given.world / "base"), KeptEncoder(world.states)
    for wording, number in (("seen", 0), ("unseen", -1)):
        predicted = predict_loras(checkpoint, weights, [s.prompts[number] for s in specs], encoder)
        for power in (0.0, 0.5, 1.0):
            metric = metric_of(given.world, power) if power else None
            found = sorted(errors(p, t, metric) for p, t in zip(predicted, library, strict=True))
            middle = found[len(found) // 2]
            result["errors"][f"{wording}, power {power}"] = {"mean": sum(found) / len(found), "median": middle}
            print(f"{wording} wording, power {power}: {result['errors'][f'{wording}, power {power}']}", flush=True)
    if given.out:
        write_text(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

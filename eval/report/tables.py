"""The tables of a report, as figures; `eval.report.text` and `eval.report.page` print them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.report.findings import Coverage, Findings, Selection
from eval.report.people import People, people
from eval.world.statistics import Array, Estimate, mean_of, share_of
from p2e.errors import InputError

__all__ = ["SPLITS", "Figure", "Report", "Row", "Table", "build", "focus_of"]

SPLITS = {"train": "Training effects", "heldout": "Held-out effects", "ood": "OOD effects"}
SHARED = ("oracle", "judge")  # of which a share of the reference's gain says something


@dataclass(frozen=True)
class Figure:
    """A mean over effects with its interval.

    Attributes:
        estimate: None where too few of the clips have a score, or none has.
        effects: how many it is a mean of.
        coverage: of the clips it is of.
        better: of a difference, the share of effects on which it is positive.
    """

    estimate: Estimate | None
    effects: int
    coverage: Coverage
    better: float = math.nan


@dataclass(frozen=True)
class Row:
    """A method, and its figure of each metric."""

    method: str
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Table:
    """Rows of one group of effects or scenes.

    Attributes:
        kind: "mean", "difference" or "share".
        group: what the rows are of, such as a split.
        clips: of one method.
    """

    kind: str
    title: str
    group: str
    effects: int
    clips: int
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """All tables of a run.

    Attributes:
        focus: the method whose differences from the others are given.
        categories: main tables of groups of effects, and of scenes.
        people: what people prefer; None where nobody was asked.
    """

    findings: Findings
    focus: str
    main: tuple[Table, ...]
    differences: tuple[Table, ...]
    shares: tuple[Table, ...]
    categories: tuple[Table, ...]
    people: People | None


def focus_of(findings: Findings, wanted: str | None = None) -> str:
    """The method that the others are compared with: the one asked for, else the zero-shot one, else the last.

    Raises:
        InputError: the run has no such method.
    """
    if wanted is not None:
        if wanted not in findings.methods:
            raise InputError(f"the run has no method {wanted!r}; its methods are {', '.join(findings.methods)}")
        return wanted
    zero = [method.title for method in findings.suite.methods if (method.column or "").split(":")[0] == "zero"]
    return (zero or list(findings.methods))[-1]


def build(findings: Findings, focus: str | None = None) -> Report:
    """Computes them.

    Raises:
        InputError: the run has no method of that name.
    """
    chosen = focus_of(findings, focus)
    splits = {SPLITS[split]: Selection(places) for split, places in findings.splits().items()}
    main = tuple(_means(findings, group, part) for group, part in splits.items())
    differences = tuple(
        _table(findings, "difference", f"{chosen} less each other method", group, part, findings.metrics, others)
        for group, part in splits.items()
        if (others := [m for m in findings.methods if m != chosen])
    )
    reference, baseline = findings.suite.reference, findings.suite.baseline
    metrics = [name for name in SHARED if name in findings.metrics]
    shares = ()
    if reference is not None and baseline is not None and metrics:
        title = f"Share of what {reference} gains over {baseline}"
        others = [m for m in findings.methods if m not in (reference, baseline)]
        shares = tuple(_table(findings, "share", title, g, part, metrics, others) for g, part in splits.items())
    categories = tuple(_means(findings, group, part) for group, part in _groups(findings).items())
    return Report(findings, chosen, main, differences, shares, categories, people(findings))


def _groups(findings: Findings) -> dict[str, Selection]:
    """Categories of effects and of scenes, where there is more than one."""
    found = {}
    for what, names in (
        ("effects", [effect.category for effect in findings.suite.effects]),
        ("scenes", [scene.category for scene in findings.suite.scenes]),
    ):
        kinds = [name for name in dict.fromkeys(names) if name]
        for kind in kinds if len(kinds) > 1 else ():
            places = [place for place, name in enumerate(names) if name == kind]
            found[f"{what}: {kind}"] = Selection(places) if what == "effects" else Selection(scenes=places)
    return found


def _means(findings: Findings, group: str, part: Selection) -> Table:
    return _table(findings, "mean", "Methods", group, part, findings.metrics, findings.methods)


def _table(
    findings: Findings, kind: str, title: str, group: str, part: Selection, metrics: Sequence[str],
    methods: Sequence[str],
) -> Table:  # fmt: skip
    focus = title.removesuffix(" less each other method")
    rows = []
    for method in methods:
        figures = {}
        for metric in metrics:
            if kind == "mean":
                figures[metric] = _figure(findings, metric, [method], part, findings.per_effect(metric, method, part))
            elif kind == "difference":
                values = findings.differences(metric, focus, method, part)
                figures[metric] = _figure(findings, metric, [method, focus], part, values, signed=True)
            else:
                figures[metric] = _share(findings, metric, method, part)
        rows.append(Row(method, figures))
    effects = len(findings.suite.effects if part.effects is None else part.effects)
    scenes = len(findings.suite.scenes if part.scenes is None else part.scenes)
    return Table(kind, title, group, effects, effects * scenes, tuple(metrics), tuple(rows))


def _figure(
    findings: Findings, metric: str, methods: Sequence[str], part: Selection, values: Array, signed: bool = False
) -> Figure:
    coverage = findings.coverage(metric, methods, part)
    if not values.size or coverage.share < findings.threshold:
        return Figure(None, len(values), coverage)
    return Figure(mean_of(values), len(values), coverage, float(np.mean(values > 0)) if signed else math.nan)


def _share(findings: Findings, metric: str, method: str, part: Selection) -> Figure:
    """(mean(method) - mean(baseline)) / (mean(reference) - mean(baseline)), over the effects that have all three."""
    names = (method, findings.suite.reference or "", findings.suite.baseline or "")
    columns = []
    for name in names:
        cells = findings.cells(metric, name, part)
        counts = np.isfinite(cells).sum(1)
        columns.append(np.where(counts > 0, np.nansum(cells, 1) / np.maximum(counts, 1), np.nan))
    whole = np.isfinite(np.stack(columns)).all(0)
    coverage = findings.coverage(metric, names, part)
    if not whole.any() or coverage.share < findings.threshold:
        return Figure(None, int(whole.sum()), coverage)
    own, reference, base = (column[whole] for column in columns)
    return Figure(share_of(own, reference, base), int(whole.sum()), coverage)

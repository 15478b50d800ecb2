"""A report as Markdown and CSV. Names and words come from a run, so they are made harmless first."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

from eval.report.findings import Findings
from eval.report.people_text import people_figures, people_sheets
from eval.report.tables import Figure, Report, Table

__all__ = ["as_csv", "as_markdown", "notes", "scores_csv", "shown", "title_of"]

DECIMALS = {"oracle": 3, "clip_score": 2, "first_frame": 1}
TITLES = {
    "clip_score": "CLIP score", "aesthetic": "aesthetic", "motion_smoothness": "smoothness", "mean_motion": "motion",
    "blend_smoothness": "smoothness by blending", "moving_share": "moving pixels, %", "first_frame": "first frame, dB",
    "oracle": "fidelity", "judge": "judge, total", "judge.effect": "judge, effect", "judge.context": "judge, context",
    "judge.temporal": "judge, temporal",
}  # fmt: skip


def title_of(metric: str) -> str:
    return TITLES.get(metric, metric)


def shown(figure: Figure, metric: str, kind: str) -> tuple[str, str]:
    """A figure, and its interval or why it is missing, as text."""
    if figure.estimate is None or math.isnan(figure.estimate.value):
        if figure.coverage.scored == 0:
            return "-", "no scores"
        if figure.estimate is None and figure.coverage.share < 1:
            return "-", f"{figure.coverage.scored} of {figure.coverage.total} scored"
        return "-", "no gain to share"
    places, sign = DECIMALS.get(metric, 1), "+" if kind == "difference" else ""

    def number(value: float) -> str:
        return f"{value:.0%}" if kind == "share" else f"{value:{sign}.{places}f}"

    estimate = figure.estimate
    spread = "" if math.isnan(estimate.low) else f"{number(estimate.low)} to {number(estimate.high)}"
    if kind == "difference":
        spread = f"{spread}; better on {figure.better:.0%}" if spread else f"better on {figure.better:.0%}"
    return number(estimate.value), spread


def as_markdown(report: Report) -> str:
    """All tables."""
    findings = report.findings
    parts = [f"# {_plain(findings.suite.name)}", *notes(findings)]
    for table in (*report.main, *report.differences, *report.shares, *report.categories):
        parts += [f"## {_plain(table.title)}: {_plain(table.group)}", _markdown(table)]
    for sheet in people_sheets(report.people, title_of):
        head, *lines = [[_plain(text) for text in line] for line in (sheet.head, *sheet.rows)]
        parts += [f"## {sheet.title}", *map(_plain, sheet.notes), _rows([head, ["---"] * len(head), *lines])]
    return "\n\n".join([*parts, "## Recipes", "\n".join(f"- `{_plain(r)}`" for r in recipes(findings))]) + "\n"


def _markdown(table: Table) -> str:
    lines = [["method", *map(title_of, table.metrics)], ["---"] * (len(table.metrics) + 1)]
    for row in table.rows:
        texts = [shown(row.figures[metric], metric, table.kind) for metric in table.metrics]
        lines.append([_plain(row.method), *(f"{value} ({spread})" if spread else value for value, spread in texts)])
    return f"{table.effects} effects, {table.clips} clips a method; 95% intervals over effects.\n\n{_rows(lines)}"


def _rows(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def notes(findings: Findings) -> list[str]:
    """Sentences on how much of the run there is."""
    suite = findings.suite
    wanted = len(suite.methods) * len(suite.effects) * len(suite.scenes)
    found = [
        f"{len(suite.methods)} methods, {len(suite.effects)} effects, {len(suite.scenes)} scenes: {wanted} clips, "
        f"{sum(row.clip is not None for row in findings.clips.values())} rendered."
    ]
    for metric in findings.metrics:
        coverage = findings.coverage(metric)
        if coverage.scored < coverage.total:
            why = [f"{count} {_plain(code)}" for code, count in coverage.errors.items()]
            why += [f"{coverage.missing} not looked at yet"] if coverage.missing else []
            found.append(f"{title_of(metric)}: {coverage.scored} of {coverage.total} clips scored ({', '.join(why)}).")
    return found


def recipes(findings: Findings) -> list[str]:
    """Every recipe that a score was computed by."""
    return sorted({score.recipe for score in findings.scores.values()})


def as_csv(report: Report) -> str:
    """One line a figure: kind, group, method, metric, value, low, high, better, effects, scored, clips; those of people
    count votes instead of clips."""
    head = ("kind", "group", "method", "metric", "value", "low", "high", "better", "effects", "scored", "clips")
    return _csv(head, _figures(report))


def _figures(report: Report) -> Iterable[Sequence[object]]:
    for table in (*report.main, *report.differences, *report.shares, *report.categories):
        for row in table.rows:
            for metric, figure in row.figures.items():
                estimate, coverage = figure.estimate, figure.coverage
                numbers = (estimate.value, estimate.low, estimate.high) if estimate else (math.nan,) * 3
                yield (
                    table.kind, table.group, row.method, metric, *numbers, figure.better, figure.effects,
                    coverage.scored, coverage.total,
                )  # fmt: skip
    for kind, method, metric, share in people_figures(report.people):
        value = share.estimate
        yield (
            kind, "people", method, metric, value.value, value.low, value.high, math.nan, share.effects, share.votes,
            share.votes,
        )  # fmt: skip


def scores_csv(findings: Findings) -> str:
    """One line a score."""
    rows = (
        (*cell, score.value, score.error, score.details.get("reason", ""), score.clip, score.recipe)
        for cell, score in sorted(findings.scores.items())
    )
    return _csv(("method", "effect", "scene", "metric", "value", "error", "reason", "clip", "recipe"), rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([_field(value) for value in row])
    return file.getvalue()


def _field(value: object) -> object:
    """A field; text that a spreadsheet would take for a formula begins with an apostrophe."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        text = value.replace("\0", "")
        return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
    return value


def _plain(text: str) -> str:
    """One line of Markdown that is nothing but text."""
    one = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\|`*_[]<>#" else char for char in one)

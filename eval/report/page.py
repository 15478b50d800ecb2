"""A report as one HTML page that needs nothing else: styles and pictures within it, no script, no request.

Whatever comes from a run (names, prompts, a judge's words) is text and is escaped; the page's own policy forbids
scripts.
"""

import html
import math
from pathlib import Path

from eval.report.cases import headline, sheets, worst
from eval.report.findings import Findings, Selection
from eval.report.people_text import Sheet, people_sheets
from eval.report.pictures import Pictures
from eval.report.tables import Report, Table
from eval.report.text import notes, recipes, shown, title_of

__all__ = ["as_html"]

TEMPLATE = Path(__file__).with_name("page.html")
UNRANKED = frozenset({"mean_motion", "moving_share"})  # neither more nor less is better


def as_html(report: Report, pictures: Pictures, *, shown_effects: int = 8, worst_clips: int = 8) -> str:
    """The page.

    Args:
        pictures: makes strips, within its budget.
        shown_effects: effects whose methods are shown one below the other.
        worst_clips: of the method in focus.
    """
    findings = report.findings
    parts = [f"<h1>{esc(findings.suite.name)}</h1>", *(f"<p>{sentence}</p>" for sentence in _notes(findings))]
    for table in report.main:
        parts += [f"<h2>{esc(table.group)}</h2>", _table(table, report.focus)]
    for table in (*report.differences, *report.shares):
        parts += [f"<h2>{esc(table.title)}: {esc(table.group)}</h2>", _table(table, "")]
    for sheet in people_sheets(report.people, title_of):
        parts += [f"<h2>{esc(sheet.title)}</h2>", *(f"<p>{esc(note)}</p>" for note in sheet.notes), _sheet(sheet)]
    parts += [*_sheets(report, pictures, shown_effects), *_worst(report, pictures, worst_clips)]
    parts += ["<h2>Effect by effect</h2>", _effects(findings)]
    if report.categories:
        inner = "".join(f"<h3>{esc(table.group)}</h3>{_table(table, report.focus)}" for table in report.categories)
        parts.append(f"<h2>Categories</h2><details><summary>{len(report.categories)} tables</summary>{inner}</details>")
    parts.append(
        "<h2>Recipes</h2><ul>" + "".join(f"<li><code>{esc(r)}</code></li>" for r in recipes(findings)) + "</ul>"
    )
    if pictures.left_out:
        parts.append(f"<p class=dim>{pictures.left_out} pictures more would not fit this page.</p>")
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", esc(findings.suite.name))
    return page.replace("{{body}}", "\n".join(parts))


def esc(text: object) -> str:
    """Text as HTML, in an element or an attribute. What turns the direction of writing is kept within."""
    one = "".join(char if char.isprintable() else " " for char in str(text))
    return html.escape(one, quote=True)


def _notes(findings: Findings) -> list[str]:
    return [esc(sentence.replace("\\", "")) for sentence in notes(findings)]


def _table(table: Table, focus: str) -> str:
    head = "".join(f"<th>{esc(title_of(metric))}</th>" for metric in table.metrics)
    best = {} if table.kind == "difference" else {metric: _best(table, metric) for metric in table.metrics}
    lines = []
    for row in table.rows:
        cells = []
        for metric in table.metrics:
            value, spread = shown(row.figures[metric], metric, table.kind)
            mark = " class=best" if row.method == best.get(metric) else ""
            cells.append(f"<td{mark}>{esc(value)}<small>{esc(spread)}</small></td>")
        mark = " class=focus" if row.method == focus else ""
        lines.append(f"<tr{mark}><td>{esc(row.method)}</td>{''.join(cells)}</tr>")
    caption = f"{table.effects} effects, {table.clips} clips a method; 95% intervals over effects"
    return (
        f"<div class=scroll><table><thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f"</div><p class=dim>{caption}</p>"
    )


def _sheet(sheet: Sheet) -> str:
    head = "".join(f"<th>{esc(text)}</th>" for text in sheet.head)
    rows = "".join("<tr>" + "".join(f"<td>{esc(text)}</td>" for text in row) + "</tr>" for row in sheet.rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _best(table: Table, metric: str) -> str | None:
    if metric in UNRANKED:
        return None
    values = {
        row.method: figure.estimate.value
        for row in table.rows
        if (figure := row.figures[metric]).estimate is not None and not math.isnan(figure.estimate.value)
    }
    return max(values, key=lambda method: values[method]) if len(values) > 1 else None


def _sheets(report: Report, pictures: Pictures, count: int) -> list[str]:
    findings, metric = report.findings, headline(report.findings)
    chosen = sheets(findings, report.focus, count)
    parts = [f"<h2>Effects, from the best of {esc(report.focus)} to the worst</h2>"] if chosen else []
    prompts = {effect.name: effect.prompt for effect in findings.suite.effects}
    for effect, scene, _ in chosen:
        parts.append(f"<h3>{esc(effect)}</h3><p class=dim>{esc(prompts[effect])}; scene {esc(scene)}</p>")
        parts += [_figure(findings, pictures, method, effect, scene, metric) for method in findings.methods]
    return parts


def _worst(report: Report, pictures: Pictures, count: int) -> list[str]:
    findings, metric = report.findings, headline(report.findings)
    cases = worst(findings, report.focus, count)
    if metric is None or not cases:
        return []
    parts = [f"<h2>Worst clips of {esc(report.focus)} by {esc(title_of(metric))}</h2>"]
    for case in cases:
        parts.append(f"<h3>{esc(case.effect)}, scene {esc(case.scene)}</h3>")
        parts.append(_figure(findings, pictures, case.method, case.effect, case.scene, metric))
    return parts


def _figure(
    findings: Findings, pictures: Pictures, method: str, effect: str, scene: str, metric: str | None
) -> str:  # fmt: skip
    row = findings.clips.get((method, effect, scene))
    if row is None:
        return ""
    strip = pictures.strip(row)
    score = findings.scores.get((method, effect, scene, metric or ""))
    words = [method]
    if score is not None and metric is not None:
        words.append(f"{title_of(metric)} {score.value:.3g}" if score.value is not None else score.error)
    reason = str(score.details.get("reason", "")) if score is not None else ""
    if row.clip is None:
        words.append(f"not rendered: {row.error}")
    picture = f'<img src="{strip}" alt="{esc(method)}: {esc(effect)}">' if strip else ""
    said = f" <q>{esc(reason)}</q>" if reason else ""
    return f"<figure>{picture}<figcaption>{esc(', '.join(words))}{said}</figcaption></figure>"


def _effects(findings: Findings) -> str:
    metric = headline(findings)
    if metric is None:
        return "<p>No clip has a score yet.</p>"
    head = "".join(f"<th>{esc(method)}</th>" for method in findings.methods)
    lines = []
    for place, effect in enumerate(findings.suite.effects):
        cells = []
        for method in findings.methods:
            values = findings.per_effect(metric, method, Selection([place]))
            cells.append(f"<td>{values[0]:.3g}</td>" if len(values) else "<td>-</td>")
        lines.append(f"<tr><td>{esc(effect.name)}<small>{esc(effect.split)}</small></td>{''.join(cells)}</tr>")
    return (
        f"<details><summary>{len(lines)} effects by {esc(title_of(metric))}</summary><div class=scroll><table><thead>"
        f"<tr><th>effect</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></details>"
    )

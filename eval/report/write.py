"""Writes a report: a page, Markdown, and two CSV files."""

from pathlib import Path

from eval.report.findings import Findings
from eval.report.page import as_html
from eval.report.pictures import Pictures
from eval.report.tables import Report, build
from eval.report.text import as_csv, as_markdown, scores_csv
from p2e.files import write_text

__all__ = ["FILES", "write_report"]

FILES = ("report.html", "report.md", "table.csv", "scores.csv")


def write_report(folder: str | Path, out: str | Path, *, focus: str | None = None, megabytes: float = 20.0) -> Report:
    """Reads a run and writes FILES to `out`. The same run gives the same bytes.

    Args:
        focus: the method that the others are compared with; see `eval.report.tables.focus_of`.
        megabytes: that the page's pictures may take.

    Raises:
        InputError: the folder is no run's, holds no clips yet, or has no method of that name.
        OutputError: `out` cannot be written.
    """
    findings = Findings.of(folder)
    report = build(findings, focus)
    pictures = Pictures(findings.files.folder, int(megabytes * 1e6))
    texts = (as_html(report, pictures), as_markdown(report), as_csv(report), scores_csv(findings))
    for name, text in zip(FILES, texts, strict=True):
        write_text(f"{str(out).rstrip('/')}/{name}", text)
    return report

"""The tables of a report: figures against plain arithmetic, what is missing, what may not be a headline."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from small_run import LEVELS, SmallRun, small_run

from eval.report.cases import headline, sheets, worst
from eval.report.findings import Findings
from eval.report.tables import Figure, Report, Table, build
from eval.report.text import as_csv, as_markdown, notes, scores_csv
from eval.report.write import FILES, write_report
from p2e.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="module")
def report(run: SmallRun) -> Report:
    return build(Findings.of(run.folder))


def figure(table: Table, method: str, metric: str) -> Figure:
    (row,) = [row for row in table.rows if row.method == method]
    return row.figures[metric]


def value(table: Table, method: str, metric: str) -> float:
    estimate = figure(table, method, metric).estimate
    assert estimate is not None
    return estimate.value


def test_means_over_effects_of_means_over_scenes(run: SmallRun, report: Report) -> None:
    train, ood = report.main
    assert (train.group, train.effects, train.clips, ood.group, ood.effects) == (
        "Training effects", 3, 6, "OOD effects", 2,
    )  # fmt: skip
    for table, effects in ((train, range(3)), (ood, range(3, 5))):
        for method in LEVELS:
            for metric in ("clip_score", "mean_motion", "judge"):
                own = [[run.values[method, f"effect_{e}", f"s{s}", metric] for s in range(2)] for e in effects]
                found = figure(table, method, metric)
                assert found.estimate is not None and found.estimate.value == pytest.approx(np.mean(own))
                assert found.effects == len(own) and found.coverage.share == 1
                assert found.estimate.low <= found.estimate.value <= found.estimate.high


def test_differences_are_effect_by_effect(report: Report) -> None:
    """Effects differ among themselves, methods by a constant: so the difference has no spread at all."""
    assert report.focus == "Zero-shot"
    found = figure(report.differences[0], "Mean LoRA", "judge")
    assert found.estimate is not None and found.better == 1
    assert (found.estimate.value, found.estimate.low, found.estimate.high) == pytest.approx((40, 40, 40))
    assert figure(report.differences[1], "LoRA", "judge").better == 0
    assert {row.method for row in report.differences[0].rows} == {"Base", "LoRA", "Mean LoRA"}


def test_shares_of_the_gain(report: Report) -> None:
    table = report.shares[0]
    assert table.metrics == ("judge",) and [row.method for row in table.rows] == ["Zero-shot", "Mean LoRA"]
    assert value(table, "Zero-shot", "judge") == pytest.approx(50 / 70)
    assert value(table, "Mean LoRA", "judge") == pytest.approx(10 / 70)


def test_groups_where_there_are_several(report: Report) -> None:
    assert [table.group for table in report.categories] == ["effects: mood", "effects: motion"]


def test_what_has_too_few_scores_is_no_headline(tmp_path: Path) -> None:
    fail = {("LoRA", "effect_0", "s0", "judge")}
    drop = {("Base", "effect_3", f"s{s}", "judge") for s in range(2)}
    found = Findings.of(
        small_run(tmp_path / "run", fail=fail, drop=drop, unrendered={("Zero-shot", "effect_1", "s1")}).folder
    )
    coverage = found.coverage("judge")
    assert (coverage.total, coverage.scored, coverage.missing) == (40, 36, 2)
    assert coverage.errors == {"not_rendered": 1, "refused": 1}
    train, ood = build(found).main
    assert figure(train, "LoRA", "judge").estimate is None and figure(train, "LoRA", "clip_score").estimate is not None
    assert figure(train, "Zero-shot", "clip_score").estimate is None and figure(ood, "Base", "judge").estimate is None
    assert figure(ood, "LoRA", "judge").estimate is not None
    text = as_markdown(build(found))
    assert (
        "- (5 of 6 scored)" in text
        and "36 of 40 clips scored (1 not\\_rendered, 1 refused, 2 not looked at yet)" in text
    )


def test_a_pair_counts_where_both_have_a_score(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", drop={("Base", "effect_0", "s0", "judge")})
    found = Findings.of(run.folder).differences("judge", "Zero-shot", "Base")
    assert found == pytest.approx([50] * 5)  # with all of one method's scenes it would be off by half a point


def test_the_same_run_gives_the_same_bytes(run: SmallRun, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(run.folder, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_csv_holds_every_figure(run: SmallRun, report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(report))))
    means = [line for line in lines if line["kind"] == "mean" and line["group"] == "Training effects"]
    assert len(means) == 12 and {line["scored"] for line in means} == {"6"}
    base = next(line for line in means if (line["method"], line["metric"]) == ("Base", "judge"))
    assert float(base["value"]) == pytest.approx(12.5) and base["better"] == ""
    scores = list(csv.DictReader(io.StringIO(scores_csv(report.findings))))
    assert len(scores) == len(run.values)
    for line in scores:
        cell = (line["method"], line["effect"], line["scene"], line["metric"])
        assert float(line["value"]) == pytest.approx(run.values[cell])


def test_best_and_worst(run: SmallRun, report: Report) -> None:
    found = report.findings
    assert headline(found) == "judge"
    assert [name for name, _, _ in sheets(found, "Zero-shot", 3)] == ["effect_4", "effect_2", "effect_0"]
    assert len(sheets(found, "Zero-shot", 99)) == 5
    cases = worst(found, "Zero-shot", 2)
    assert [(case.effect, case.scene, case.value) for case in cases] == [("effect_0", "s0", 60), ("effect_1", "s0", 62)]


def test_a_run_that_is_not_there_or_not_begun(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no suite\.json"):
        Findings.of(tmp_path)
    run = small_run(tmp_path / "run")
    with pytest.raises(InputError, match="no method 'Two-shot'; its methods are Base, LoRA"):
        build(Findings.of(run.folder), "Two-shot")
    (run.folder / "clips.jsonl").unlink()
    with pytest.raises(InputError, match="with clips in it yet"):
        Findings.of(run.folder)
    (run.folder / "suite.json").write_text('{"name": "x"}')
    with pytest.raises(ConfigError):
        Findings.of(run.folder)


def test_a_torn_line_is_passed_over_and_the_later_score_holds(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    path = run.folder / "scores" / "a.jsonl"
    first = path.read_text().splitlines()[0]
    (run.folder / "scores" / "b.jsonl").write_text(first.replace('"value": 1.0', '"value": 7.0') + "\n" + first[:40])
    found = Findings.of(run.folder)
    assert len(found.files.scores()) == len(run.values)
    assert found.values["clip_score"][0, 0, 0] == 7


def test_no_scores_at_all(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    (run.folder / "scores" / "a.jsonl").unlink()
    report = build(Findings.of(run.folder))
    assert all(f.estimate is None for t in report.main for r in t.rows for f in r.figures.values())
    assert any("0 of 40 clips scored" in note for note in notes(report.findings))
    write_report(run.folder, tmp_path / "out")
    assert "No clip has a score yet" in (tmp_path / "out" / "report.html").read_text()
    assert math.isnan(sheets(report.findings, "Base", 1)[0][2]) and not worst(report.findings, "Base", 3)

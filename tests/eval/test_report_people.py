"""People in a report: shares, agreement, and the metrics held against them, by hand."""

import csv
import html.parser
import io
import math
from pathlib import Path

import pytest
from cli_runner import run_well
from raters import answer_all
from small_run import LEVELS, SmallRun, small_run

from eval.preferences.pairs import Pair
from eval.report.findings import Findings
from eval.report.page import as_html
from eval.report.people import People, people
from eval.report.pictures import Pictures
from eval.report.tables import build
from eval.report.text import as_csv, as_markdown


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return small_run(tmp_path / "run")


def by_level(pair: Pair) -> str:
    """The clip of the method that is worth more, as clip_score and the judge have it."""
    return "left" if LEVELS[pair.left.method] > LEVELS[pair.right.method] else "right"


def against_level(pair: Pair) -> str:
    return "right" if by_level(pair) == "left" else "left"


def read(run: SmallRun) -> People:
    found = people(Findings.of(run.folder))
    assert found is not None
    return found


def test_nobody_was_asked(run: SmallRun):
    assert people(Findings.of(run.folder)) is None
    report = build(Findings.of(run.folder))
    assert "people" not in as_markdown(report) and "people" not in as_csv(report)


def test_one_rater_who_prefers_by_worth(run: SmallRun):
    answer_all(run.folder, "ana", by_level)
    found = read(run)
    assert found.raters == {"ana": 60} and found.shared == 0 and math.isnan(found.kappa) and math.isnan(found.alpha)
    assert [(duel.first, duel.second, duel.wins, duel.losses) for duel in found.duels] == [
        ("Base", "LoRA", 0, 10), ("Base", "Zero-shot", 0, 10), ("Base", "Mean LoRA", 0, 10),
        ("LoRA", "Zero-shot", 10, 0), ("LoRA", "Mean LoRA", 10, 0), ("Zero-shot", "Mean LoRA", 10, 0),
    ]  # fmt: skip
    assert found.duels[0].share.estimate.value == 0 and found.duels[3].share.estimate.value == 1
    for metric in ("clip_score", "judge"):
        share = found.metrics[metric]
        assert (share.estimate.value, share.estimate.low, share.votes, share.effects) == (1, 1, 60, 5)
    # By motion, later methods are more: of the six pairs of methods it agrees on Base's three alone.
    assert found.metrics["mean_motion"].estimate.value == pytest.approx(0.5)
    assert found.another.votes == 0 and math.isnan(found.another.estimate.value)


def test_two_raters_by_hand(run: SmallRun):
    """Of 60 pairs they answer 48 alike; of the others, one is undecided on 6, and they contradict each other on 6."""
    cells: list[tuple] = []

    def remembered(pair: Pair) -> str:
        cells.append((pair.left.effect, pair.left.scene, tuple(sorted((pair.left.method, pair.right.method)))))
        return by_level(pair)

    def ben(pair: Pair) -> str:
        place = sorted(cells).index(
            (pair.left.effect, pair.left.scene, tuple(sorted((pair.left.method, pair.right.method))))
        )
        if place % 10 == 0:
            return "equal" if place % 20 else "bad"
        return against_level(pair) if place % 10 == 1 else by_level(pair)

    answer_all(run.folder, "ana", remembered)
    answer_all(run.folder, "ben", ben)
    found = read(run)
    assert found.raters == {"ana": 60, "ben": 60} and found.shared == 60 and found.same == pytest.approx(0.8)
    # Seen both ways, ana says 1 and -1 alike, ben 0 in a tenth: chance agrees in 2 x 1/2 x 9/20.
    assert found.kappa == pytest.approx((0.8 - 0.45) / (1 - 0.45))
    # Labels 114, 114, 12 of 240; a fifth of the couples differs.
    expected = 1 - (114**2 + 114**2 + 12**2) / 240**2
    assert found.alpha == pytest.approx(1 - 0.2 * 239 / 240 / expected)
    # 60 of ana's votes meet 48 alike and 6 undecided; ben's 54 decided ones meet 48 alike.
    assert found.another.votes == 114 and found.another.estimate.value == pytest.approx((48 + 3 + 48) / 114)
    assert found.metrics["judge"].votes == 114
    assert found.metrics["judge"].estimate.value == pytest.approx(108 / 114)
    assert sum(duel.equal for duel in found.duels) == 3 == sum(duel.bad for duel in found.duels)
    assert sum(duel.wins + duel.losses + duel.equal + duel.bad for duel in found.duels) == 120


def test_intervals_are_over_effects(run: SmallRun):
    """One effect of five on which the rater sees it the other way: 80%."""
    answer_all(run.folder, "ana", lambda p: against_level(p) if p.left.effect == "effect_2" else by_level(p))
    share = read(run).metrics["judge"]
    assert share.estimate.value == pytest.approx(0.8)
    # Of five draws with replacement, at most three hit the effect in 97.5% of resamples, and none in a third.
    assert (share.estimate.low, share.estimate.high) == pytest.approx((0.4, 1.0))


def test_metrics_that_see_no_difference_or_nothing(tmp_path: Path):
    """Equal scores are half a hit; a clip without a score is no vote against the metric."""
    failed = {("LoRA", f"effect_{n}", f"s{s}", "clip_score") for n in range(5) for s in range(2)}
    run = small_run(tmp_path / "run", fail=failed, drop={("Base", "effect_0", "s0", "clip_score")})
    path = run.folder / "scores" / "a.jsonl"
    path.write_text(path.read_text().replace('"value": 80.0', '"value": 10.0'))
    answer_all(run.folder, "ana", by_level)
    found = read(run)
    assert found.metrics["clip_score"].votes == 60 - 30 - 2
    # Judge: LoRA's clips of effect_0 in s0 are now worth what Base's are; against the other two they lose.
    assert found.metrics["judge"].estimate.value == pytest.approx((57 + 0.5) / 60)


def test_votes_on_clips_that_are_gone(run: SmallRun):
    answer_all(run.folder, "ana", by_level, count=6)
    path = run.folder / "clips.jsonl"
    path.write_text(path.read_text().replace('"clip": "1', '"clip": "9'))
    found = read(run)
    assert found.outdated == 3 and found.raters == {"ana": 3}
    assert "3 votes of clips that the run no longer has left out." in as_markdown(build(Findings.of(run.folder)))
    path.write_text(path.read_text().replace('"clip": "', '"clip": "8'))
    assert "6 votes of clips" in as_markdown(build(Findings.of(run.folder)))


class Text(html.parser.HTMLParser):
    """Elements and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.elements = "", list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def test_the_report_tells_of_people(run: SmallRun):
    answer_all(run.folder, "ana", by_level)
    answer_all(run.folder, "ben", by_level, count=12)
    text = run_well("eval", "report", run.folder)
    assert (
        "## What people prefer\n\n2 raters, 72 votes (ana 60, ben 12); an undecided one counts half for each. "
        "95% intervals over effects.\n\n12 pairs of clips had more than one rater: the same answer in 100%, "
        "Cohen's kappa 1.00, Krippendorff's alpha 1.00.\n\n"
        "| first / second | first better | second better | equal | both bad | for the first |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| Base / LoRA | 0 | 12 | 0 | 0 | 0% (0% to 0%) |\n"
    ) in text
    head = "| of | same clip | votes | effects |\n| --- | --- | --- | --- |\n"
    assert f"{head}| another person | 100% (100% to 100%) | 24 |" in text
    assert "| judge, total | 100% (100% to 100%) | 72 | 5 |\n" in text
    print(text)
    page = Text((run.folder / "report" / "report.html").read_text())
    for words in ("What people prefer", "Base / LoRA", "Agreement with people", "another person", "2 raters, 72 votes"):
        assert words in page.text
    assert not {"script", "link"} & set(page.elements)
    rows = list(csv.DictReader(io.StringIO((run.folder / "report" / "table.csv").read_text())))
    found = {(row["kind"], row["method"], row["metric"]): row for row in rows if row["group"] == "people"}
    assert found["preference", "LoRA", "over Zero-shot"]["value"] == "1"
    assert found["agreement", "", "judge"]["scored"] == "72" and len(found) == 6 + 1 + 3
    first = {name: (run.folder / "report" / name).read_bytes() for name in ("report.html", "report.md", "table.csv")}
    run_well("eval", "report", run.folder)
    assert first == {name: (run.folder / "report" / name).read_bytes() for name in first}


def test_one_rater_once(run: SmallRun):
    """As few votes as there can be: figures without intervals, no agreement of raters."""
    answer_all(run.folder, "ana", lambda _: "bad", count=1)
    report = build(Findings.of(run.folder))
    text = as_markdown(report)
    assert "1 rater, 1 vote (ana 1)" in text and "| 0 | 0 | 0 | 1 | 50% |" in text
    assert "Agreement with people" not in text and "nan" not in text
    assert "nan" not in Text(as_html(report, Pictures(str(run.folder), 0))).text

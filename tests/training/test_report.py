"""What a run shows: a bar on a terminal, lines elsewhere, scalars for TensorBoard."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p2e.training.report import Reporter

VALUES = {"loss": 0.75, "update_error": 0.5, "norm_ratio": 0.9, "samples_per_second": 120.0}


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(100, 0, True, None)
    for step in (1, 2, 3):
        reporter.scalars(step, VALUES)
    reporter.scalars(100, VALUES, last=True)
    reporter.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]  # not one a step
    assert "loss 0.75  update error 0.5  norm ratio 0.9  samples per second 120" in lines[0]


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    reporter = Reporter(100, 40, True, None)
    reporter.scalars(60, VALUES)
    reporter.scalars(60, {"heldout/update_error": 0.625}, last=True)
    reporter.close()
    shown = capsys.readouterr().out
    assert "60/100" in shown and "loss 0.75" in shown and "heldout/update error 0.625" in shown


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(100, 0, False, None)
    reporter.scalars(100, VALUES, last=True)
    reporter.close()
    assert capsys.readouterr().out == ""


def test_tensorboard_reads_the_scalars_and_a_resumed_run_replaces_later_ones(tmp_path: Path) -> None:
    for done, loss in ((0, 3.0), (1, 2.0)):
        reporter = Reporter(3, done, False, tmp_path)
        for step in range(done + 1, 4):
            reporter.scalars(step, {"loss": loss, "heldout/update_error": loss / 2})
        reporter.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 3.0), (2, 2.0), (3, 2.0)]
    assert events.Scalars("heldout/update_error")[-1].value == 1.0

"""Runs stages in order on all workers: skips what is done, pauses when told to, and records what was made."""

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from p2e import __version__
from p2e.config import Settings
from p2e.errors import InputError
from p2e.world.parallel import Worker
from p2e.world.pause import Pause, Paused
from p2e.world.stages import Job, Ledger, Stage, Verdict

__all__ = ["plan", "run_stages"]

SKIP, RUN, REFUSE = 0.0, 1.0, 2.0


def plan(stages: Mapping[str, Stage], out: Path, settings: Mapping[str, Settings]) -> Iterator[tuple[str, Verdict]]:
    """What a run of all stages with these settings would find: each stage with its verdict, in order."""
    ledger, again = Ledger(out, stages), set[str]()
    for name, stage in stages.items():
        verdict = ledger.judge(stage, settings[name])
        before = [i for i in stage.inputs if i in again]
        if verdict.state == "done" and before:
            verdict = Verdict("stale", f"{' and '.join(before)} will be made anew", verdict.hash, verdict.parts)
        if verdict.state != "done":
            again.add(name)
        yield name, verdict


def run_stages(
    stages: Mapping[str, Stage], names: Sequence[str], out: Path, settings: Mapping[str, Settings], worker: Worker,
    *, force: Sequence[str] = (), adopt: Sequence[str] = (), pause_after: float | None = None,
) -> None:  # fmt: skip
    """Runs the named stages, in the order of `stages`, each if it is not done already.

    Args:
        settings: resolved, of every stage.
        force: stages that run even if they are done.
        adopt: stages whose outputs were made elsewhere and copied into `out`: they are recorded as made with these
            settings, and do not run.
        pause_after: seconds from now, after which no stage begins and the one that runs saves its state.

    Raises:
        Paused: the time is up, or SIGTERM came; the same call goes on.
        InputError: an input of a stage is missing; the message names the stage to run.
    """
    ledger = Ledger(out, stages)
    for name in [name for name in stages if name in adopt]:
        _adopt(ledger, stages[name], settings[name], worker)
    with Pause(worker, pause_after) as pause:
        ran = False
        for name in [name for name in stages if name in names and name not in adopt]:
            verdict = _decide(ledger, stages[name], settings[name], worker, name in force)
            if verdict is None:
                continue
            # A call that has done nothing yet runs something, or a short time would never lead to an end.
            if ran and worker.same_on_all(float(pause.over())):
                raise Paused(f"paused before the stage {name}; the same command goes on")
            _run(ledger, stages[name], settings[name], verdict, pause, name in force)
            ran = True


def _adopt(ledger: Ledger, stage: Stage, settings: Settings, worker: Worker) -> None:
    problem = None
    if worker.is_first:
        try:
            verdict = ledger.judge(stage, settings)
            if verdict.state != "done":
                ledger.adopt(stage, verdict, seconds=0.0, workers=0, device="made elsewhere", **_facts())
                print(f"stage {stage.name}: adopted", flush=True)
        except InputError as error:
            problem = error
    if worker.same_on_all(float(problem is not None)):
        raise problem or InputError(f"{stage.name}: refused by the first worker, which says why")


def _facts() -> dict[str, Any]:
    """Of the record of a stage, what does not depend on it."""
    return {
        "p2e_version": __version__, "commit": commit(), "finished": datetime.now(UTC).isoformat(timespec="seconds")
    }  # fmt: skip


def _decide(ledger: Ledger, stage: Stage, settings: Settings, worker: Worker, force: bool) -> Verdict | None:
    """The verdict on a stage that must run, None for one to skip; the first worker looks, the others follow."""
    verdict, problem, what = Verdict("missing", "", "", {}), None, RUN
    if worker.is_first:
        try:
            ledger.check_inputs(stage)
            verdict = ledger.judge(stage, settings)
        except InputError as error:
            problem, what = error, REFUSE
        if problem is None and verdict.state == "done" and not force:
            what = SKIP
            print(f"stage {stage.name}: unchanged, skipped", flush=True)
    what = worker.same_on_all(what)
    if what == REFUSE:
        raise problem or InputError(f"{stage.name}: refused by the first worker, which says why")
    return None if what == SKIP else verdict


def _run(ledger: Ledger, stage: Stage, settings: Settings, verdict: Verdict, pause: Pause, force: bool) -> None:
    worker, work = pause.worker, ledger.work(stage.name)
    if worker.is_first:
        ledger.begin(stage, verdict, force)
        reason = "forced" if force and verdict.state == "done" else f"{verdict.state}, {verdict.reason}"
        print(f"stage {stage.name}: {reason}; running", flush=True)
    worker.same_on_all(0.0)  # the folders are there
    started, message = time.perf_counter(), ""
    pause.saves = stage.saves
    try:
        stage.make(Job(ledger.out, work / "made", work / "state", worker, settings, pause))
    except Paused as paused:
        message = str(paused)
    finally:
        pause.saves = False
    # Some stages run on the first worker alone: the others learn here that it paused.
    stopped = worker.same_on_all(float(bool(message))) > 0
    if worker.is_first:
        seconds = ledger.spent(stage.name, time.perf_counter() - started)
        if not stopped:
            ledger.accept(
                stage, verdict, seconds=round(seconds, 1), workers=worker.size, device=device_name(worker.device),
                **_facts(),
            )  # fmt: skip
            print(f"stage {stage.name}: {seconds:.1f} s on {worker.size} workers", flush=True)
    worker.same_on_all(0.0)  # the outputs are in place
    if stopped:
        raise Paused(f"{message or stage.name + ': paused'}; the same command goes on")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def commit() -> str | None:
    """The commit that p2e runs from, with a + where files differ from it; None for an installed copy."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "p2e/*.py"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")

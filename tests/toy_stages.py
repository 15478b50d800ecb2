"""Three stages that make numbers instead of weights, to be run by `p2e.world.rebuild` in the place of the world's.

`python -m toy_stages` has the arguments of `python -m p2e.world.rebuild`.
"""

import json
import os
import signal
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from p2e.config import Settings
from p2e.files import write_text
from p2e.world import rebuild
from p2e.world.pause import Paused
from p2e.world.stages import Job, Stage

TABLE = {"first": 1}  # what the stage "seed" reads of its project


class SeedSettings(Settings):
    value: int = 3


class GrowSettings(Settings):
    steps: int = 4
    kill_at: int | None = None
    rates: dict[str, int] = Field(default={"up": 1})


def make_seed(job: Job) -> None:
    if job.worker.is_first:
        write_text(job.made / "seed" / "number.json", json.dumps(job.settings.value))
        write_text(job.made / "seed" / "note.txt", "made")


def make_grown(job: Job) -> None:
    """Adds the seed once a step; all workers keep the sum, the first one saves it."""
    seed = json.loads((job.out / "seed" / "number.json").read_text())
    state = job.state / "sum.json"
    step, total = json.loads(state.read_text()) if state.exists() else (0, 0)
    begun = step
    job.worker.same_on_all(0.0)
    while step < job.settings.steps:
        if step > begun and job.pause.due(20 * step):
            if job.worker.is_first:
                write_text(state, json.dumps([step, total]))
            raise Paused(f"grow: paused after {step} steps")
        total += seed * job.settings.rates["up"]
        step += 1
        if step == job.settings.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
    if job.worker.is_first:
        write_text(job.made / "grown.json", json.dumps({"sum": total, "began_at": begun}))


def make_report(job: Job) -> None:
    if job.worker.is_first:
        write_text(job.made / "report.json", (job.out / "grown.json").read_text())


def parse(model: type[Settings]) -> Any:
    def settings(changes: Mapping[str, Any]) -> Settings:
        return model.parse(dict(changes), "toy")

    return settings


STAGES = {
    "seed": Stage("seed", parse(SeedSettings), make_seed, ("seed",), data=lambda: TABLE),
    "grow": Stage("grow", parse(GrowSettings), make_grown, ("grown.json",), ("seed",), saves=True),
    "report": Stage("report", parse(SeedSettings), make_report, ("report.json",), ("grow",)),
}

if __name__ == "__main__":
    rebuild.STAGES = STAGES
    rebuild.main()

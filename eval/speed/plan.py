"""What is measured: batch shapes, and how the engine is set up for each.

A step of the paper has 640 (site, effect) samples. A micro-batch pairs its sites with all its effects; it has sites of
every shape, so 5 sites are 3 square ones and one of each other shape.
"""

from dataclasses import dataclass
from typing import Any

from eval.speed.inputs import Size
from ray_jobs.training.config import TrainJob

__all__ = ["PAPER", "PAPER_SAMPLES", "PAPER_STEPS", "PLANS", "TINY", "Case", "Plan"]

PAPER_STEPS = 150_000  # 4,000 epochs of 24,000 samples
PAPER_SAMPLES = 640  # of a step


@dataclass(frozen=True)
class Case:
    """One measurement of training steps.

    Attributes:
        name: the same for the same work on another number of workers.
        sites, effects: of a micro-batch.
        parts: micro-batches a worker, a step.
        shared: all effects of a site use its weight tokens; else every sample is a site of its own.
        stage: of ZeRO.
        resident: weights and targets are kept on the GPU; else they come through Ray Data.
        compile: compile the blocks.
        every: steps of a report; the first report is warm-up.
        reports: that count.
    """

    name: str
    sites: int = 5
    effects: int = 4
    parts: int = 8
    shared: bool = True
    stage: int = 2
    resident: bool = True
    compile: bool = True
    every: int = 2
    reports: int = 3

    @property
    def steps(self) -> int:
        return self.every * (1 + self.reports)


@dataclass(frozen=True)
class Plan:
    """A whole measurement.

    Attributes:
        size: of the inputs.
        hypernet: settings of the network.
        products: (m, k, n) of the matrix products that give the matrix rate; the first is the one compared with.
        copy_bytes: of the copy.
        single: cases without Ray, on one device.
        cluster: cases with Ray, on every number of workers.
        cpus: that a worker with a GPU reserves.
    """

    size: Size
    hypernet: dict[str, Any]
    products: tuple[tuple[int, int, int], ...]
    copy_bytes: int
    single: tuple[Case, ...]
    cluster: tuple[Case, ...]
    precision: str = "bfloat16"
    cpus: int = 4

    def job(self, case: Case, library: str, output: str, workers: int, *, gpus: bool) -> TrainJob:
        """The job of a case."""
        train = {
            "library": library, "base": "wan-speed", "output": output, "hypernet": self.hypernet, "steps": case.steps,
            "log_every": case.every, "sites_per_step": case.sites, "effects_per_step": case.effects,
            "micro_batches": case.parts * workers, "precision": self.precision, "compile": case.compile,
            "resident_gb": 1000.0 if case.resident else 0.0,
        }  # fmt: skip
        return TrainJob.parse(
            {
                "train": train, "workers": workers, "gpus": gpus, "cpus": self.cpus if gpus else 1, "max_failures": 0,
                "zero": {"stage": case.stage, "parameters": self.precision},
            }
        )  # fmt: skip


PAPER = Plan(
    size=Size(),
    hypernet={"width": 2048, "layers": 14, "heads": 32, "latents": 256, "rank": 32},
    # A square product, and those of a block over a micro-batch of 20 samples with 256 latents each.
    products=((8192, 8192, 8192), (5120, 2048, 16384), (5120, 8192, 2048), (5120, 2048, 2048)),
    copy_bytes=4 << 30,
    single=(
        Case("5x4"),
        Case("5x4 unshared", shared=False),
        Case("5x8", effects=8, parts=4),
        Case("5x8 unshared", effects=8, parts=4, shared=False),
        Case("5x16", effects=16, parts=2),
        Case("4x5", sites=4, effects=5),
        Case("20x4", sites=20, parts=2),
        Case("5x4 one part", parts=1, every=6),
        Case("5x4 eager", compile=False),
    ),
    # One report counts, for a worker waits in a report until the one before has been collected, seconds later.
    cluster=(
        Case("5x4", every=5, reports=1),
        # Its store is full when the first step has compiled: the warm-up is long enough to empty it.
        Case("5x4 streamed", resident=False, every=12, reports=1),
        Case("5x8", effects=8, parts=4, every=5, reports=1),
        Case("5x8 streamed", effects=8, parts=4, resident=False, every=12, reports=1),
        Case("5x4 one part", parts=1, every=20, reports=1),
        # What each of the paper's 32 GPUs does in a step, with the least memory.
        Case("5x4 one part streamed", parts=1, resident=False, every=60, reports=1),
        Case("5x4 stage 1", stage=1, every=5, reports=1),
    ),
)

TINY = Plan(
    size=Size(blocks=2, heads=2, head_dim=16, ffn=48, effects=6, rank=4, text_width=24, tokens=8, words=(2, 6)),
    hypernet={"width": 32, "layers": 2, "heads": 4, "latents": 4, "rank": 4, "ffn_ratio": 2},
    products=((512, 512, 512), (32, 32, 128)),
    copy_bytes=1 << 16,
    single=(
        Case("3x4", sites=3, parts=2, compile=False),
        Case("3x4 unshared", sites=3, parts=2, compile=False, shared=False),
    ),
    cluster=(
        Case("3x4", sites=3, parts=1, compile=False, reports=1),
        Case("3x4 streamed", sites=3, parts=1, compile=False, reports=1, resident=False),
    ),
    precision="float32",
)

PLANS = {"paper": PAPER, "tiny": TINY}

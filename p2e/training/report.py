"""What a run shows while it goes: a progress bar (lines where there is no terminal) and TensorBoard scalars."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Reporter"]

LINE_SECONDS = 10.0  # between lines, where there is no terminal


class Reporter:
    """Prints and records metrics by step.

    Args:
        total: steps of the run, done: those already taken.
        progress: show a bar or lines.
        folder: of the TensorBoard files, a path or what TensorBoard takes for one (s3://...), or None for none.
    """

    def __init__(self, total: int, done: int, progress: bool, folder: Path | str | None) -> None:
        self.total, self._bar, self._task, self._writer = total, None, None, None
        self._shown = 0.0
        if progress and sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = ("training", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[text]}"))
            self._task = self._bar.add_task("training", total=total, completed=done, text="")
            self._bar.start()
        self._lines = progress and self._bar is None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def scalars(self, step: int, values: Mapping[str, float], last: bool = False) -> None:
        """Metrics after `step` steps; names with a slash ("heldout/update_error") are grouped by TensorBoard."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)
        text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
        if self._bar is not None and self._task is not None:
            if any("/" in name for name in values):
                self._bar.console.print(f"step {step}: {text}", highlight=False)
            else:
                self._bar.update(self._task, completed=step, text=text)
        elif self._lines and (last or time.monotonic() - self._shown > LINE_SECONDS or any("/" in n for n in values)):
            print(f"step {step}/{self.total}  {text}", flush=True)
            self._shown = time.monotonic()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()

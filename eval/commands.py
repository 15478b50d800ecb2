"""`p2e eval`: what the project claims, measured again. Found by `p2e` through the entry points `p2e.commands`."""

from pathlib import Path
from typing import Annotated

import typer

from p2e.commands.options import check_folder, progress_bar, quiet_libraries

app = typer.Typer(help="Measure again what p2e claims.")


@app.callback()
def root() -> None:
    """Measure again what p2e claims."""


@app.command()
def world(
    full: Annotated[
        bool, typer.Option("--full", help="All effects, scenes and methods; takes hours on a CPU.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="DIR", help="Folder of a world; the shipped one, if left out.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where results are kept; what is there is not measured again.")
    ] = Path("runs/eval-world"),
    effects: Annotated[int | None, typer.Option(min=1, help="How many effects, of all splits alike.")] = None,
    scenes: Annotated[int | None, typer.Option(min=1, max=76, help="How many scenes.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of the noise.")] = 1,
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME", help="A method; p2e.world.columns lists them.")
    ] = None,
) -> None:
    """Recompute the main table of the embedded world from its weights."""
    from eval.world.run import plan, recompute
    from eval.world.tables import as_json, main_table, markdown
    from p2e.files import write_text

    quiet_libraries()
    check_folder(out)
    task = plan(weights, out, full=full, effects=effects, scenes=scenes, seeds=range(seeds), columns=columns or ())
    config = task.config
    print(
        f"{len(config.only)} effects, {config.scenes} scenes each, {len(config.columns)} columns: about "
        f"{duration(task.seconds())} on 2 cores; {task.done()} of {task.cells} cells stand in {task.path}",
    )
    if task.recorded:
        print(f"{task.recorded} of the cells need LoRAs that do not ship; they are taken from {task.record}")
    done = 0
    with progress_bar("measuring") as show:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            show(done, task.cells)

        found, seconds = recompute(task, advance)
    table = main_table(found)
    text = markdown(table)
    write_text(task.path.with_suffix(".md"), text)
    write_text(task.path.with_name(f"{task.path.stem}-table.json"), as_json([table]))
    print(text)
    print(f"{seconds:.0f} s; wrote {task.path.with_suffix('.md')}")


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a sweep, local or an fsspec URL.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the report goes; RUN/report if left out.")
    ] = None,
    focus: Annotated[
        str | None, typer.Option("--focus", metavar="METHOD", help="The method that the others are compared with.")
    ] = None,
    megabytes: Annotated[
        float, typer.Option("--megabytes", min=0, help="What the page's pictures may take.")
    ] = 20.0,
) -> None:  # fmt: skip
    """Write the tables of a sweep as one HTML page, Markdown and CSV."""
    from eval.report.text import as_markdown
    from eval.report.write import write_report

    place = str(out) if out is not None else f"{run.rstrip('/')}/report"
    found = write_report(run, place, focus=focus, megabytes=megabytes)
    print(as_markdown(found))
    print(f"wrote {place}/report.html, report.md, table.csv, scores.csv")


def duration(seconds: float) -> str:
    """Seconds as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"

"""`p2e eval`: what the project claims, measured again. Found by `p2e` through the entry points `p2e.commands`."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from p2e.commands.options import check_folder, progress_bar, quiet_libraries
from p2e.errors import ConfigError, InputError

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
    judge: Annotated[
        Path | None,
        typer.Option(
            "--judge", metavar="FILE", help="YAML of a judge's settings, or `tiny`; its scores go to OUT/judge."
        ),
    ] = None,
) -> None:
    """Recompute the main table of the embedded world from its weights."""
    from eval.world.run import plan, recompute
    from eval.world.tables import as_json, main_table, markdown
    from p2e.files import write_text

    quiet_libraries()
    check_folder(out)
    if judge is not None and weights is not None:
        raise InputError("--judge: a suite names its own weights; leave out --weights, or use `p2e eval run`")
    settings = None if judge is None else judge_settings(judge)
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
    if settings is not None:
        raise typer.Exit(judge_world(settings, out / "judge", config.only, config.scenes, config.columns))


@app.command()
def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A YAML file, or world or world_full.")],
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="Folder or URL; what is there is not done again.")],
    effects: Annotated[int | None, typer.Option(min=1, help="How many effects, of all splits alike.")] = None,
    scenes: Annotated[int | None, typer.Option(min=1, help="How many scenes.")] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="A method, by title or column.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option("--judge", metavar="FILE", help="YAML of a judge's settings, or `tiny`.")
    ] = None,
    actors: Annotated[int, typer.Option(min=1, help="Most renderers at a time.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a renderer.")] = 0.0,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Try again what could not be scored.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Only say what there is to do, and its cost.")] = False,
) -> None:
    """Render and score a suite on this machine; RAY_ADDRESS names a cluster instead."""
    from ray_jobs.evaluate import EvaluateJob, run_evaluation

    quiet_libraries()
    values = {
        "suite": suite, "output": out, "effects": effects, "scenes": scenes, "methods": methods or (),
        "judge": None if judge is None else judge_settings(judge), "actors": actors, "gpus": gpus,
        "retry_errors": retry_errors, "plan_only": plan_only,
    }  # fmt: skip
    raise typer.Exit(run_evaluation(EvaluateJob.parse(values, "the command line")))


def judge_settings(path: Path) -> dict[str, Any]:
    """A judge's settings from a file; "tiny" is the judge of the world that ships with p2e.

    Raises:
        ConfigError, InputError: the file is missing, or is not YAML of settings.
    """
    import yaml

    from p2e.files import read_text

    if str(path) == "tiny":
        return {"backend": "local", "model": "tiny", "repeat_share": 0.0}  # it would repeat itself to the letter
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a judge's settings are KEY: VALUE lines")
    return values


def judge_world(
    settings: dict[str, Any], out: Path, effects: Sequence[str], scenes: int, columns: Sequence[str]
) -> int:  # fmt: skip
    """Has the judge score what the world's table is of, as far as the world's suite has it."""
    from eval.suite_files import load_suite
    from ray_jobs.evaluate import EvaluateJob, run_evaluation

    suite = load_suite("world_full")
    known = {method.column for method in suite.methods}
    values = {
        "suite": "world_full", "output": str(out), "only": list(effects), "scenes": scenes, "judge": settings,
        "methods": [column for column in columns if column in known],
    }  # fmt: skip
    return run_evaluation(EvaluateJob.parse(values, "--judge"))


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


@app.command()
def compare(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a sweep, on this machine.")],
    rater: Annotated[str, typer.Option("--rater", metavar="NAME", help="Who is asked; answers are kept by this name.")],
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=1, help="How many, the same for all raters; all, if left out.")
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="A method to compare, by title; give several.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page; any free one, if left out.")] = 0,
) -> None:  # fmt: skip
    """Ask a person which of two clips is better, blind, on a page of this machine; ctrl-C ends it."""
    from eval.preferences.pairs import draw
    from eval.preferences.server import PreferenceServer, Session
    from eval.preferences.votes import VoteLog, check_rater
    from eval.run_files import RunFiles

    files = RunFiles.of(run)
    drawn = draw(files.suite, files.clips(), check_rater(rater), count=pairs, methods=methods or ())
    with VoteLog(files, rater) as log:
        session = Session(files, rater, drawn, log)
        with PreferenceServer(session, port) as server:
            print(
                f"{len(drawn)} pairs, {session.answered} answered; open {server.address}, end with ctrl-C",
                flush=True,
            )
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
        print(f"{session.answered} of {len(drawn)} answered, kept in {log.path}; `p2e eval report {run}` counts them")


def duration(seconds: float) -> str:
    """Seconds as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"

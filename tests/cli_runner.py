"""Runs `p2e ARGUMENTS` in this process and keeps what it printed."""

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from p2e.cli import main


@dataclass(frozen=True)
class Result:
    """What a run left: exit code, standard output, standard error."""

    code: object
    out: str
    err: str


def run_cli(*arguments: object) -> Result:
    """The run of `p2e ARGUMENTS` on a wide screen that is no terminal."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "240"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return Result(code, out.getvalue(), err.getvalue())


def run_well(*arguments: object) -> str:
    """The standard output of a run that must succeed and complain of nothing."""
    result = run_cli(*arguments)
    assert result.code == 0 and not result.err, result
    return result.out


def assert_mistake(result: Result, *names: object) -> None:
    """Exit code 2 and exactly one line on stderr, which names what is at fault."""
    assert result.code == 2, result
    assert result.err.startswith("p2e: ") and result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    assert not result.out
    for name in names:
        assert str(name) in result.err, result.err


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}

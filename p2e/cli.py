"""The `p2e` command: its tree of commands, its plug-ins, and what a user sees when something is wrong.

A user's mistake is one line on stderr that begins with "p2e:" and exit code 2; a key press of ctrl-C exits with 130.
Anything else is a defect of p2e and keeps its traceback. Commands live in p2e.commands and import the heavy libraries
when they run, so that help is instant.
"""

import errno
import io
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from p2e import __version__
from p2e.commands import adapt, demo, hypernet, library, lora, video, world
from p2e.errors import InputError, P2EError

__all__ = ["PLUGIN_GROUP", "app", "main"]

PLUGIN_GROUP = "p2e.commands"


class PluginGroup(TyperGroup):
    """A group that also offers the entry points of `p2e.commands`, each a Typer app or a function.

    A plug-in is imported only when it is called or listed. One that cannot be imported is listed with the reason and
    fails with one line; it does not touch the other commands. Built-in names win.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return own + sorted({point.name for point in entry_points(group=PLUGIN_GROUP)} - set(own))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        points = entry_points(group=PLUGIN_GROUP, name=cmd_name)
        return plugin_command(next(iter(points))) if points else None


def plugin_command(point: EntryPoint) -> Any:
    """The command of an entry point, or one that says why there is none."""
    try:
        target = point.load()
        plugin = target if isinstance(target, typer.Typer) else typer.Typer(add_completion=False)
        if plugin is not target:
            plugin.command(point.name)(target)
        command = typer.main.get_command(plugin)
    except Exception as error:  # whatever a stranger's module raises at import must not take the command line with it
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        command = broken_command(point, reason)
    command.name = point.name
    return command


def broken_command(point: EntryPoint, reason: str) -> Any:
    stand_in = typer.Typer(add_completion=False)

    @stand_in.command(point.name, help=f"Unavailable ({reason}).", context_settings={"ignore_unknown_options": True})
    def fail(arguments: list[str] = typer.Argument(None, hidden=True)) -> None:  # noqa: B008 - typer's way
        source = f" of {point.dist.name}" if point.dist else ""
        raise InputError(f"the command {point.name}{source} cannot be loaded ({reason}); install what it needs")

    return typer.main.get_command(stand_in)


app = typer.Typer(cls=PluginGroup, name="p2e", add_completion=False, pretty_exceptions_enable=False)
app.add_typer(lora.app, name="lora")
app.add_typer(library.app, name="library")
app.add_typer(world.app, name="world")
app.command()(demo.demo)
app.command()(hypernet.train)
app.command()(hypernet.predict)
app.command()(video.render)
app.command()(adapt.adapt)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"p2e {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
) -> None:
    """From the words for a visual effect to LoRA weights for an image-to-video model, in one forward pass."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 a check found something, 2 a mistake, 75 paused, 130 interrupted."""
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="p2e", standalone_mode=False)
        sys.stdout.flush()
    except P2EError as error:
        fail(str(error))
    except TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "p2e"
        fail(f"{error.format_message().rstrip('.')}; see {path} --help")
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stdout = io.StringIO()  # what it still holds cannot be written either, and Python tries again at exit
        fail(f"{error.filename or 'the output'}: {error.strerror}; free some space or write elsewhere")
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str) -> NoReturn:
    """Ends the program over a user's mistake."""
    print(f"p2e: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)

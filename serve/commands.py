"""`p2e serve`: the endpoint on this machine. Found by `p2e` through the entry points `p2e.commands`."""

import contextlib
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

WORLD = Path(__file__).with_name("world.yaml")
app = typer.Typer(add_completion=False)


@app.command()
def serve(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="A Serve config; the embedded world's, if left out.", show_default=False),
    ] = WORLD,
    host: Annotated[str | None, typer.Option(help="Address to listen on; the config's if left out.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The config's if left out.")] = None,
) -> None:
    """Start the endpoint on this machine, and say where its page is."""
    from rich.console import Console

    from serve.up import local_endpoint, prepare_environment, read_config

    prepare_environment()
    values = read_config(config, host, port)
    ended: list[int] = []
    with contextlib.ExitStack() as stack:
        with Console(stderr=True).status("starting Ray") as status:
            found = stack.enter_context(local_endpoint(values, tell=lambda what: status.update(f"waiting for {what}")))
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray sets handlers of its own when it starts
            signal.signal(number, lambda received, _: ended.append(received))
        address = found.address
        print(f"page     {address}/\nAPI      {address}/docs\nmetrics  {address}/metrics\nRay      {found.dashboard}")
        print("ctrl-C ends it", flush=True)
        while not ended:  # a wait for a threading.Event cannot be broken off safely
            time.sleep(0.2)

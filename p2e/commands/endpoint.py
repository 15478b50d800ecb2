"""`p2e predict` and `p2e render` where an endpoint does the work: neither torch nor diffusers is imported."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from p2e.commands.options import check_output, progress_bar
from p2e.errors import EndpointError, InputError, P2EError

__all__ = ["Endpoint", "check_local", "predict_at", "render_at"]

Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="URL", help="Let a p2e endpoint do it; its key is read from P2E_API_KEY."),
]


def refuse(options: Mapping[str, tuple[Any, Any]], reason: str) -> None:
    """Refuses what was given of options that do not go with others.

    Args:
        options: of each its value, and its default.
        reason: why, and what to do.

    Raises:
        InputError: one has another value than its default.
    """
    for name, (value, default) in options.items():
        if value != default:
            raise InputError(f"--{name}: {reason}")


def check_local(**options: Any) -> None:
    """Refuses options of endpoints where there is none.

    Raises:
        InputError: one of them was given.
    """
    given = {name.replace("_", "-"): (value, None) for name, value in options.items()}
    refuse(given, "goes with --endpoint; give that too, or apply a file with --lora")


def predict_at(endpoint: str, prompt: str, output: str, strength: float, local: Mapping[str, tuple[Any, Any]]) -> None:
    """Has an endpoint make the LoRA of a prompt, and fetches it.

    Args:
        local: options that are of no use here: of each its value, and its default.

    Raises:
        InputError: one of those was given.
        EndpointError: the endpoint refuses, fails, or does not answer.
        OutputError: the file cannot be written.
    """
    from p2e.client import Client

    refuse(local, "the endpoint has its own; leave it out with --endpoint")
    check_output(output)
    with Client(endpoint) as client:
        effect = client.effects.create(prompt, strength=strength)
        client.effects.download(effect, output)
    print(f"wrote {output}: rank {effect.lora.rank}, {effect.id}")


def render_at(
    endpoint: str, image: str, prompt: str, output: str, *, height: int | None, width: int | None,
    local: Mapping[str, tuple[Any, Any]], **request: Any,
) -> None:  # fmt: skip
    """Has an endpoint render a video, shows how far it is, and fetches it. Ctrl-C has the endpoint stop.

    Args:
        local: options that are of no use here: of each its value, and its default.
        request: further arguments of `Videos.create`.

    Raises:
        InputError: one of the local options was given, or others contradict each other.
        EndpointError: the endpoint refuses, fails, or does not answer; the video has failed or was cancelled.
        OutputError: the file cannot be written.
    """
    from p2e.client import Client

    refuse(local, "the endpoint has its own; leave it out with --endpoint")
    if request["effect_id"] is not None and request["effect_prompt"] is not None:
        raise InputError("--effect, --effect-id: give one of them")
    if request["strength"] is not None and request["effect_id"] is None and request["effect_prompt"] is None:
        raise InputError("--strength: there is no effect that it could be of; give --effect or --effect-id")
    if (height is None) != (width is None):
        raise InputError(f"--{'height' if width is None else 'width'}: with --endpoint, give both or leave both out")
    check_output(output, endings=(".mp4",))
    size = None if height is None else f"{width}x{height}"
    with Client(endpoint) as client:
        video = client.videos.create(image, prompt, size=size, **request)
        try:
            with progress_bar("rendering") as update:
                video = client.videos.wait(video, lambda now: update(now.progress, 100))
        except KeyboardInterrupt:
            try:
                client.videos.cancel(video)
            except P2EError as error:
                print(f"p2e: {video.id} was not cancelled ({error})", file=sys.stderr)
            raise
        if video.status != "completed":
            reason = f"{video.error.message} ({video.error.code})" if video.error else f"it was {video.status}"
            message = f"{client.endpoint}: no video from {video.id}: {client.clean(reason)}"
            raise EndpointError(message, code=video.error.code if video.error else video.status)
        client.videos.download(video, output)
    print(f"wrote {output}: {video.seconds} s of {video.size}, {video.id}")

"""One run of what several wait for at once (single flight)."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["Flights"]

T = TypeVar("T")


class Flights(Generic[T]):
    """Runs under way, by name. Whoever comes while one is joins it; who leaves stops nobody else's."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    async def join(self, name: str, start: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """The result of the run of a name, begun here where none is under way -> it, and whether it was begun here.
        What the run raises is raised to all who wait."""
        place = (asyncio.get_running_loop(), name)
        task, new = self._tasks.get(place), False
        if task is None:
            # Of no request: servers stop what they find in the context of one whose client has gone.
            task, new = asyncio.create_task(start(), context=contextvars.Context()), True
            self._tasks[place] = task
            task.add_done_callback(lambda done: self._landed(place, done))
        return await asyncio.shield(task), new

    def _landed(self, place: tuple[asyncio.AbstractEventLoop, str], task: "asyncio.Task[T]") -> None:
        del self._tasks[place]
        if not task.cancelled():
            task.exception()  # seen, though all who waited may have gone

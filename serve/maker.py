"""The predictor's work, without Ray: prompts and blends in, LoRA files in the store out."""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from p2e.bases import open_base
from p2e.commands.options import shipped
from p2e.errors import ConfigError, InputError, OutputError
from p2e.files import SafetensorsFile, sha256
from p2e.hypernet.binding import bind
from p2e.hypernet.checkpoint import load_checkpoint
from p2e.lora.compose import blend
from p2e.lora.read import read_lora
from p2e.lora.write import write_lora
from p2e.predict import predict_loras, predict_to_file
from p2e.render.prompts import PromptCache
from p2e.text import check_prompt, encoder_for
from serve.artefacts import ArtefactStore
from serve.errors import ApiError, NotFound, StorageFull
from serve.schemas import Unprocessable
from serve.services import Identity, Made
from serve.settings import PredictorSettings

__all__ = ["LoraMaker"]

LOG = logging.getLogger("p2e.predictor")
Source = Mapping[str, Any]


class LoraMaker:
    """A hypernetwork on its base, with a store to put LoRAs in.

    Args:
        settings: what to load.
        artefacts: where LoRAs go.

    Raises:
        P2EError: base or checkpoint cannot be loaded.
    """

    def __init__(self, settings: PredictorSettings, artefacts: ArtefactStore) -> None:
        self.settings, self.artefacts = settings, artefacts
        self.base, weights = open_base(settings.base)
        if weights is None:
            raise ConfigError(f"predictor.base: {settings.base} has no weights; give the folder that holds them")
        if len(self.base.experts) > 1:
            raise ConfigError(f"predictor.base: a LoRA of {self.base.name} is two files, which an effect cannot be")
        self.weights = weights
        self.checkpoint = load_checkpoint(shipped(settings.checkpoint, "checkpoint"), settings.device, base=self.base)
        encoder = encoder_for(self.base, weights.folder)
        self.encoder = PromptCache(lambda: encoder)
        self.binding = None
        if settings.binding is not None:
            self.binding = bind(self.checkpoint, weights, settings.binding, settings.bindings)
        self.identity = Identity(base=weights.hash, checkpoint=self.checkpoint.hash)

    def warm_up(self) -> None:
        """Predicts once, so that whatever is compiled or allocated at the first prompt is there before a caller is."""
        self._predicted(["a warm-up"], 1.0)

    def make(self, asked: Sequence[tuple[Source, str]]) -> list[Made | ApiError]:
        """Stores the LoRAs of some sources (as `Predictor.make` has them) under names, prompts in as few passes as
        they allow -> for each what was stored, or why it could not be."""
        found: list[Made | ApiError | None] = [None] * len(asked)
        start = time.perf_counter()
        for index, (source, artefact) in enumerate(asked):
            if "blend" in source:
                found[index] = self._kept(lambda source=source, artefact=artefact: self._blend(source, artefact))
            elif (wrong := self._refused(source["prompt"])) is not None:
                found[index] = wrong
        prompts = [index for index, made in enumerate(found) if made is None]
        for places in self._passes(prompts, asked):
            found_here = self._prompts([asked[index] for index in places])
            for index, made in zip(places, found_here, strict=True):
                found[index] = made
        seconds = time.perf_counter() - start
        answers = [made for made in found if made is not None]
        return [replace(made, seconds=seconds) if isinstance(made, Made) else made for made in answers]

    def _refused(self, prompt: str) -> ApiError | None:
        """Why a prompt cannot be used; found out by encoding it, which is kept."""
        try:
            self.encoder.encode([check_prompt(prompt)])
        except InputError as error:
            return Unprocessable(f"prompt: {error}", param="prompt")
        return None

    def _passes(self, prompts: Sequence[int], asked: Sequence[tuple[Source, str]]) -> Iterator[list[int]]:
        """Prompts of one strength, which a pass has."""

        def strength(index: int) -> float:
            return asked[index][0]["strength"]

        for _, places in itertools.groupby(sorted(prompts, key=strength), strength):
            same, most = list(places), self.settings.most_at_once
            yield from (same[start : start + most] for start in range(0, len(same), most))

    def _prompts(self, asked: Sequence[tuple[Source, str]]) -> list[Made | ApiError]:
        strength, prompts = asked[0][0]["strength"], [source["prompt"] for source, _ in asked]
        if len(asked) == 1:
            return [self._kept(lambda: self._stream(prompts[0], strength, asked[0][1]))]
        loras = self._predicted(prompts, strength)

        def store(lora: Any, artefact: str) -> Made:
            return self._store(
                artefact, lambda path: write_lora(path, lora, self.base, metadata=lora.provenance.metadata)
            )

        return [
            self._kept(lambda lora=lora, artefact=artefact: store(lora, artefact))
            for lora, (_, artefact) in zip(loras, asked, strict=True)
        ]

    def _predicted(self, prompts: Sequence[str], strength: float) -> Any:
        return predict_loras(
            self.checkpoint, self.weights, prompts, self.encoder, strength=strength, dtype=torch.bfloat16,
            binding=self.binding,
        )  # fmt: skip

    def _stream(self, prompt: str, strength: float, artefact: str) -> Made:
        """One prompt, written while it is computed."""

        def write(path: Path) -> None:
            predict_to_file(
                self.checkpoint, self.weights, prompt, self.encoder, path, strength=strength, binding=self.binding
            )

        return self._store(artefact, write)

    def _blend(self, source: Source, artefact: str) -> Made:
        terms = []
        for name, part, weight in source["blend"]:
            try:
                terms.append((read_lora(self.artefacts.url(part), self.base), weight * source["strength"]))
            except InputError:
                raise NotFound(f"no effect {name}") from None
        whole = blend(terms)
        rank = max(factors.rank for factors in whole.lora.factors.values())
        if rank > self.settings.max_rank:
            whole = blend(terms, self.settings.max_rank)
        metadata = {"blend": ", ".join(f"{name} {weight:g}" for name, _, weight in source["blend"]),
                    "base": self.base.name, "strength": f"{source['strength']:g}"}  # fmt: skip
        return self._store(artefact, lambda path: write_lora(path, whole.lora, self.base, metadata=metadata))

    def _store(self, artefact: str, write: Any) -> Made:
        with self.artefacts.writing(artefact) as path:
            write(path)
            return Made(rank_of(path), path.stat().st_size, sha256(path))

    @staticmethod
    def _kept(make: Any) -> Made | ApiError:
        """What `make` gives, or its error as an answer."""
        try:
            return make()
        except ApiError as error:
            return error
        except OutputError:
            return StorageFull("the LoRA could not be stored; try again later", retry_after_s=30)
        except InputError as error:
            LOG.warning("a LoRA could not be made: %s", error)  # its line may name a path of the server
            return Unprocessable("no LoRA can be made of this; use a smaller strength or other words")


def rank_of(path: Path) -> int:
    """The largest rank in a LoRA file, from its header."""
    with SafetensorsFile(path) as file:
        return max(spec.shape[0] for name, spec in file.specs.items() if name.endswith("lora_A.weight"))

"""What a sweep renders and scores: every method on every effect in every scene.

A suite is YAML; `eval/suites/` holds those that come with the project. What it resolved to stands in `suite.json` of
the run, so that a report needs nothing else.
"""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from p2e.config import RenderConfig, Settings
from p2e.lora.manifest import Split
from p2e.text import check_prompt

__all__ = ["Method", "MetricSettings", "Scene", "Suite", "SuiteEffect"]

Prompt = Annotated[str, AfterValidator(check_prompt)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._:+'-]*$")]


class Scene(Settings):
    """Where a clip starts.

    Attributes:
        id: unique in the suite.
        category: such as "single" or "animals"; tables may be split by it.
        image: first frame, local or an fsspec URL, relative to the suite's file; "world:N" is the N-th evaluation scene
            of the embedded world.
        image_prompt: what to draw the first frame from, where there is no image yet.
        prompt: what the scene shows, for the suite's template of prompts.
        seed: of the noise that a clip starts from.
    """

    id: Name
    category: str
    image: str | None = None
    image_prompt: str | None = None
    prompt: str = ""
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _has_a_picture(self) -> Self:
        if self.image is None and self.image_prompt is None:
            raise ValueError(f"scene {self.id} has neither image nor image_prompt; give one")
        return self


class SuiteEffect(Settings):
    """An effect, and the prompt that methods are asked with: one that training never saw."""

    name: Name
    prompt: Prompt
    split: Split = "train"
    category: str = ""


class Method(Settings):
    """A row of the table: exactly one of `column` and `loras`.

    Attributes:
        title: of the row.
        column: in the grammar of `p2e.world.columns`: base, lora, zero, init:50, hdb, mean, nearest, random, still ...
        loras: a path or URL with {effect} in it, of LoRAs that were made elsewhere.
    """

    title: Name
    column: str | None = None
    loras: str | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.column is None) == (self.loras is None):
            raise ValueError(f"method {self.title}: give either column or loras")
        if self.loras is not None and "{effect}" not in self.loras:
            raise ValueError(f"method {self.title}: loras needs {{effect}} where the effect's name goes")
        return self


class MetricSettings(Settings):
    """A metric, with options that the metric knows: weights by path, a plug-in, a number of frames."""

    name: Name
    options: dict[str, Any] = Field(default_factory=dict)


class Suite(Settings):
    """A suite.

    Attributes:
        base: folder of the base's pipeline, or "world".
        library: manifest of the library whose LoRAs are a method, are averaged, or are looked up; None has none.
        checkpoint: folder of the hypernetwork, or "world"; None predicts nothing.
        render: what differs from the settings that the base was made for.
        template: prompt of a clip, of {effect}, the effect's prompt, and {scene}, the scene's.
        reference, baseline: titles of the methods that shares are taken of and from.
        judge: settings of the judge, or None for none; see `eval.judge`.
    """

    name: Name
    base: str
    effects: tuple[SuiteEffect, ...] = Field(min_length=1)
    scenes: tuple[Scene, ...] = Field(min_length=1)
    methods: tuple[Method, ...] = Field(min_length=1)
    metrics: tuple[MetricSettings, ...] = ()
    library: str | None = None
    checkpoint: str | None = None
    render: RenderConfig = RenderConfig()
    template: str = "{effect}"
    reference: str | None = None
    baseline: str | None = None
    judge: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        titles = [method.title for method in self.methods]
        for what, names in (
            ("effect", [effect.name for effect in self.effects]), ("scene", [scene.id for scene in self.scenes]),
            ("method", titles), ("metric", [metric.name for metric in self.metrics]),
        ):  # fmt: skip
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{what} {twice} appears twice; give each a name of its own")
        for field in ("reference", "baseline"):
            if (title := getattr(self, field)) is not None and title not in titles:
                raise ValueError(f"{field}: {title} is no method of the suite")
        return self

    def prompt(self, effect: SuiteEffect, scene: Scene) -> str:
        """What a clip is asked for with."""
        return self.template.replace("{scene}", scene.prompt).replace("{effect}", effect.prompt).strip()

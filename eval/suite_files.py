"""Suites as YAML: short forms for the world and for a user's library, resolved to a `Suite`.

    effects: world                       the world's effects whose LoRAs are there, asked by prompts kept from training
    effects: {world: all, splits: [ood]}
    effects: {manifest: library/manifest.yaml, splits: [heldout, ood], prompts: asked.yaml}
    scenes: world                        the 76 evaluation scenes of the world
    scene_images: pictures/{scene}.png   first frames of scenes that name none

`effects` and `scenes` may be lists, too. Relative paths start at the folder of the suite's file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import fsspec
import yaml
from pydantic import Field, model_validator

from eval.suite import Method, MetricSettings, Scene, Suite, SuiteEffect
from p2e.config import RenderConfig, Settings
from p2e.errors import ConfigError, InputError
from p2e.files import read_text
from p2e.lora.manifest import Manifest, Split
from p2e.world.table.spec import EffectSpec

__all__ = ["EffectSource", "SceneSource", "SuiteFile", "load_suite", "shipped_suites", "world_suite_scenes"]

FOLDER = Path(__file__).parent / "suites"
WORLD = "world"


class EffectSource(Settings):
    """Where effects come from; exactly one of `world` and `manifest`.

    Attributes:
        world: "shipped", those whose LoRA is there, or "all".
        manifest: of a library.
        splits: those that are taken; none is all.
        only: names; none is all.
        limit: so many, of all splits alike.
        prompt: of a manifest: which of an effect's prompts is asked. What is asked should be kept from training.
        prompts: YAML of EFFECT: PROMPT, which overrules the manifest's.
    """

    world: Literal["shipped", "all"] | None = None
    manifest: str | None = None
    splits: tuple[Split, ...] = ()
    only: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    prompt: Literal["first", "last"] = "last"
    prompts: str | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.world is None) == (self.manifest is None):
            raise ValueError("effects come from the world or from a manifest; give exactly one")
        if self.world is not None and (self.prompts is not None or self.prompt != "last"):
            raise ValueError("the world has prompts of its own; leave out prompt and prompts")
        return self


class SceneSource(Settings):
    """Evaluation scenes of the world: of one of `categories`, or all; the first `limit`."""

    world: Literal[True]
    categories: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)


class SuiteFile(Settings):
    """The YAML of a suite; what is not described here is as in `Suite`.

    Attributes:
        scene_images: path or URL with {scene} in it, of first frames of scenes that name none.
    """

    name: str
    base: str
    effects: Literal["world"] | EffectSource | tuple[SuiteEffect, ...]
    scenes: Literal["world"] | SceneSource | tuple[Scene, ...]
    scene_images: str | None = Field(default=None, pattern=r"\{scene\}")
    methods: tuple[Method, ...]
    metrics: tuple[MetricSettings, ...] = ()
    library: str | None = None
    checkpoint: str | None = None
    render: RenderConfig = RenderConfig()
    template: str = "{effect}"
    reference: str | None = None
    baseline: str | None = None
    judge: dict[str, Any] | None = None


def shipped_suites() -> list[str]:
    """Names of the suites that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_suite(
    name: str, *, effects: int | None = None, scenes: int | None = None, only: Sequence[str] = (),
    methods: Sequence[str] = (), judge: Mapping[str, Any] | None = None,
) -> Suite:  # fmt: skip
    """Reads a suite.

    Args:
        name: of one that ships, or a path or URL of a YAML file.
        effects: so many of its effects, of all splits alike.
        scenes: the first so many of its scenes.
        only: effects by name.
        methods: titles or columns of the methods; none is all.
        judge: settings of the judge, in place of the suite's.

    Raises:
        ConfigError: the file does not fit, or a cut leaves nothing; one line.
        InputError: a file that it names cannot be read.
    """
    path = str(FOLDER / f"{name}.yaml") if name in shipped_suites() else name
    file = SuiteFile.parse(_values(path), path)
    listed = _cut(_effects(file.effects, path), only, effects, path)
    shown = _scenes(file, path)[:scenes]
    kept = [method for method in file.methods if not methods or {method.title, method.column} & {*methods}]
    known = {name for method in file.methods for name in (method.title, method.column)}
    if unknown := [method for method in methods if method not in known]:
        titles = ", ".join(method.title for method in file.methods)
        raise ConfigError(f"{path}: has no method {unknown[0]!r}; its methods are {titles}")
    titles = {method.title for method in kept}
    values = file.model_dump(exclude={"scene_images", "effects", "scenes", "methods"}, exclude_unset=True)
    values |= {
        "base": _model(path, file.base), "library": _model(path, file.library),
        "checkpoint": _model(path, file.checkpoint), "effects": [effect.model_dump() for effect in listed],
        "scenes": [scene.model_dump() for scene in shown],
        "methods": [{"title": m.title, "column": m.column, "loras": m.loras and beside(path, m.loras)} for m in kept],
        "reference": file.reference if not methods or file.reference in titles else None,
        "baseline": file.baseline if not methods or file.baseline in titles else None,
        "judge": file.judge if judge is None else dict(judge),
    }  # fmt: skip
    return Suite.parse(values, path)


def beside(file: str, path: str) -> str:
    """A path as written in a file, resolved against the file's folder; URLs and absolute paths stay."""
    if "://" in path or Path(path).is_absolute():
        return path
    folder = file.rpartition("/")[0]
    return f"{folder}/{path}" if "://" in file else str((Path(folder) / path).resolve())


def world_suite_scenes(categories: Sequence[str] = ()) -> list[Scene]:
    """The world's evaluation scenes.

    Raises:
        ConfigError: there is no such category.
    """
    from p2e.world.scenes import CATEGORIES, EVALUATION_SCENES

    if unknown := [name for name in categories if name not in CATEGORIES]:
        raise ConfigError(f"scenes: no category {unknown[0]!r}; the world's are {', '.join(CATEGORIES)}")
    # Scenes take the categories in turn (`evaluation_scenes`); a test holds the two together.
    every = [(index, CATEGORIES[index % len(CATEGORIES)]) for index in range(EVALUATION_SCENES)]
    return [
        Scene(id=f"scene-{index:02}", category=category, image=f"world:{index}", seed=index)
        for index, category in every
        if not categories or category in categories
    ]


def _values(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(read_text(path))
    except InputError:
        shipped = ", ".join(shipped_suites())
        raise ConfigError(f"{path}: no such suite; give a YAML file, or one of {shipped}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a suite is KEY: VALUE lines; see eval.suite_files")
    _check_union(values, "effects", SuiteEffect, EffectSource, path)
    _check_union(values, "scenes", Scene, SceneSource, path)
    return values


def _check_union(values: dict[str, Any], key: str, item: type[Settings], source: type[Settings], path: str) -> None:
    """Says what is wrong in terms of the form that was meant: of a union, pydantic names the first alternative."""
    given = values.get(key)
    if isinstance(given, list):
        for number, value in enumerate(given, 1):
            item.parse(value, f"{path}: {key}, number {number}")
    elif isinstance(given, dict):
        source.parse(given, f"{path}: {key}")
    elif given != WORLD:
        raise ConfigError(f"{path}: {key}: give world, a source, or a list; see eval.suite_files")


def _model(path: str, name: str | None) -> Any:
    """A folder or manifest; the world's goes by its name."""
    return name if name is None or name == WORLD else beside(path, name)


def _effects(given: str | EffectSource | tuple[SuiteEffect, ...], path: str) -> list[SuiteEffect]:
    if isinstance(given, tuple):
        return list(given)
    source = given if isinstance(given, EffectSource) else EffectSource(world="shipped")
    found = _of_world(source) if source.world else _of_manifest(source, path)
    found = [effect for effect in found if not source.splits or effect.split in source.splits]
    return _cut(found, source.only, source.limit, path)


def _of_world(source: EffectSource) -> list[SuiteEffect]:
    from p2e.bases import world_base_folder
    from p2e.world.effects import EFFECTS

    loras = world_base_folder().parent / "library" / "loras"
    specs: list[EffectSpec] = [
        spec for spec in EFFECTS if source.world == "all" or (loras / f"{spec.name}.safetensors").exists()
    ]
    return [
        SuiteEffect(name=spec.name, prompt=spec.unseen_prompts[-1], split=spec.split, category=spec.category)
        for spec in specs
    ]


def _of_manifest(source: EffectSource, path: str) -> list[SuiteEffect]:
    file = beside(path, str(source.manifest))
    manifest = Manifest.load(file)
    asked: Any = {}
    if source.prompts is not None:
        where = beside(path, source.prompts)
        try:
            asked = yaml.safe_load(read_text(where))
        except yaml.YAMLError as error:
            raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from None
        if not isinstance(asked, dict):
            raise ConfigError(f"{where}: prompts are EFFECT: PROMPT lines")
        names = {entry.effect for entry in manifest.entries}
        if unknown := [name for name in asked if name not in names]:
            raise ConfigError(f"{where}: {file} has no effect {unknown[0]!r}; correct the name")
    effects = []
    for entry in manifest.entries:
        prompt = asked.get(entry.effect) or (entry.prompts and entry.prompts[-1 if source.prompt == "last" else 0])
        if not prompt:
            raise ConfigError(f"{file}: effect {entry.effect} has no prompt; give it one there, or in prompts")
        values = {"name": entry.effect, "prompt": prompt, "split": entry.split}
        effects.append(SuiteEffect.parse(values, f"{file}: effect {entry.effect}"))
    return effects


def _cut(effects: list[SuiteEffect], only: Sequence[str], limit: int | None, path: str) -> list[SuiteEffect]:
    names = {effect.name for effect in effects}
    if unknown := [name for name in only if name not in names]:
        raise ConfigError(f"{path}: has no effect {unknown[0]!r}; correct the name in only")
    found = [effect for effect in effects if not only or effect.name in only]
    if not found:
        raise ConfigError(f"{path}: splits and only leave no effect; widen one of them")
    if limit is None:
        return found
    from eval.world.run import pick_effects

    return pick_effects(found, limit)


def _scenes(file: SuiteFile, path: str) -> list[Scene]:
    if not isinstance(file.scenes, tuple):
        source = file.scenes if isinstance(file.scenes, SceneSource) else SceneSource(world=True)
        return world_suite_scenes(source.categories)[: source.limit]
    found = []
    for scene in file.scenes:
        image = scene.image
        if image is not None and not image.startswith(f"{WORLD}:"):
            image = beside(path, image)
        elif image is None and file.scene_images is not None:
            place = beside(path, file.scene_images.replace("{scene}", scene.id))
            file_system, inner = fsspec.core.url_to_fs(place)
            image = place if file_system.exists(inner) else None
        found.append(scene.model_copy(update={"image": image}))
    return found

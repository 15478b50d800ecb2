"""Which LoRA each method has for each effect: one that is there, or one to be made, named by all it depends on.

A LoRA that was made is RUN/loras/KEY.json, written last, which names its file beside it, or a file of the library.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eval.suite import Method, Suite, SuiteEffect
from p2e.adapt.cache import digest_of
from p2e.bases import open_base, world_base_folder
from p2e.config import Settings
from p2e.errors import ConfigError, FormatError, InputError
from p2e.files import file_sizes
from p2e.lora.manifest import Entry, Manifest, check_file
from p2e.world.columns import Column, other_effect
from p2e.world.config import WorldLibraryConfig
from p2e.world.effects import EFFECTS
from ray_jobs.rows import content

__all__ = ["LoraPlan", "LoraRecord", "LoraTask", "Wanted", "plan_loras"]

RECIPE = "1"
"""Version of how LoRAs are made; a change of it makes all of them anew."""

PREDICTIONS_AT_ONCE = 16
WORLD = "world"

Files = str | dict[str, str] | None


class Wanted(Settings):
    """A LoRA to be made: its key, the effect it is for, and the prompt that it is asked with."""

    key: str
    effect: str
    prompt: str


class LoraTask(Settings):
    """LoRAs that a worker makes in one go.

    Attributes:
        column: as it stands in the suite, for "trained" with its checkpoint.
        output: folder that they are written to.
        base: folder of the base's pipeline, or "world".
        source: folder of the checkpoint, the library's manifest, or the folder of the world, by `kind`.
        recipe: of those that are trained.
    """

    kind: Literal["predicted", "mean", "nearest", "softmax", "trained"]
    column: str
    output: str
    base: str
    source: str
    wanted: tuple[Wanted, ...]
    recipe: WorldLibraryConfig = WorldLibraryConfig()


class LoraRecord(Settings):
    """What was made: a file beside the record, or an absolute path or URL; by expert where the base has several."""

    lora: str | dict[str, str]


@dataclass
class LoraPlan:
    """LoRAs of a suite.

    Attributes:
        files: (method, effect) -> LoRA as `RenderRow` takes it; None renders the base.
        keys: (method, effect) -> key of the LoRA that is to be made for it.
        errors: (method, effect) -> why there is none, "code: words".
        tasks: what makes the keys that are not there yet.
    """

    files: dict[tuple[str, str], Files] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    errors: dict[tuple[str, str], str] = field(default_factory=dict)
    tasks: list[LoraTask] = field(default_factory=list)

    @property
    def pending(self) -> set[str]:
        """Keys that the tasks are to make."""
        return {want.key for task in self.tasks for want in task.wanted}

    def settle(self, folder: str, failed: Mapping[str, str], pending: Collection[str] = ()) -> None:
        """Takes what was made into `files`: what is there from a run before, and all once the tasks are done.

        Args:
            failed: key -> why it could not be made.
            pending: keys that are left as they are.
        """
        for cell, key in self.keys.items():
            if key in pending:
                continue
            try:
                if key in failed:
                    raise InputError(failed[key])
                made = LoraRecord.load(f"{folder}/{key}.json").lora
            except InputError as error:
                self.errors[cell] = f"no_lora: {error}"
                continue
            paths = {"": made} if isinstance(made, str) else made
            placed = {e: p if "://" in p or Path(p).is_absolute() else f"{folder}/{p}" for e, p in paths.items()}
            self.files[cell] = placed.get("", placed)


def plan_loras(suite: Suite, run: str, recipe: WorldLibraryConfig) -> LoraPlan:
    """Finds the LoRAs of a suite, or settles how they are made.

    Args:
        run: folder of the run.
        recipe: how those of init:N and lora:N are trained.

    Raises:
        ConfigError: a method cannot be had with this suite, whatever is trained.
        InputError: base or library cannot be read.
    """
    return _Planner(suite, f"{run}/loras", recipe).plan()


class _Planner:
    def __init__(self, suite: Suite, folder: str, recipe: WorldLibraryConfig) -> None:
        self.suite, self.folder, self.recipe = suite, folder, recipe
        base, reader = open_base(suite.base)
        if reader is None:
            raise InputError(f"{suite.base} is a name without weights; give the folder of its diffusers pipeline")
        root = Path(str(reader.folder)).resolve()
        self.base = suite.base if suite.base == WORLD else str(root)
        self.is_world = base.name == WORLD
        self.world = world_base_folder().parent if suite.base == WORLD else root.parent
        weights = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        self.weights = digest_of(base.name, *(content(str(path)) for path in weights))
        self.manifest: Manifest | None = None
        self.library = ""
        if suite.library is not None:
            world_library = world_base_folder().parent / "library" / "manifest.yaml"
            self.library = str(world_library) if suite.library == WORLD else suite.library
            self.manifest = Manifest.load(self.library)
            self.manifest.check_base(base)
        self.there = set(file_sizes(folder))
        self.result = LoraPlan()

    def plan(self) -> LoraPlan:
        content.cache_clear()
        for method in self.suite.methods:
            if method.loras is not None:
                for effect in self.suite.effects:
                    self._found(method, effect, method.loras.replace("{effect}", effect.name))
                continue
            self._column(method, _column(method))
        return self.result

    def _column(self, method: Method, column: Column) -> None:
        effects = self.suite.effects
        if column.kind in ("still", "base"):
            self.result.files |= {(method.title, effect.name): None for effect in effects}
        elif column.trained:
            self._trained(method, column)
        elif column.kind in ("zero", "hdb", "random"):
            self._predicted(method, column)
        elif self.manifest is None:
            raise ConfigError(f"method {method.title}: {column.name} needs a library; set library")
        elif column.kind == "lora":
            entries = {entry.effect: entry for entry in self.manifest.entries}
            for effect in effects:
                self._entry(method, effect, entries.get(effect.name))
        else:
            self._of_library(method, column, self.manifest)

    def _found(self, method: Method, effect: SuiteEffect, path: str) -> None:
        cell = (method.title, effect.name)
        try:
            check_file(path)
            self.result.files[cell] = path
        except FormatError:
            self.result.errors[cell] = f"no_lora: {path}: no such file"

    def _entry(self, method: Method, effect: SuiteEffect, entry: Entry | None) -> None:
        cell = (method.title, effect.name)
        if entry is None or self.manifest is None:
            self.result.errors[cell] = f"no_lora: {effect.name} is not in {self.library}"
            return
        try:
            found = {expert or "": self.manifest.locate(path) for expert, path, _ in entry.files()}
            for expert, _, digest in entry.files():
                check_file(found[expert or ""], digest)
            self.result.files[cell] = found.get("", found)
        except FormatError as error:
            self.result.errors[cell] = f"no_lora: {error}"

    def _checkpoint(self, method: Method, column: Column) -> str:
        """The folder of a column's hypernetwork; a name of its own is looked for beside the suite's."""
        given = self.suite.checkpoint
        if given is None:
            raise ConfigError(f"method {method.title}: {column.name} predicts; set checkpoint")
        main = str(world_base_folder().parent / "checkpoint") if given == WORLD else given
        if column.checkpoint == "checkpoint":
            return main
        own = column.checkpoint
        return own if "://" in own or Path(own).is_absolute() else f"{main.rstrip('/').rpartition('/')[0]}/{own}"

    def _predicted(self, method: Method, column: Column) -> None:
        folder = self._checkpoint(method, column)
        if "config.json" not in file_sizes(folder):
            reason = f"no_checkpoint: {folder}: no checkpoint of a hypernetwork is there"
            self.result.errors |= {(method.title, effect.name): reason for effect in self.suite.effects}
            return
        wanted = []
        for effect in self.suite.effects:
            prompt = self._other_prompt(effect) if column.kind == "random" else effect.prompt
            key = self._key("predicted", content(folder), self.weights, prompt)
            wanted.append(self._want(method, effect, key, prompt))
        self._add("predicted", column.name, folder, wanted, PREDICTIONS_AT_ONCE)

    def _other_prompt(self, effect: SuiteEffect) -> str:
        """The prompt of another effect: the world's own choice there, else of the one half the list further."""
        specs = {spec.name: spec for spec in EFFECTS}
        if self.is_world and effect.name in specs:
            return specs[other_effect(effect.name)].unseen_prompts[-1]
        effects = self.suite.effects
        if len(effects) < 2:
            raise ConfigError("a random prompt is another effect's; give the suite two effects or more")
        index = [e.name for e in effects].index(effect.name)
        return effects[(index + len(effects) // 2) % len(effects)].prompt

    def _of_library(self, method: Method, column: Column, manifest: Manifest) -> None:
        """mean, nearest and softmax, of the library's training LoRAs that are there."""
        train = []
        for entry in manifest.entries:
            paths = [manifest.locate(path) for _, path, _ in entry.files()]
            digests = [content(path) for path in paths]
            if entry.split == "train" and all(d != p for d, p in zip(digests, paths, strict=True)):
                train.append((entry.effect, *entry.prompts, *digests))
        if not train:
            raise ConfigError(f"{self.library}: no training LoRA is there; {column.name} needs some")
        wanted = []
        for effect in self.suite.effects:
            prompt = "" if column.kind == "mean" else effect.prompt
            key = self._key(column.kind, digest_of(*train), prompt, column.temperature)
            wanted.append(self._want(method, effect, key, prompt))
        self._add(column.kind, column.name, self.library, wanted, len(wanted))

    def _trained(self, method: Method, column: Column) -> None:
        known = {spec.name for spec in EFFECTS}
        strangers = [effect.name for effect in self.suite.effects if effect.name not in known]
        if not self.is_world or strangers:
            raise ConfigError(
                f"method {method.title}: {column.name} is trained here in the world only; train LoRAs with "
                "ray_jobs.library and give the method loras"
            )
        name, start = column.name, ""
        if column.kind == "init":
            folder = self._checkpoint(method, column)
            if "config.json" not in file_sizes(folder):
                reason = f"no_checkpoint: {folder}: no checkpoint of a hypernetwork is there"
                self.result.errors |= {(method.title, effect.name): reason for effect in self.suite.effects}
                return
            name, start = f"init:{column.steps}:{folder}", content(folder)
        for effect in self.suite.effects:
            prompt = effect.prompt if column.kind == "init" else ""
            recipe = self.recipe.model_dump_json()
            key = self._key("trained", column.kind, column.steps, start, self.weights, recipe, effect.name, prompt)
            self._add("trained", name, str(self.world), [self._want(method, effect, key, prompt)], 1)

    def _key(self, *parts: object) -> str:
        return digest_of(RECIPE, *parts)[:32]

    def _want(self, method: Method, effect: SuiteEffect, key: str, prompt: str) -> Wanted:
        self.result.keys[method.title, effect.name] = key
        return Wanted(key=key, effect=effect.name, prompt=prompt)

    def _add(self, kind: Any, column: str, source: str, wanted: list[Wanted], size: int) -> None:
        planned = {w.key for task in self.result.tasks for w in task.wanted}
        own: dict[str, Wanted] = {}
        for want in wanted:
            if f"{want.key}.json" not in self.there and want.key not in planned:
                own.setdefault(want.key, want)
        left = list(own.values())
        for start in range(0, len(left), size):
            self.result.tasks.append(
                LoraTask(
                    kind=kind, column=column, output=self.folder, base=self.base, source=source, recipe=self.recipe,
                    wanted=tuple(left[start : start + size]),
                )
            )  # fmt: skip


def _column(method: Method) -> Column:
    try:
        column = Column.parse(str(method.column))
    except InputError as error:
        raise ConfigError(f"method {method.title}: {error}") from None
    if column.kind == "cap":
        raise ConfigError(f"method {method.title}: cap is of `p2e eval world`; leave it out of a suite")
    return column

"""`p2e adapt`: from a folder of captioned clips to a LoRA file, from scratch or from a given LoRA, for any base.

Clips and captions are encoded once (`p2e.adapt.encode`), then each transformer that is asked for is trained in turn
(`p2e.adapt.expert`). A run that is cut off goes on from what it keeps beside its output.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from p2e import __version__
from p2e.adapt.cache import RecordCache, content_digest, default_cache, digest_of
from p2e.adapt.clips import list_clips
from p2e.adapt.config import AdaptConfig, FineTuneConfig
from p2e.adapt.encode import Example, encode_examples
from p2e.adapt.expert import open_transformer, train_expert
from p2e.adapt.families import Adapter, open_adapter
from p2e.adapt.grouped import GroupedLoras
from p2e.adapt.sites import choose_sites, narrowed
from p2e.adapt.state import AdaptState
from p2e.bases import Base, Site, open_base
from p2e.errors import ConfigError, InputError
from p2e.files import write_text
from p2e.lora.compose import blend
from p2e.lora.formats import read_lora, write_lora
from p2e.lora.lora import Factors, Lora

__all__ = ["adapt", "config_path"]


def config_path(output: str | Path) -> Path:
    """Where the resolved configuration of a LoRA stands: NAME.json beside NAME.safetensors."""
    path = Path(output)
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.json")


def adapt(
    clips: str | Path, base_folder: str | Path, output: str | Path, config: AdaptConfig, *,
    init: str | Path | Sequence[str | Path] | None = None, size: tuple[int, int, int] | None = None,
    fps: float | None = None, device: str = "cpu", on_step: Callable[[int, Tensor], None] | None = None,
    on_encoded: Callable[[int, int], None] | None = None,
) -> Lora:  # fmt: skip
    """Trains a LoRA on the clips of a folder and writes it in the default format, with its configuration beside it.

    Of a base of two transformers both are trained, one after the other, and become two files (`write_lora` names them),
    unless the configuration asks for one.

    Args:
        base_folder: diffusers pipeline folder, or "world".
        config: the recipe; what it leaves out takes the base's own.
        init: a LoRA to begin from, or the two files of a base of two transformers; truncated by its singular values
            where its rank is larger than the configuration's.
        size, fps: overrule the configuration's buckets by the one (F, H, W), and its rate.
        on_step: called with the step, counted over all transformers, and its loss [1].
        on_encoded: called with the clips and captions that are encoded, and their number in all.

    Raises:
        InputError: clips, base, init or settings that cannot be used.
        OutputError: output or cache cannot be written.
    """
    base, reader = open_base(str(base_folder))
    if reader is None:
        raise InputError(f"{base_folder} is a name without weights; give the folder of its diffusers pipeline")
    asked = config.model_dump(exclude_unset=True)
    asked |= {k: v for k, v in (("buckets", None if size is None else (size,)), ("fps", fps)) if v is not None}
    settings = FineTuneConfig.parse(asked, "p2e adapt")
    adapter = open_adapter(base, str(reader.folder), settings)
    chosen = _chosen(base, settings)
    given = [] if init is None else [init] if isinstance(init, str | Path) else list(init)
    start = _start(given, base, settings, {site.key for sites in chosen.values() for site in sites})
    cache = RecordCache(default_cache() if settings.cache is None else Path(settings.cache))
    examples = encode_examples(adapter, list_clips(clips), cache, device, on_example=on_encoded)
    digest = _digest(adapter, settings, examples, start)
    factors, losses, states = {}, [], []
    for number, (expert, sites) in enumerate(chosen.items()):
        own, loss, state = _train(adapter, expert, sites, examples, start, digest, Path(output), device,
                                  _counted(on_step, number * settings.steps))  # fmt: skip
        factors |= own
        losses.append(loss)
        states.append(state)
    lora = Lora(base.name, {site.key: factors[site.key] for site in base.sites if site.key in factors})
    metadata = {"p2e.version": __version__, "p2e.base": base.name, "p2e.steps": str(settings.steps),
                "p2e.loss": " ".join(f"{loss:.5f}" for loss in losses),
                "p2e.init": " ".join(Path(path).name for path in given)}  # fmt: skip
    write_lora(output, lora, base, metadata=metadata)
    write_text(config_path(output), _resolved(adapter, settings, examples).to_json())
    for state in states:
        state.remove()
    return lora


def _chosen(base: Base, settings: FineTuneConfig) -> dict[str | None, list[Site]]:
    """The transformers to train, each with its sites."""
    if settings.expert != "both" and settings.expert not in base.experts:
        raise ConfigError(f"expert: {base.name} has one transformer; leave {settings.expert} out")
    sites = choose_sites(base, settings.sites)
    experts = base.experts if settings.expert == "both" else (settings.expert,)
    chosen = {expert: own for expert in experts if (own := [site for site in sites if site.expert == expert])}
    if not chosen:
        raise ConfigError(f"sites: none of those asked for is of the {settings.expert} transformer of {base.name}")
    return chosen


def _start(paths: Sequence[str | Path], base: Base, settings: FineTuneConfig, chosen: set[str]) -> Lora | None:
    """What training begins from, of the configuration's rank at most."""
    factors: dict[str, Factors] = {}
    for path in paths:
        given = read_lora(path, base, None if settings.expert == "both" else settings.expert)
        if left := [key for key in given.factors if key not in chosen]:
            raise InputError(
                f"{path}: adapts {len(left)} sites that are not to be trained (first: {left[0]}), which would be lost; "
                "train those too"
            )
        if given.biases:
            raise InputError(f"{path}: has bias updates, which training cannot go on from; give one without")
        if twice := [key for key in given.factors if key in factors]:
            raise InputError(f"{path}: adapts {twice[0]}, as another file to begin from does; blend them first")
        factors |= given.factors
    if not factors:
        return None
    lora = Lora(base.name, factors)
    return lora if lora.rank <= settings.rank else blend([(lora, 1.0)], settings.rank).lora


def _train(
    adapter: Adapter, expert: str | None, sites: list[Site], examples: list[Example], start: Lora | None, digest: str,
    output: Path, device: str, on_step: Callable[[int, Tensor], None] | None,
) -> tuple[dict[str, Factors], float, AdaptState]:  # fmt: skip
    settings = adapter.config
    label = f".{expert}" if expert else ""
    state = AdaptState(output.with_name(f".{output.name}{label}.state"), digest, settings.save_every)
    loras = GroupedLoras(
        narrowed(adapter.base, sites), 1, settings.rank, seed=settings.seed, device=device,
        init=None if start is None else [start],
    )  # fmt: skip
    transformer = open_transformer(adapter, expert, device)
    loss = train_expert(adapter, expert, transformer, loras, examples, state=state, on_step=on_step)
    return dict(loras.lora(0).factors), loss.item(), state


def _counted(on_step: Callable[[int, Tensor], None] | None, before: int) -> Callable[[int, Tensor], None] | None:
    return None if on_step is None else lambda step, loss: on_step(before + step, loss)


def _digest(adapter: Adapter, settings: FineTuneConfig, examples: list[Example], start: Lora | None) -> str:
    """Of everything that the LoRA depends on: a run goes on only from a state that has the same."""
    kept = settings.model_dump_json(exclude={"cache", "save_every"})
    folders = [adapter.folder / name for name in adapter.base.subfolders.values()]
    given = hashlib.sha256()
    for key, factors in ({} if start is None else start.factors).items():
        given.update(key.encode())
        for factor in factors:
            given.update(factor.float().contiguous().numpy().tobytes())
    return digest_of(kept, sorted(settings.model_fields_set - {"cache", "save_every"}), adapter.base.name,
                     content_digest(folders), given.hexdigest(), *(example.digest for example in examples))  # fmt: skip


def _resolved(adapter: Adapter, settings: FineTuneConfig, examples: list[Example]) -> FineTuneConfig:
    """The settings with what the base and the clips decided: the same again, whatever the defaults become."""
    found = tuple(dict.fromkeys(example.bucket for example in examples))
    shifts = {adapter.shift(*bucket) for bucket in found}
    decided: dict[str, object] = {"fps": adapter.fps}
    if settings.buckets is None:
        decided["buckets"] = found
    if "sampling" not in settings.model_fields_set:
        decided["sampling"] = adapter.sampling
    # Where it grows with the clip there is no one number to state.
    if "shift" not in settings.model_fields_set and len(shifts) == 1:
        decided["shift"] = shifts.pop()
    return FineTuneConfig.parse(settings.model_dump() | decided, "p2e adapt")

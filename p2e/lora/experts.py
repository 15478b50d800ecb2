"""Which transformer of a two-expert base (Wan 2.2 A14B) the layers of a LoRA file belong to."""

from collections.abc import Callable

from p2e.bases.base import Base
from p2e.errors import FormatError, InputError
from p2e.lora.layers import EXPERT_KEY, Layer, LoraFile

__all__ = ["expert_chooser"]


def expert_chooser(file: LoraFile, base: Base, expert: str | None) -> Callable[[Layer], tuple[str | None, ...]]:
    """A function from a layer to the experts that its update is for; empty for one that was not asked for.

    Keys that name an expert decide (transformer_1 is the high-noise one, transformer_2 the low-noise one; beside
    those a bare "transformer." is the first, as in diffusers). Otherwise the argument does, then the header.

    Args:
        expert: a name of the base's experts, "both", or None.

    Raises:
        FormatError: the file holds LoRAs of two experts and the base has one.
        InputError: `expert` does not go with the base, or is needed and missing.
    """
    labelled = any(layer.expert is not None for layer in file.layers)
    if len(base.experts) == 1:
        if expert is not None:
            raise InputError(f"{file.source}: {base.name} has no experts; leave out the expert {expert!r}")
        if labelled:
            raise FormatError(
                f"{file.source}: its keys name one of two transformers, {base.name} has one; give a two-expert base "
                "with --base"
            )
        return lambda layer: base.experts
    names = " or ".join(str(name) for name in base.experts)
    if expert not in (None, "both", *base.experts):
        raise InputError(f"{file.source}: {base.name} has no expert {expert!r}; choose {names}, or both")
    if labelled:
        asked = base.experts if expert in (None, "both") else (expert,)

        def by_key(layer: Layer) -> tuple[str | None, ...]:
            own = base.experts[layer.expert or 0]
            return (own,) if own in asked else ()

        return by_key
    chosen = expert or file.metadata.get(EXPERT_KEY)
    if chosen not in ("both", *base.experts):
        raise InputError(
            f"{file.source}: nothing in it tells for which transformer of {base.name} it is; name the expert: {names}, "
            "or both"
        )
    experts = base.experts if chosen == "both" else (chosen,)
    return lambda layer: experts

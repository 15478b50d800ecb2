"""The keys of a LoRA file: which layer each one speaks of, and what it says of it.

A key is `prefix + layer + suffix`. Trainers differ in all three, so each is taken apart on its own, by content:
the prefix ("diffusion_model.", "transformer.", "lora_unet_", none), the layer's name (original, diffusers, or either
with dots turned to underscores) and the suffix (lora_A or lora_down, alpha, diff_b). Any combination is understood.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from p2e.bases.base import Base, Site

__all__ = ["Key", "NameTable", "Place", "Role", "family_of", "parse_key", "refusal", "shown"]

Role = Literal["a", "b", "alpha", "b_bias", "diff_b", "other"]

# (suffix, what it holds). An adapter name may stand inside: lora_A.default.weight.
_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"
_SUFFIXES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(rf"\.(?:lora_A|lora_down|lora\.down){_ADAPTER}(?:\.weight)?$"), "a"),
    (re.compile(rf"\.(?:lora_B|lora_up|lora\.up){_ADAPTER}(?:\.weight)?$"), "b"),
    (re.compile(rf"\.(?:lora_B|lora_up|lora\.up){_ADAPTER}\.bias$"), "b_bias"),
    (re.compile(r"\.diff_b$"), "diff_b"),
    (re.compile(r"\.alpha$"), "alpha"),
)
_DOTTED = re.compile(r"^(?:base_model\.model|diffusion_model|model|pipe|dit2|dit|transformer_[12]|transformer|unet)\.")
_FLAT = re.compile(r"^(?:lora_unet__?|lora_transformer_|lycoris_)")
# which expert a prefix names: the first takes the high noise
_EXPERTS = {"transformer_1.": 0, "transformer_2.": 1, "dit2.": 1}

# Updates that are not a product B A. The remedy is the same for all.
_REFUSED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.lokr_"), "LoKr (Kronecker factors)"),
    (re.compile(r"\.hada_"), "LoHa of LyCORIS (Hadamard factors)"),
    (re.compile(r"\.(?:dora_scale|lora_magnitude_vector)"), "DoRA (rescales the weight's columns)"),
    (re.compile(r"\.(?:lora_mid|cp_down|cp_up)\b"), "a Tucker-decomposed convolution of LyCORIS"),
    (re.compile(r"\.(?:oft_|boft_|oft_blocks)"), "OFT (rotates the weight)"),
    (re.compile(r"\.(?:vera_|ia3_|on_input$)"), "VeRA or IA3 (scales activations)"),
    (re.compile(r"\.(?:a1|a2|b1|b2)\.weight$"), "GLoRA (depends on the weight)"),
)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file, taken apart.

    Attributes:
        text: the key as it is stored.
        layer: the layer's name without prefix and suffix; dots may be underscores.
        role: "a" and "b" the factors, "alpha", "b_bias" a bias that shares B's scale, "diff_b" one that has none.
        prefix: what stood before the layer, "" for none.
        expert: 0 or 1 where the prefix names the transformer of a two-expert model.
    """

    text: str
    layer: str
    role: Role
    prefix: str
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer's update lands: rows `row` to `row + rows` of a site."""

    site: Site
    row: int
    rows: int


def shown(key: str) -> str:
    """A key as an error message may show it: printable, on one line, not endless."""
    text = key.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 120 else text[:117] + "..."


def parse_key(text: str) -> Key:
    """Takes one key apart; a suffix that is no part of a LoRA gives the role "other"."""
    role: Role = "other"
    body = text
    for pattern, found in _SUFFIXES:
        if match := pattern.search(text):
            role, body = found, text[: match.start()]
            break
    layer, expert = body, None
    if match := _FLAT.match(layer):
        layer = layer[match.end() :]
    else:
        while match := _DOTTED.match(layer):
            expert = _EXPERTS.get(match.group(), expert)
            layer = layer[match.end() :]
    return Key(text, layer, role, body[: len(body) - len(layer)], expert)


def refusal(keys: Iterable[str]) -> tuple[str, str] | None:
    """(key, what it is) of the first update that is not a product of two factors, None where all may be read."""
    for key in keys:
        for pattern, kind in _REFUSED:
            if pattern.search(key):
                return key, kind
    return None


def family_of(keys: Iterable[Key], base: Base) -> str:
    """The file family of a LoRA's keys, F1 to F7 and F9: a label for reports, nothing is decided by it.

    F1 original names; F2 the same as lora_down and lora_up; F3 lora_unet_ with underscores; F4 the same with two
    underscores; F5 "transformer." (diffusers); F6 bare original names or an adapter's name inside; F7 PEFT's
    "base_model.model."; F9 bare diffusers names.
    """
    pairs = [key for key in keys if key.role in ("a", "b")]
    prefixes = {key.prefix for key in pairs}
    if any(prefix.startswith("lora_unet__") for prefix in prefixes):
        return "F4"
    if any(_FLAT.match(prefix) for prefix in prefixes):
        return "F3"
    if any(prefix.startswith("base_model.model.") for prefix in prefixes):
        return "F7"
    if any("pipe." in prefix or "dit." in prefix for prefix in prefixes) or any(".default" in k.text for k in pairs):
        return "F6"
    if "" in prefixes:
        parts = {part.name for site in base.sites for part in site.parts}
        return "F9" if any(key.layer in parts for key in pairs) else "F6"
    if any(prefix.startswith("transformer.") for prefix in prefixes):
        return "F5"
    return "F2" if any("lora_down" in key.text or "lora_up" in key.text for key in pairs) else "F1"


class NameTable:
    """Every name under which a layer of a base may stand in a file.

    Args:
        base: the base; its sites are found by original name, by the diffusers names of their parts, and by both
            with dots turned to underscores.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._places: dict[str, dict[str | None, Place]] = {}
        for site in base.sites:
            self._add(site.name, Place(site, 0, site.d_out))
            row = 0
            for part in site.parts:
                self._add(part.name, Place(site, row, part.rows))
                row += part.rows
        self._patterns = {_without_numbers(name) for name in self._places}

    def _add(self, name: str, place: Place) -> None:
        comfy = _comfy_name(name) if self.base.family == "hunyuan" else name
        for alias in (name, comfy, name.replace(".", "_"), comfy.replace(".", "_")):
            self._places.setdefault(alias, {})[place.site.expert] = place

    def __contains__(self, layer: object) -> bool:
        return layer in self._places

    def place(self, layer: str, expert: str | None) -> Place | None:
        """Where the layer of that name lands in the given expert; None where the base has no such site."""
        return self._places.get(layer, {}).get(expert)

    def any_place(self, layer: str) -> Place | None:
        """The place in the first expert: names and shapes are the same in all."""
        return next(iter(self._places.get(layer, {}).values()), None)

    def beyond(self, layer: str) -> bool:
        """Whether the layer would be a site if the base had more blocks."""
        return layer not in self._places and _without_numbers(layer) in self._patterns


def _comfy_name(name: str) -> str:
    """ComfyUI's own name of an original HunyuanVideo layer, which LoRAs extracted there carry."""
    for original, comfy in (
        ("_attn_qkv", "_attn.qkv"), ("_attn_proj", "_attn.proj"), ("_mlp.fc1", "_mlp.0"), ("_mlp.fc2", "_mlp.2"),
        ("_mod.linear", "_mod.lin"), ("modulation.linear", "modulation.lin"),
    ):  # fmt: skip
        name = name.removesuffix(original) + comfy if name.endswith(original) else name
    return name


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)

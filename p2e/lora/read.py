"""Reading a LoRA of any family into factors with every scale folded in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from p2e.bases.base import Base, Site
from p2e.errors import FormatError
from p2e.lora.detect import detect_base, fitting_bases
from p2e.lora.experts import expert_chooser
from p2e.lora.keys import Key, NameTable, Place, Role, family_of, shown
from p2e.lora.layers import ZERO_KEY, Layer, LoraFile, all_finite
from p2e.lora.lora import Factors, Lora, Provenance
from p2e.lora.scales import HEADER_KEY, AdapterConfig, config_beside, header_config

__all__ = ["read_lora"]


def read_lora(path: str | Path, base: Base | None = None, expert: str | None = None) -> Lora:
    """Reads a LoRA file of any family, told apart by content alone.

    Understood are original and diffusers layer names, dotted or with underscores, under any known prefix or none,
    as lora_A/lora_B or lora_down/lora_up, with alphas stored, in the header, or in `adapter_config.json` beside it
    (`p2e.lora.scales` has the rule). Layers that the base fuses may come apart; they are put together again.

    Args:
        path: a local path, a folder as PEFT or diffusers save it, or an fsspec URL.
        base: the base it is for; None tells it from the layers (`p2e.lora.detect` has the rule).
        expert: for a base of two experts, the one that the file is for: "high_noise", "low_noise", or "both" for one
            LoRA that serves both. Not needed where the keys or the header say so; it then selects.

    Returns:
        Factors in float32; `provenance.ignored` lists what of the file is no part of them, and why.

    Raises:
        FormatError: the file is corrupt, no plain LoRA, not finite, or for another base.
        InputError: base or expert are needed and not given, or do not go with the file.
    """
    with LoraFile(path) as file:
        return _Reader(file, base if base is not None else detect_base(file, expert), expert).read()


@dataclass(frozen=True)
class _Piece:
    """What one layer of the file brings to a site: factors and bias for the rows of its place."""

    place: Place
    a: Tensor | None
    b: Tensor | None
    bias: Tensor | None
    scale: float


class _Reader:
    """One reading of one file for one base."""

    def __init__(self, file: LoraFile, base: Base, expert: str | None) -> None:
        self.file, self.base = file, base
        self.names = NameTable(base)
        self.experts = expert_chooser(file, base, expert)
        self.ignored: dict[str, str] = {key.text: _why_other(key) for key in file.others}
        self.config = self._config()
        self.zeros = _zero_filled(file)

    def read(self) -> Lora:
        pieces: dict[str, list[_Piece]] = {}
        for layer in self.file.layers:
            experts = self.experts(layer)
            places = [p for p in (self.names.place(layer.name, e) for e in experts) if p is not None]
            if not places:
                self._ignore(layer, selected=bool(experts))
                continue
            piece = self._piece(layer, places[0])
            for place in places:
                own = replace(piece, place=place)
                if place.site.key in self.zeros and piece.b is not None and not piece.b.any():
                    own = replace(own, a=None, b=None)
                pieces.setdefault(place.site.key, []).append(own)
        factors = {key: made for key, own in pieces.items() if (made := self._factors(own)) is not None}
        if not factors:
            pairs = [layer.name for layer in self.file.layers if layer.is_pair]
            raise FormatError(
                f"{self.file.source}: none of its {len(pairs)} LoRA layers (first: {shown(pairs[0])}) is a site of "
                f"{self.base.name}; {self._remedy()}"
            )
        order = [site.key for site in self.base.sites]
        biases = {key: made for key, own in pieces.items() if (made := _bias(own)) is not None}
        return Lora(
            base=self.base.name,
            factors={key: factors[key] for key in order if key in factors},
            biases={key: biases[key] for key in order if key in biases},
            provenance=Provenance(
                source=self.file.source,
                family=family_of(self.file.all_keys(), self.base),
                scales={key: max((p.scale for p in pieces[key] if p.a is not None), key=abs) for key in factors},
                ignored=self.ignored,
                metadata=dict(self.file.metadata),
            ),
        )

    def _config(self) -> AdapterConfig | None:
        config = header_config(self.file.source, self.file.metadata)
        if config is not None:
            if any("alpha" in layer.keys for layer in self.file.layers):
                self.ignored[HEADER_KEY] = "layers with an alpha of their own use that"
            return config
        if not any(key.prefix.startswith("base_model.model.") for key in self.file.all_keys()):
            return None
        config = config_beside(self.file.source)
        if config is None:
            self.ignored["adapter_config.json"] = "not beside the file: alpha is taken to be the rank"
        return config

    def _piece(self, layer: Layer, place: Place) -> _Piece:
        a = b = bias = None
        scale = 1.0
        if layer.is_pair:
            a, b = self.file.factors(layer)
            if layer.shape != (place.rows, place.site.d_in):
                raise FormatError(
                    f"{self.file.source}: {shown(layer.name)} is {b.shape[0]} x {a.shape[1]}, in {self.base.name} it "
                    f"is {place.rows} x {place.site.d_in}; {self._remedy()}"
                )
            alpha = self.file.alpha(layer)
            if alpha is not None:
                scale = alpha / len(a)
            elif self.config is not None:
                scale = self.config.scale((layer.name, *(part.name for part in place.site.parts)), len(a))
            # All of the scale goes to B: the split is free, and A stays as it was trained.
            b = b if scale == 1.0 else b * scale
            if not all_finite(b):
                raise FormatError(
                    f"{self.file.source}: alpha of {shown(layer.name)} makes its update NaN or infinite; use another "
                    "save"
                )
        elif "alpha" in layer.keys:
            self.ignored[layer.keys["alpha"].text] = "an alpha without factors"
        # lora_B.bias passes through the layer's scale in PEFT; diff_b is the difference itself.
        scales: dict[Role, float] = {"diff_b": 1.0, "b_bias": scale}
        for role, factor in scales.items():
            if role in layer.keys:
                own = self.file.tensor(layer.keys[role]).reshape(-1) * factor
                if len(own) != place.rows:
                    raise FormatError(
                        f"{self.file.source}: {shown(layer.keys[role].text)} has {len(own)} entries, the layer has "
                        f"{place.rows} rows; {self._remedy()}"
                    )
                bias = own if bias is None else bias + own
        return _Piece(place, a, b, bias, scale)

    def _factors(self, pieces: Sequence[_Piece]) -> Factors | None:
        """Factors of a site from its pieces; rows that no piece has stay as they are in W0.

        Pieces with the same A share it, so a fused layer that was split row by row gets its rank back; otherwise the
        ranks add up and B is block-diagonal.
        """
        rows: set[int] = set()
        inputs: list[Tensor] = []
        parts: list[tuple[_Piece, Tensor, int]] = []
        for piece in pieces:
            own = set(range(piece.place.row, piece.place.row + piece.place.rows))
            if rows & own:
                raise FormatError(
                    f"{self.file.source}: holds two LoRAs of {piece.place.site.name} under different names; save each "
                    "to a file of its own"
                )
            rows |= own
            if piece.a is None or piece.b is None:
                continue
            index = next((i for i, known in enumerate(inputs) if torch.equal(known, piece.a)), len(inputs))
            if index == len(inputs):
                inputs.append(piece.a)
            parts.append((piece, piece.b, index))
        if not parts:
            return None
        site = pieces[0].place.site
        if len(parts) == 1 and parts[0][0].place.rows == site.d_out:
            return Factors(inputs[0], parts[0][1])
        starts = [sum(len(a) for a in inputs[:index]) for index in range(len(inputs) + 1)]
        b = torch.zeros(site.d_out, starts[-1])
        for piece, own_b, index in parts:
            b[piece.place.row : piece.place.row + piece.place.rows, starts[index] : starts[index + 1]] = own_b
        return Factors(torch.cat(inputs), b)

    def _ignore(self, layer: Layer, *, selected: bool) -> None:
        if self.names.beyond(layer.name):
            raise FormatError(
                f"{self.file.source}: {shown(layer.name)} lies beyond the last block of "
                f"{self.base.name}; {self._remedy()}"
            )
        for key in layer.keys.values():
            if not selected:
                why = "of the expert that was not asked for"
            elif key.text.startswith(("text_encoder", "lora_te")):
                why = "of the text encoder"
            elif "norm" in key.layer:
                why = "of a normalisation layer"
            else:
                why = f"of a layer that is not a site of {self.base.name}"
            self.ignored[key.text] = why

    def _remedy(self) -> str:
        fits = [base.name for base in fitting_bases(self.file) if base.name != self.base.name]
        return f"the file fits {', '.join(fits)}: choose with --base" if fits else "choose its base with --base"


def _bias(pieces: Sequence[_Piece]) -> Tensor | None:
    # A bias of zeros is no update: writers store it because PEFT gives a bias to all layers or to none.
    given = [(piece.place, piece.bias) for piece in pieces if piece.bias is not None and piece.bias.any()]
    if not given:
        return None
    site: Site = given[0][0].site
    bias = torch.zeros(site.d_out)
    for place, own in given:
        bias[place.row : place.row + place.rows] = own
    return bias


def _zero_filled(file: LoraFile) -> frozenset[str]:
    """Sites that the writer filled with zeros for a reader that wants them all: they are not covered."""
    try:
        listed = json.loads(file.metadata.get(ZERO_KEY, "[]"))
        return frozenset(map(str, listed))
    except (ValueError, TypeError, RecursionError):
        raise FormatError(f"{file.source}: header entry {ZERO_KEY} is not a JSON list; write the file again") from None


def _why_other(key: Key) -> str:
    if "norm" in key.layer:
        return "of a normalisation layer"
    if key.text.endswith(".diff"):
        return "the full difference of a weight, not a product of two factors"
    if key.text.endswith(".diff_m"):
        return "the difference of a modulation table"
    return "no part of a LoRA that p2e knows"

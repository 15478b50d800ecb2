"""Writing a LoRA in the three forms that other programs read.

All have the scale folded in, one rank everywhere (zero padding), and nothing in the header that a reader takes for a
scale, so that every reader arrives at the same update. Sites that a reader insists on are filled with zeros and listed
in the header entry `p2e.zero_filled`; p2e leaves them uncovered when it reads the file again.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from p2e.bases.base import Base, Site
from p2e.errors import InputError
from p2e.files import DTYPE_NAMES, safetensors_writer
from p2e.lora.layers import BASE_KEY, EXPERT_KEY, ZERO_KEY, FiniteCheck
from p2e.lora.lora import Factors, Lora
from p2e.lora.scales import HEADER_KEY
from p2e.staging import host_bytes

__all__ = ["LoraFormat", "write_lora", "write_lora_parts"]

LoraFormat = Literal["wan", "diffusers", "kohya"]

# Header entries of other files that would speak of another rank or scale than this one has.
_STALE = frozenset({HEADER_KEY, "format", "ss_network_dim", "ss_network_alpha", ZERO_KEY, BASE_KEY, EXPERT_KEY})


def write_lora(
    path: str | Path,
    lora: Lora,
    base: Base,
    fmt: LoraFormat = "wan",
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes a LoRA, whole or not at all.

    Args:
        path: the file. A LoRA of both experts of a base becomes two files, NAME_high_noise and NAME_low_noise, as
            ComfyUI and diffusers take one a transformer.
        lora: its sites must be those of `base`.
        fmt: "wan" `diffusion_model.` + original names + lora_A/lora_B, which ComfyUI, diffusers and most others read
            (for CogVideoX, whose only names are those of diffusers, `transformer.`); "diffusers" `transformer.` +
            diffusers names; "kohya" `lora_unet_` names with alpha equal to the rank (diffusers reads it for Wan only).
        dtype: type of the factors in the file.
        metadata: header entries besides the format, the base and the expert.

    Returns:
        The files written.

    Raises:
        InputError: the LoRA is empty, not of this base, not finite in `dtype`, or has biases that `fmt` cannot carry.
        OutputError: the path cannot be written.
    """
    return write_lora_parts(path, lora, [lora], base, fmt, dtype, metadata)


def write_lora_parts(
    path: str | Path,
    outline: Lora,
    parts: Iterable[Lora],
    base: Base,
    fmt: LoraFormat = "wan",
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """`write_lora` for a LoRA that comes in parts, each of some sites: one is written while the next is computed.

    Args:
        outline: the whole LoRA's sites and shapes; its tensors may be of the `meta` device.
        parts: every site of the outline once, in any order. Those of a GPU are asked for before the last part has been
            copied from there (see `host_bytes`).
    """
    _check(path, outline, base, fmt, dtype)
    sites = {*outline.factors, *outline.biases}
    experts = [e for e in base.experts if any(base.by_key[key].expert == e for key in sites)]
    target = Path(path)
    files = [
        target if len(experts) == 1 else target.with_name(f"{target.stem}_{expert}{target.suffix}")
        for expert in experts
    ]
    plans = [_Plan(base, expert, outline, fmt, dtype) for expert in experts]
    finite = FiniteCheck()

    def tensors() -> Iterator[tuple[tuple[int, str], Tensor]]:
        """Under the number of their file and their name."""
        for place, plan in enumerate(plans):
            yield from (((place, name), tensor) for name, tensor in plan.zeros())
        for part in parts:
            found = {(place, name): x for place, plan in enumerate(plans) for name, x in plan.tensors(part)}
            finite.add(found)
            yield from found.items()

    with contextlib.ExitStack() as stack:
        puts = [
            stack.enter_context(safetensors_writer(file, plan.outline, plan.header(metadata or {})))
            for file, plan in zip(files, plans, strict=True)
        ]
        for (place, name), data in host_bytes(tensors()):
            puts[place](name, data)
        if bad := finite.first_not_finite():
            raise InputError(
                f"{path}: {plans[bad[0]].site_of[bad[1]]} holds NaN, infinity or more than {dtype} can hold; check the "
                "LoRA, or write another type"
            )
    return files


def _check(path: str | Path, lora: Lora, base: Base, fmt: LoraFormat, dtype: torch.dtype) -> None:
    """Refuses what cannot be written."""
    if fmt not in ("wan", "diffusers", "kohya"):
        raise InputError(f"{path}: no LoRA format {fmt!r}; choose wan, diffusers or kohya")
    if dtype not in DTYPE_NAMES or not dtype.is_floating_point:
        raise InputError(f"{path}: a LoRA cannot be stored as {dtype}; choose bfloat16, float16 or float32")
    if not lora.factors:
        raise InputError(f"{path}: the LoRA covers no site, nothing to write; check where it comes from")
    for key in (*lora.factors, *lora.biases):
        if key not in base.by_key:
            raise InputError(f"{path}: {key} is no site of {base.name}, the LoRA is for {lora.base}; give that base")
    for key, (a, b) in lora.factors.items():
        site = base.by_key[key]
        if (len(b), a.shape[1]) != (site.d_out, site.d_in) or b.shape[1] != len(a):
            raise InputError(
                f"{path}: {key} is {len(b)} x {a.shape[1]}, in {base.name} it is {site.d_out} x {site.d_in}; give the "
                "base that the LoRA is for"
            )
    for key, bias in lora.biases.items():
        if bias.shape != (base.by_key[key].d_out,):
            raise InputError(
                f"{path}: the bias of {key} is {list(bias.shape)}, in {base.name} it has {base.by_key[key].d_out} "
                "entries; give the base that the LoRA is for"
            )
    if lora.biases and fmt == "kohya":
        raise InputError(f"{path}: the kohya format carries no biases and this LoRA has them; write wan or diffusers")


class _Plan:
    """The file of one expert: which tensors it holds, in which order.

    Attributes:
        outline: each tensor's shape and type, on `meta`.
        site_of: the site of each tensor.
    """

    def __init__(self, base: Base, expert: str | None, lora: Lora, fmt: LoraFormat, dtype: torch.dtype) -> None:
        self.base, self.expert, self.dtype = base, expert, dtype
        self.fmt: LoraFormat = fmt
        sites = [site for site in base.sites if site.expert == expert]
        self.sites = _wanted(base, sites, lora, fmt)
        self.rank = max((lora.factors[site.key].rank for site in sites if site.key in lora.factors), default=1)
        self.biased = bool(lora.biases)
        # What no part brings: sites that a reader insists on.
        self._empty = [s for s in self.sites if s.key not in lora.factors and s.key not in lora.biases]
        self.uncovered = [site.key for site in self.sites if site.key not in lora.factors]
        self.outline: dict[str, Tensor] = {}
        self.site_of: dict[str, str] = {}
        for site in self.sites:
            for name, tensor in self._tensors(site, lora):
                self.outline[name], self.site_of[name] = tensor.to("meta"), site.key

    def header(self, metadata: Mapping[str, str]) -> dict[str, str]:
        header = {str(key): str(value) for key, value in metadata.items() if key not in _STALE}
        header[BASE_KEY] = self.base.name
        if self.expert is not None:
            header[EXPERT_KEY] = self.expert
        if self.uncovered:
            header[ZERO_KEY] = json.dumps(self.uncovered)
        return header

    def zeros(self) -> Iterator[tuple[str, Tensor]]:
        nothing = Lora(self.base.name, {})
        for site in self._empty:
            yield from self._tensors(site, nothing)

    def tensors(self, part: Lora) -> Iterator[tuple[str, Tensor]]:
        """Of a part's sites, those of this expert."""
        for site in self.sites:
            if site.key in part.factors or site.key in part.biases:
                yield from self._tensors(site, part)

    def _tensors(self, site: Site, lora: Lora) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in _site_tensors(site, lora, self.base, self.fmt, self.rank, biased=self.biased):
            yield name, tensor.to(self.dtype) if tensor.dim() else tensor  # an alpha stays exact


def _wanted(base: Base, sites: list[Site], lora: Lora, fmt: LoraFormat) -> list[Site]:
    """The sites to store: those covered, and those without which diffusers does not load the file."""
    covered = {site.key for site in sites if site.key in lora.factors or site.key in lora.biases}
    if fmt == "kohya" and base.family == "wan":
        # diffusers' converter takes blocks 0 to n - 1, each with every layer, image layers in all blocks or in none.
        first = min(site.block for site in sites)
        count = 1 + max(site.block for site in sites if site.key in covered) - first
        images = any(site.key in covered and site.module.endswith("_img") for site in sites)
        return [s for s in sites if s.block < first + count and (images or not s.module.endswith("_img"))]
    if base.family == "wan":
        # An image layer of one kind only is not known as one by diffusers, or overwritten with zeros.
        for kind, other in (("k_img", "v_img"), ("v_img", "k_img")):
            mine = [site.key for site in sites if site.key in covered and site.module.endswith(kind)]
            if mine and not any(key.endswith(other) for key in covered):
                covered.add(mine[0].removesuffix(kind) + other)
    if fmt == "wan" and base.family == "hunyuan" and not any("img_attn_qkv" in key for key in covered):
        # diffusers tells original names from its own by this layer alone.
        covered.add(next(site.key for site in sites if "img_attn_qkv" in site.name))
    return [site for site in sites if site.key in covered]


def _site_tensors(
    site: Site, lora: Lora, base: Base, fmt: LoraFormat, rank: int, *, biased: bool
) -> list[tuple[str, Tensor]]:
    factors = lora.factors.get(site.key)
    if factors is None:
        factors = Factors(torch.zeros(rank, site.d_in), torch.zeros(site.d_out, rank))
    a, b = factors
    if factors.rank < rank:
        a = torch.nn.functional.pad(a, (0, 0, 0, rank - a.shape[0]))
        b = torch.nn.functional.pad(b, (0, rank - b.shape[1]))
    # Where one layer of an adapter has a bias, PEFT gives one to all and leaves those not in the file undefined.
    bias = lora.biases.get(site.key, torch.zeros(site.d_out)) if biased else None
    if fmt == "kohya":
        layer = "lora_unet_" + site.name.replace(".", "_")
        return [
            (f"{layer}.lora_down.weight", a),
            (f"{layer}.lora_up.weight", b),
            (f"{layer}.alpha", torch.tensor(float(rank))),
        ]
    if fmt == "wan" and base.family != "cogvideox":
        layer = f"diffusion_model.{site.name}"
        tensors = [(f"{layer}.lora_A.weight", a), (f"{layer}.lora_B.weight", b)]
        return tensors if bias is None else [*tensors, (f"{layer}.{_bias_suffix(base)}", bias)]
    tensors, row = [], 0
    for part in site.parts:
        layer, rows = f"transformer.{part.name}", slice(row, row + part.rows)
        tensors += [(f"{layer}.lora_A.weight", a), (f"{layer}.lora_B.weight", b[rows])]
        if bias is not None:
            tensors.append((f"{layer}.lora_B.bias", bias[rows]))
        row += part.rows
    return tensors


def _bias_suffix(base: Base) -> str:
    # diffusers turns diff_b into a bias for Wan alone; elsewhere it must have PEFT's name from the start.
    return "diff_b" if base.family == "wan" else "lora_B.bias"

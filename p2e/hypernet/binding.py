"""A binding: what a hypernetwork knows of one base before it sees a prompt, computed once and kept.

That is equations 4 to 8, the queries of equation 10 and the residual of equations 11 and 12: half of the work of a
prediction (287 of 566 TFLOP for Wan2.1-I2V-14B at the paper's setting, by `p2e.hypernet.flops`). The base is read a few
sites at a time and never stands on the device. What is left for a prompt is the backbone, the attention of kept queries
to its latents, and two thin products.

A binding is made of pieces, a few sites of one shape each, as large as bounds the activations. The latents of all
pieces (0.5 GB there) stay on the device. Their queries (23 GB) lie, piece by piece, on the device while a budget of
bytes lasts, then in pinned host memory, from where the next piece is copied while one is computed, and else nowhere:
they are made anew from the base's weights in each prediction.

Shapes: S sites of a piece, E effects, n latents a site, M weight tokens a site, H heads of width k, r rank.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from p2e.bases import WeightReader
from p2e.bases.base import Site
from p2e.config import Settings
from p2e.errors import InputError
from p2e.hypernet.binding_files import BindingFiles
from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.float8 import use_float8
from p2e.hypernet.model import Bound, Hypernet
from p2e.hypernet.reading import check_base, copy_stream, read_ahead, read_sites, use_here
from p2e.text import TextStates

__all__ = ["Binding", "BindingConfig", "Piece", "bind", "piece_sites"]


class BindingConfig(Settings):
    """Where a binding lies and how much of it is computed at once.

    Attributes:
        device_gb: 1e9 bytes of queries kept on the device.
        host_gb: 1e9 bytes of queries kept in pinned host memory, for those that do not fit the device.
        piece_tokens: weight tokens of a piece; its queries take 2 d bytes a token in bfloat16.
        effects_at_once: prompts in one pass.
        compile: compile the backbone's block and the decompressor, once for each size of piece, number of prompts and
            multiple of 64 text tokens; another prompt compiles nothing.
        fp8: matrix products of the backbone in float8 (e4m3), with a scale a row of each factor.
    """

    device_gb: float = Field(default=1e3, ge=0)
    host_gb: float = Field(default=1e3, ge=0)
    piece_tokens: int = Field(default=400_000, ge=1)
    effects_at_once: int = Field(default=8, ge=1)
    compile: bool = False
    fp8: bool = False


@dataclass(frozen=True)
class Piece:
    """Some sites of one shape, bound.

    Attributes:
        sites: which.
        bound: latents [S, n, d], b [S, d_out, r] and a [S, d_in, r] on the device; its queries [S, H, M, k] are on the
            device, in host memory, or empty where they are made anew.
        kept: where the queries are: "device", "host" or "nowhere".
    """

    sites: tuple[Site, ...]
    bound: Bound
    kept: str


class Binding:
    """A hypernetwork bound to a base: predicts from prompts alone.

    Args:
        checkpoint: the hypernetwork; its device and the type of its parameters are used.
        weights: of the base; read again only for queries that are kept nowhere.
        pieces: all trained sites.
        config: how it is kept.
    """

    def __init__(
        self, checkpoint: Checkpoint, weights: WeightReader, pieces: Sequence[Piece], config: BindingConfig
    ) -> None:
        model = checkpoint.model
        assert isinstance(model, Hypernet)
        self.checkpoint, self.weights, self.pieces, self.config = checkpoint, weights, tuple(pieces), config
        self.model = prepared_model(model, config)
        self._decompressed = self.model.decompressed
        if config.compile:
            self._decompressed = torch.compile(self.model.decompressed, dynamic=False)
        with torch.no_grad():
            self.heads = model.heads()

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of queries by where they are kept; what is kept nowhere counts as it would there."""
        found = {"device": 0, "host": 0, "nowhere": 0}
        for piece in self.pieces:
            found[piece.kept] += query_bytes(self.checkpoint, piece.sites)
        return found

    @torch.no_grad()
    def predict(self, text: TextStates) -> Iterator[tuple[list[Site], Tensor, Tensor]]:
        """Predicts all sites for all prompts, piece by piece.

        Args:
            text: E sentences as `Hypernet.text_input` gives them, on the device.

        Yields:
            sites, A^ [S, E, r, d_in], B^ [S, E, d_out, r], in the units of the training targets.
        """
        most = self.config.effects_at_once
        parts = [text[start : start + most] for start in range(0, len(text.mask), most)]
        read = [(self.model.text_keys_values(part.states), part.mask) for part in map(self._padded, parts)]
        for piece, bound in self._with_queries():
            found = []
            for states, mask in read:
                latents = self.model.backbone(bound.latents, states, mask)
                found.append(self._decompressed(bound, latents, self.heads))
            yield list(piece.sites), torch.cat([a for a, _ in found], 1), torch.cat([b for _, b in found], 1)

    def _padded(self, text: TextStates) -> TextStates:
        """In few lengths, so that few graphs are compiled, and in the network's type."""
        text = text.without_padding()
        return TextStates(text.states.to(self.checkpoint.dtype), text.mask)

    def _with_queries(self) -> Iterator[tuple[Piece, Bound]]:
        """Every piece with its queries on the device, those of the next one on their way."""
        ahead = self._fetch(0)
        for index, piece in enumerate(self.pieces):
            queries, ready = ahead
            ahead = self._fetch(index + 1)
            if ready is not None:
                use_here(ready, queries)
            if piece.kept == "nowhere":
                queries = self._made(piece)
            yield piece, piece.bound._replace(queries=queries)

    def _fetch(self, index: int) -> tuple[Tensor, torch.cuda.Event | None]:
        """Begins to copy a piece's queries to the device -> them, and what to wait for."""
        if index >= len(self.pieces):
            return torch.empty(0), None
        piece, device = self.pieces[index], self.checkpoint.device
        if piece.kept != "host" or device.type != "cuda":
            return piece.bound.queries, None
        stream = copy_stream(device)
        # The copy may overtake what is computed, but not the host's memory: one piece is ahead, no more.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            queries = piece.bound.queries.to(device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
            return queries, event

    def _made(self, piece: Piece) -> Tensor:
        tokens, _ = self.model.weight_tokens(read_sites(self.checkpoint, self.weights, piece.sites))
        return self.model.decompress.queries(tokens)


def prepared_model(model: Hypernet, config: BindingConfig) -> Hypernet:
    """The network as a binding runs it: its backbone in float8 or compiled, all else shared with the checkpoint's."""
    if not (config.fp8 or config.compile):
        return model
    kept = copy.copy(model)  # modules of its own, the same parameters
    kept._modules = dict(model._modules)
    blocks = [copy_module(block) for block in model.blocks]
    for block in blocks:
        if config.fp8:
            use_float8(block)
        if config.compile:
            block.compile(dynamic=False, fullgraph=True)
    kept.blocks = nn.ModuleList(blocks)
    return kept


def copy_module(module: nn.Module) -> nn.Module:
    """A module and its children anew, with the same parameters."""
    found = copy.copy(module)
    found._modules = {name: None if child is None else copy_module(child) for name, child in module._modules.items()}
    found._parameters, found._buffers = dict(module._parameters), dict(module._buffers)
    return found


def bind(
    checkpoint: Checkpoint,
    weights: WeightReader,
    config: BindingConfig = BindingConfig(),  # noqa: B008  frozen
    folder: str | Path | None = None,
) -> Binding:
    """Binds a hypernetwork to a base.

    Args:
        folder: where bindings are kept: this one is read from there, or left there once it is made.

    Raises:
        InputError: the network is of a kind that has no binding, or the weights are of another base.
        FormatError: the binding in `folder` is damaged.
        OutputError: `folder` cannot be written.
    """
    model = checkpoint.model
    if not isinstance(model, Hypernet) or checkpoint.config.across_sites:
        raise InputError(f"{checkpoint.folder}: only the network that predicts each site by itself can be bound")
    check_base(checkpoint, weights)
    left = {"device": config.device_gb * 1e9, "host": config.host_gb * 1e9}
    store = None if folder is None else BindingFiles(folder, checkpoint, weights)
    found = store.read() if store and store.whole else made(checkpoint, weights, model, config, store)
    pieces = [kept(sites, bound, query_bytes(checkpoint, sites), left, checkpoint.device) for sites, bound in found]
    return Binding(checkpoint, weights, pieces, config)


def made(
    checkpoint: Checkpoint, weights: WeightReader, model: Hypernet, config: BindingConfig, store: BindingFiles | None
) -> Iterator[tuple[tuple[Site, ...], Bound]]:
    """Binds piece by piece; the next one is read from disk meanwhile."""
    plan = list(piece_sites(checkpoint, config.piece_tokens))
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read_ahead, checkpoint, weights, plan[0])
        for index, sites in enumerate(plan):
            given, ready = coming.result()
            if ready is not None:
                use_here(ready, *(given.weights if isinstance(given.weights, tuple) else (given.weights,)))
            if index + 1 < len(plan):
                coming = pool.submit(read_ahead, checkpoint, weights, plan[index + 1])
            with torch.no_grad():
                bound = model.bind(given)
            if store is not None:
                store.write(index, sites, bound)
            yield sites, bound
    if store is not None:
        store.finish()


def kept(sites: tuple[Site, ...], bound: Bound, size: int, left: dict[str, float], device: torch.device) -> Piece:
    """A piece on the device, its queries where there is room; what is left of it goes down."""
    place = next((place for place in ("device", "host") if size <= left[place]), "nowhere")
    queries, left[place] = bound.queries.contiguous(), left.get(place, 0) - size  # else each prediction would copy them
    if place == "nowhere":
        queries = queries.new_empty(0)
    elif place == "device":
        queries = queries.to(device)
    elif device.type == "cuda":
        queries = torch.empty_like(queries, device="cpu", pin_memory=True).copy_(queries)
    latents, b, a = (part.to(device) for part in (bound.latents, bound.b, bound.a))
    return Piece(sites, Bound(latents, queries, b, a), place)


def query_bytes(checkpoint: Checkpoint, sites: Sequence[Site]) -> int:
    tokens = sum(site.d_out + site.d_in for site in sites)
    return tokens * checkpoint.config.width * checkpoint.dtype.itemsize


def piece_sites(checkpoint: Checkpoint, tokens: int) -> Iterator[tuple[Site, ...]]:
    """The trained sites in pieces of one shape, of at most so many weight tokens each, unless a site alone has more.

    All pieces of a shape have one size where the number of its sites has a suitable divisor: each size is compiled for.
    """
    for sites in checkpoint.base.shapes.values():
        trained = tuple(site for site in sites if site.key in checkpoint.scales)
        if not trained:
            continue
        count, most = len(trained), max(1, tokens // (trained[0].d_out + trained[0].d_in))
        divisor = max(size for size in range(1, min(most, count) + 1) if count % size == 0)
        size = divisor if 2 * divisor >= min(most, count) else math.ceil(count / math.ceil(count / most))
        yield from (trained[start : start + size] for start in range(0, count, size))

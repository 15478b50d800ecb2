"""A binding: what a hypernetwork knows of one base before it sees a prompt, computed once and kept.

That is equations 4 to 8, the first attention of equation 9, the queries of equation 10 and the residual of equations 11
and 12: half of the work of a prediction (291 of 566 TFLOP for Wan2.1-I2V-14B at the paper's setting, by
`p2e.hypernet.flops`). The base is read a few sites at a time and never stands on the device. What is left for a prompt
is the rest of the backbone, the attention of kept queries to its latents, and two thin products.

A binding is made of pieces, a few sites of one shape each, as large as bounds the activations. The latents of all
pieces (0.5 GB there) stay on the device. Their queries (23 GB) lie, piece by piece, on the device while a budget of
bytes lasts, then in pinned host memory, from where they are copied a pass ahead, and else nowhere: they are made anew
from the base's weights in each prediction. A pass is some pieces whose latents go through the backbone together: it
knows no shapes, and a GPU wants many rows.

Shapes: S sites of a piece, E effects, n latents a site, M weight tokens a site, d width, r rank.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2e.bases import WeightReader
from p2e.bases.base import Site
from p2e.config import BindingConfig
from p2e.errors import InputError
from p2e.float8 import check_float8, use_float8
from p2e.hypernet.binding_files import BindingFiles
from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.fused import Decompressor, can_fuse, use_fused
from p2e.hypernet.layers import Block, KeysValues
from p2e.hypernet.model import Bound, Hypernet
from p2e.hypernet.pieces import Piece, kept, piece_sites, query_bytes
from p2e.hypernet.reading import check_base, copy_stream, read_ahead, read_sites, use_here
from p2e.text import TextStates

TEXT_POSITIONS = 512  # a prompt's, padded to a whole number of them for the kernels

M = TypeVar("M", bound=nn.Module)

__all__ = ["Binding", "bind"]


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
        self.fused = config.kernels and can_fuse(checkpoint)
        self.model = prepared_model(model, config, self.fused)
        if self.fused:
            self._decompressed = Decompressor(model)
        else:
            with torch.no_grad():
                self._decompressed = partial(self.model.decompressed, heads=model.heads())
        if config.compile:
            self._decompressed = torch.compile(self._decompressed, dynamic=False)

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
        passes = self._passes(min(most, len(text.mask)))
        ahead = self._fetch(passes[0])
        for index, pieces in enumerate(passes):
            here, ahead = ahead, self._fetch(passes[index + 1]) if index + 1 < len(passes) else []
            bound = torch.cat([piece.bound.latents for piece in pieces])
            sizes = [len(piece.sites) for piece in pieces]
            latents = [self.model.backbone(bound, states, mask).split(sizes, dim=1) for states, mask in read]
            for place, piece in enumerate(pieces):
                whole = piece.bound._replace(queries=self._arrived(piece, *here[place]))
                found = [self._decompressed(whole, part[place]) for part in latents]
                yield list(piece.sites), torch.cat([a for a, _ in found], 1), torch.cat([b for _, b in found], 1)

    def _passes(self, effects: int) -> list[list[Piece]]:
        """Pieces whose latents go through the backbone together."""
        found, held = [], self.config.latent_tokens
        for piece in self.pieces:
            tokens = effects * piece.bound.latents[..., 0].numel()
            if held + tokens > self.config.latent_tokens:
                found.append([])
                held = 0
            found[-1].append(piece)
            held += tokens
        return found

    def _padded(self, text: TextStates) -> TextStates:
        """In few lengths, so that few graphs are compiled, and in the network's type."""
        text = text.without_padding()
        states, mask = text.states.to(self.checkpoint.dtype), text.mask
        if self.fused:  # the kernel reads no padding
            more = -mask.shape[1] % TEXT_POSITIONS
            states, mask = F.pad(states, (0, 0, 0, more)), F.pad(mask, (0, more))
        return TextStates(states, mask)

    def _fetch(self, pieces: Sequence[Piece]) -> list[tuple[Tensor, torch.cuda.Event | None]]:
        """Begins to copy the queries of a pass to the device -> for each piece its queries, and what to wait for."""
        device, found = self.checkpoint.device, []
        for piece in pieces:
            if piece.kept != "host" or device.type != "cuda":
                found.append((piece.bound.queries, None))
                continue
            stream = copy_stream(device)
            # The copy may overtake what is computed, but not the host's memory: one pass is ahead, no more.
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                queries = piece.bound.queries.to(device, non_blocking=True)
                event = torch.cuda.Event()
                event.record(stream)
                found.append((queries, event))
        return found

    def _arrived(self, piece: Piece, queries: Tensor, ready: torch.cuda.Event | None) -> Tensor:
        if ready is not None:
            use_here(ready, queries)
        return self._made(piece) if piece.kept == "nowhere" else queries

    def _made(self, piece: Piece) -> Tensor:
        tokens, _ = self.model.weight_tokens(read_sites(self.checkpoint, self.weights, piece.sites))
        return self.model.decompress.query(tokens)


class Reading(nn.Module):
    """The backbone's first block without the attention that its binding holds."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block, self.text_attention = block, block.text_attention

    def forward(self, x: Tensor, text: KeysValues, mask: Tensor) -> Tensor:
        return self.block.read(x, text, mask)


def prepared_model(model: Hypernet, config: BindingConfig, fused: bool) -> Hypernet:
    """The network as a binding runs it, with modules of its own and the checkpoint's parameters."""
    kept = copy_module(model)
    if fused:
        use_fused(kept)
    if config.fp8:
        for block in kept.blocks:
            use_float8(block, leave=("text_attention.key", "text_attention.value"))  # few tokens are read there
    first, *others = kept.blocks
    assert isinstance(first, Block)
    kept.blocks = nn.ModuleList([Reading(first), *others])
    if config.compile:
        for block in kept.blocks:
            block.compile(dynamic=False, fullgraph=True)
    return kept


def copy_module(module: M) -> M:
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
        InputError: the network is of a kind that has no binding, the weights are of another base, or the device has no
            float8.
        FormatError: the binding in `folder` is damaged.
        OutputError: `folder` cannot be written.
    """
    model = checkpoint.model
    if not isinstance(model, Hypernet) or checkpoint.config.across_sites:
        raise InputError(f"{checkpoint.folder}: only the network that predicts each site by itself can be bound")
    check_base(checkpoint, weights)
    if config.fp8:
        check_float8(checkpoint.device)
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
    if config.kernels and can_fuse(checkpoint):
        use_fused(model := copy_module(model))
    first = model.blocks[0]
    assert isinstance(first, Block)
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
                bound = bound._replace(latents=first.mix(bound.latents[None])[0])
            if store is not None:
                store.write(index, sites, bound)
            yield sites, bound
    if store is not None:
        store.finish()

"""Canonical factors of a low-rank update, equation 7: dW = U S V^T, B* = U S^1/2, A* = S^1/2 V^T.

Shapes: A [..., r, d_in], B [..., d_out, r], dW = B A. Neither dW nor anything else of its size is ever formed: the QR
decompositions B = Q_B R_B and A^T = Q_A R_A leave the r x r core R_B R_A^T, whose SVD rotates Q_B and Q_A into U and V.

What the SVD leaves free is the sign of each component. For one update on its own `canonical` fixes it by a rule that
no small change of the update is likely to flip; for a library `align_signs` makes the effects agree with one another.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from p2e.errors import InputError

__all__ = ["Canonical", "align_signs", "canonical", "energy", "inner", "pad_rank"]

MAX_SWEEPS = 100  # align_signs ascends strictly, so it ends by itself; a handful of sweeps is usual


class Canonical(NamedTuple):
    """A* [..., rank, d_in], B* [..., d_out, rank] and the share of ||dW||^2 [...] that truncation lost, in [0, 1]."""

    a: Tensor
    b: Tensor
    lost: Tensor


def canonical(a: Tensor, b: Tensor, rank: int, *, dtype: torch.dtype = torch.float64) -> Canonical:
    """Canonical factors of dW = B A at a uniform rank, by zero padding or truncation.

    Any invertible re-factorisation (B R, R^-1 A) gives the same result, up to rounding, where singular values are
    distinct; where they are tied, the same update and the same singular subspaces. Components whose singular value is
    rounding noise are set to zero, as the square root would otherwise lift them from 1e-16 to 1e-8 of the largest.

    Args:
        a: [..., r, d_in], any floating type, on any device.
        b: [..., d_out, r].
        rank: rank of the result, smaller or larger than r.
        dtype: type to compute in; float32 halves the time on a GPU and gives about five digits.

    Returns:
        factors in the wider of float32 and the type of the input; components in order of falling singular value.

    Raises:
        InputError: shapes do not match, rank < 1, or an entry is not finite.
    """
    check_factors(a, b)
    if rank < 1:
        raise InputError(f"rank {rank}: the rank of canonical factors is at least 1")
    out_dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    q_b, r_b = torch.linalg.qr(b.to(dtype))
    q_a, r_a = torch.linalg.qr(a.to(dtype).mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    # Rounding A and B moves the update by this much, and factors stored in float32 were rounded whatever we compute in.
    noise = 4 * max(torch.finfo(out_dtype).eps, torch.finfo(dtype).eps) * _norm(r_a) * _norm(r_b)
    s = torch.where(s > noise[..., None], s, 0.0)
    total = s.square().sum(-1)
    lost = s[..., rank:].square().sum(-1) / torch.where(total > 0, total, 1.0)

    kept = min(rank, s.shape[-1])
    root = s[..., :kept].sqrt()
    b_star = q_b @ (u[..., :kept] * root[..., None, :])
    a_star = (root[..., :, None] * vh[..., :kept, :]) @ q_a.mT
    sign = torch.where(probe(a_star, b_star) < 0, -1.0, 1.0).to(dtype)
    a_star, b_star = pad_rank(a_star * sign[..., :, None], b_star * sign[..., None, :], rank)
    return Canonical(a_star.to(out_dtype), b_star.to(out_dtype), lost.to(out_dtype))


def align_signs(a: Tensor, b: Tensor, mask: Tensor, voters: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Flips components so that the effects of a library agree at one site, each with the mean of the others.

    For component k, x_e = [b_k ; a_k] scaled to unit length. The signs s_e maximise ||sum_e s_e x_e||^2 locally: they
    start from the leading eigenvector of the Gram matrix of the x_e and are swept, effect by effect, until each agrees
    with the mean of the rest. The result does not depend on the signs that come in, nor on anything random. The sign of
    the mean itself is fixed as for a single update.

    Args:
        a: A* [E, r, d_in].
        b: B* [E, d_out, r].
        mask: [E] bool, the effects that cover the site; the others are left as they are.
        voters: [E] bool, the effects that make up the reference, by default all that cover the site. The rest follow
            it, so that held-out effects have no say in the targets of the training ones.

    Returns:
        the same factors with signs flipped.
    """
    vote = mask if voters is None else mask & voters
    if not bool(vote.any()):
        vote = mask
    x = torch.cat((b.mT, a), -1).transpose(0, 1)  # [r, E, d_out + d_in]
    length = x.norm(dim=-1, keepdim=True)
    x /= torch.where(length > 0, length, 1.0)
    gram = (x @ x.mT).double()  # [r, E, E]
    gram.diagonal(dim1=1, dim2=2).zero_()
    both = (vote[:, None] & vote[None, :]).to(gram)
    signs = _agree(gram * both) * vote
    reference = torch.einsum("ke,kef->kf", signs, gram)
    signs = torch.where(vote, signs, torch.where(reference < 0, -1.0, 1.0))
    mean = torch.einsum("ke,ked->kd", (signs * vote).to(x), x)
    d_out = b.shape[1]
    turn = torch.where(probe(mean[:, d_out:], mean[:, :d_out].mT) < 0, -1.0, 1.0)
    signs = torch.where(mask[:, None], (signs * turn[:, None]).mT, 1.0).to(a)  # [E, r]
    return a * signs[:, :, None], b * signs[:, None, :]


def _agree(gram: Tensor) -> Tensor:
    """Signs [r, E] that no single flip improves, for Gram matrices [r, E, E] with a zero diagonal."""
    # The eigenvector's own entries are never compared across k, so its overall sign does not matter.
    signs = torch.where(torch.linalg.eigh(gram).eigenvectors[..., -1] < 0, -1.0, 1.0).to(gram)
    field = torch.einsum("kef,kf->ke", gram, signs)
    for _ in range(MAX_SWEEPS):
        changed = False
        for e in range(gram.shape[1]):
            flip = field[:, e] * signs[:, e] < -1e-12
            if bool(flip.any()):
                changed = True
                step = torch.where(flip, -2.0 * signs[:, e], 0.0)
                signs[:, e] += step
                field += step[:, None] * gram[:, :, e]
        if not changed:
            break
    return signs


def probe(a: Tensor, b: Tensor) -> Tensor:
    """A linear functional of each component, [..., r], whose sign stands for the component's sign.

    Its weights are a chirp, cos(sqrt(2) pi i^2): spread over all entries like noise, so that neither symmetry nor a
    near tie of two entries brings it close to zero, yet the same on every machine and in every version.
    """
    return a @ _chirp(a.shape[-1], a) + b.mT @ _chirp(b.shape[-2], b)


def _norm(x: Tensor) -> Tensor:
    return x.square().sum((-2, -1)).sqrt()


def _chirp(size: int, like: Tensor) -> Tensor:
    i = torch.arange(1, size + 1, dtype=torch.float64)
    return torch.cos(math.sqrt(2) * math.pi * i.square()).to(like)


def energy(a: Tensor, b: Tensor) -> Tensor:
    """||B A||_F^2 [...] in float64, from r x r Gram matrices."""
    return inner(a, b, a, b)


def inner(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """<B1 A1, B2 A2>_F [...] in float64, through products of size r1 x r2; the ranks may differ."""
    gram_b = b1.double().mT @ b2.double()
    gram_a = a1.double() @ a2.double().mT
    return (gram_b * gram_a).sum((-2, -1))


def pad_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Zero components appended up to `rank`; the factors as they are where they have as many or more."""
    missing = rank - a.shape[-2]
    if missing <= 0:
        return a, b
    return torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))


def check_factors(a: Tensor, b: Tensor, name: str = "LoRA factors") -> None:
    """Raises InputError where A and B do not form a product or hold NaN or infinity."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[-2] != b.shape[-1] or a.shape[:-2] != b.shape[:-2] or not a.shape[-2]:
        shapes = f"A {list(a.shape)} and B {list(b.shape)}"
        raise InputError(f"{name}: {shapes} do not match; A is [.., r, d_in] and B [.., d_out, r]")
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        raise InputError(f"{name}: an entry is NaN or infinite; the training that made it diverged, train it again")

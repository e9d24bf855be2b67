"""ΔW: the one place that turns two factors into a weight update, and knows their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from lorkd_deploy.errors import UsageError

Array = TypeVar("Array", bound=Any)
Factorisation = Literal["interleaved", "separable"]
LayerKind = Literal["conv2d", "linear"]
NormKind = Literal["shared", "per_task"]  # what of a network's norm layers belongs to whom
FACTORISATIONS: tuple[Factorisation, ...] = ("interleaved", "separable")


def delta_weight(a: Array, b: Array, scale: float | Array | None, shape: Sequence[int]) -> Array:
    """ΔW = view((scale · B) @ A, shape), a new array (LoRKD, CVPR 2024, section 3).

    For a weight `shape`, `a` and `b` have the shapes of `factor_shapes`, in either factorisation:
    the formula is the same. Leading dimensions (a stack of tasks) are kept, and `scale` may be an
    array that broadcasts against `b`, or None where `b` has it already. NumPy arrays and torch
    tensors alike: training, fusion and tests call this one function.
    """
    scaled = b if scale is None else b * scale  # the factor, since it is smaller than the product
    update = scaled @ a
    lead = tuple(update.shape[:-2])
    result: Array = update.reshape(lead + tuple(shape))
    return result


def factor_shapes(
    shape: Sequence[int], rank: int, factorisation: Factorisation
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of A and B for a weight `(Cout, Cin)` or `(Cout, Cin, kh, kw)`; else `UsageError`.

    `interleaved`, the papers': A `(r·kh, Cin·kw)`, B `(Cout·kh, r·kh)`. The view interleaves the
    axes, so that ΔW as a `(Cout, Cin·kh·kw)` matrix has a rank of up to r·kh².
    `separable`: A `(r, Cin·kh·kw)`, a kh × kw convolution to r channels, and B `(Cout, r)`, a
    1 × 1 convolution behind it: the rank is r. For 1 × 1 kernels and linear layers they are one.
    """
    cout, cin, kh, kw = _four(shape)
    unit = columns_per_rank(shape, factorisation)
    if factorisation == "separable":
        return (rank, cin * kh * kw), (cout, rank)
    return (rank * unit, cin * kw), (cout * kh, rank * unit)


def update_matrix(delta: Array, factorisation: Factorisation) -> Array:
    """ΔW as the matrix that `delta_weight` views as a weight: what B A has to be near to.

    `delta` `(Cout, Cin)` or `(Cout, Cin, kh, kw)` → `(Cout·kh, Cin·kw)` if interleaved, else
    `(Cout, Cin·kh·kw)`.
    """
    (_, columns), (rows, _) = factor_shapes(delta.shape, 1, factorisation)
    matrix: Array = delta.reshape(rows, columns)
    return matrix


def columns_per_rank(shape: Sequence[int], factorisation: Factorisation) -> int:
    """Columns of B, and rows of A, that one more in rank adds: kh if interleaved, else 1."""
    return 1 if factorisation == "separable" else _four(shape)[2]


def _four(shape: Sequence[int]) -> tuple[int, int, int, int]:
    if len(shape) not in (2, 4):
        raise UsageError(
            f"a weight of shape {tuple(shape)} can't have factors",
            fix="wanted (Cout, Cin) of a linear layer, or (Cout, Cin, kh, kw) of a convolution",
        )
    cout, cin, kh, kw = (*shape, 1, 1)[:4]
    return cout, cin, kh, kw


def largest_rank(shape: Sequence[int], factorisation: Factorisation) -> int:
    """The rank from which on B @ A can be any matrix of its shape: more is wasteful.

    For square kernels, interleaved, this is min(Cin, Cout).
    """
    (_, columns), (rows, _) = factor_shapes(shape, 1, factorisation)
    return -(-min(rows, columns) // columns_per_rank(shape, factorisation))

"""ΔW: the one place that turns two factors into a weight update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

Array = TypeVar("Array", bound=Any)


def delta_weight(a: Array, b: Array, scale: float | Array, shape: Sequence[int]) -> Array:
    """ΔW = view((scale · B) @ A, shape), a new array (LoRKD, CVPR 2024, section 3).

    For a convolution of weight `shape` `(Cout, Cin, kh, kw)`, `a` is `(r·kh, Cin·kw)` and `b`
    `(Cout·kh, r·kh)`; for a linear layer `(Cout, Cin)` they are `(r, Cin)` and `(Cout, r)`.
    Leading dimensions (a stack of tasks) are kept, and `scale` may be an array that broadcasts
    against `b`. NumPy arrays and torch tensors alike: training, fusion and tests call this one
    function.
    """
    update = (b * scale) @ a  # the factor is scaled, since it is smaller than the product
    lead = tuple(update.shape[:-2])
    result: Array = update.reshape(lead + tuple(shape))
    return result

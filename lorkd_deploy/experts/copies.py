"""Copies of modules, those included that keep a computed weight beside its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_of(module: Module, shared: Iterable[Tensor] = ()) -> Module:
    """A deep copy of `module`, which shares nothing with it but the `shared` tensors.

    torch's `weight_norm` and `spectral_norm` of old leave the weight that they computed last as an
    attribute with a graph behind it, which `copy.deepcopy` refuses. It is copied by its values: the
    next forward computes it anew.
    """
    known = {id(tensor): tensor for tensor in shared}
    known |= {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, known)

"""What a fine-tuned model is beyond its base: factors of ΔW by truncated SVD, and all that is left.

What factors can't hold and that differs from the base (norms, biases, grouped convolutions, tokens)
a task keeps as its model has it, so that what the truncation cuts off of ΔW is all that is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorkd_deploy.arrays import F64
from lorkd_deploy.bundle.manifest import FACTORS
from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts import ExpertModel
from lorkd_deploy.lowrank.delta import columns_per_rank, delta_weight, update_matrix
from lorkd_deploy.lowrank.spectrum import spectrum
from lorkd_deploy.recipe import ExpertSpec
from lorkd_deploy.schema import Part

State = Mapping[str, Tensor]
_SHOWN = 8  # kept tensors in a log; the result has all


class Nearness(Part):
    """How near experts come to a model; norms are Frobenius'.

    `change` is ‖W_t − W0‖ / ‖W0‖, `error` ‖W_t − W0 − ΔW‖ / ‖W_t − W0‖, and `energy`, the share of
    the sum of squares of W_t − W0 that is kept, 1 − error².
    """

    change: float
    error: float
    energy: float


class ExtractedLayer(Nearness):
    """One layer with an expert; its `rank` is below the recipe's where more would add nothing."""

    layer: str
    rank: int


class KeptTensor(Part):
    """A tensor that a task has instead of the base's, by `change` as in `Nearness`."""

    tensor: str
    change: float
    bytes: int


@dataclass(frozen=True)
class Difference:
    """`state` is what `ExpertModel.load_expert` takes; `whole` is of all layers together."""

    state: dict[str, Tensor]
    layers: tuple[ExtractedLayer, ...]
    whole: Nearness
    kept: tuple[KeptTensor, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of every layer."""
        return {layer.layer: layer.rank for layer in self.layers}

    @property
    def parameters(self) -> int:
        """Numbers in the factors."""
        return sum(value.numel() for name, value in self.state.items() if name.endswith(FACTORS))

    def kept_in_words(self) -> str:
        """What is kept, the largest difference first: names, differences, bytes."""
        shown = sorted(self.kept, key=lambda tensor: -tensor.change)[:_SHOWN]
        listed = ", ".join(f"{tensor.tensor} {tensor.change:.2g}" for tensor in shown)
        more = f" and {len(self.kept) - _SHOWN} more" if len(self.kept) > _SHOWN else ""
        return f"{listed}{more} ({sum(tensor.bytes for tensor in self.kept) / 1000:.1f} kB)"


def difference(
    form: ExpertModel, task: int, base: State, tuned: State, spec: ExpertSpec
) -> Difference:
    """What the plain network `tuned` is beyond `base`, as the expert `task` of `form` may have it.

    `form` says which layers have experts, of which rank at most, and which norms are per task.
    Raises `ModelError` where integer tensors differ: they are part of the graph.
    """
    ranks = form.ranks_of(task)
    state: dict[str, Tensor] = {}
    layers = []
    squares = np.zeros(3)
    for layer in form.layers:
        name = f"{layer.name}.weight"
        w0 = base[name].double().numpy()
        delta = tuned[name].double().numpy() - w0
        rank, factors, rest = _truncated(delta, ranks[layer.name], spec)
        own = np.array([np.square(part).sum() for part in (w0, delta, rest)])
        layers.append(ExtractedLayer(layer=layer.name, rank=rank, **_nearness(own)))
        state |= {layer.name + side: factor for side, factor in zip(FACTORS, factors, strict=False)}
        squares += own
    bound = {f"{layer.name}.weight" for layer in form.layers}
    norms = {n for n in form.expert_state(task) if not n.endswith(FACTORS)}
    others = [n for n in form.base_state() if n not in bound and not _same(n, base, tuned)]
    state |= {name: tuned[name] for name in (*norms, *others)}
    moved = [n for n in (*sorted(norms), *others) if not _same(n, base, tuned)]
    kept = tuple(_kept(name, base, tuned) for name in moved)
    return Difference(state, tuple(layers), Nearness(**_nearness(squares)), kept)


def _truncated(delta: F64, rank: int, spec: ExpertSpec) -> tuple[int, list[Tensor], F64]:
    """The rank that `delta` is cut off at, A and B unless it is 0, and what is lost."""
    unit = columns_per_rank(delta.shape, spec.factorisation)
    found = spectrum(update_matrix(delta, spec.factorisation), unit, rank)
    rank = sum(energy > 0 for energy in found.energies)  # a layer that was frozen has none
    if not rank:
        return 0, [], delta
    a, b = found.factors(rank, spec.alpha)
    exact = a.astype(np.float64), b.astype(np.float64)
    kept = delta_weight(*exact, spec.alpha / rank, delta.shape)
    return rank, [torch.from_numpy(a), torch.from_numpy(b)], delta - kept


def _same(name: str, base: State, tuned: State) -> bool:
    return torch.equal(base[name], tuned[name])


def _kept(name: str, base: State, tuned: State) -> KeptTensor:
    own, shared = tuned[name], base[name]
    if not own.is_floating_point():
        raise ModelError(
            f"{name} holds other whole numbers than the base's",
            where=name,
            fix="they are part of the graph, which is one for all: fine-tune without changing them",
        )
    change = _ratio(*(float(v.double().square().sum()) for v in (own - shared, shared)))
    return KeptTensor(tensor=name, change=change, bytes=4 * own.numel())


def _nearness(squares: F64) -> dict[str, float]:
    """From the sums of squares of W0, of W_t − W0 and of what is lost of it."""
    w0, delta, lost = (float(value) for value in squares)
    error = _ratio(lost, delta)
    return {"change": _ratio(delta, w0), "error": error, "energy": 1 - error**2}


def _ratio(squares: float, of: float) -> float:
    """√(squares / of), and 0 where there is nothing to relate to."""
    return math.sqrt(squares / of) if of else 0.0

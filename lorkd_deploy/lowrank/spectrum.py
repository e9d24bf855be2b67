"""Which singular values of an expert's ΔW are kept: the energy that they hold, by what they cost.

ΔW is a view of the matrix B A (`delta.py`), and a view keeps the sum of squares. So the best
factors of a lower rank are the matrix's leading singular vectors (Eckart & Young 1936), and what
is lost is the energy of the values left out, the sum of their squares: comparable over all layers
of a task. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32, F64
from lorkd_deploy.lowrank.delta import Factorisation, columns_per_rank

NOTHING = 1e-12  # of a task's energy: below float32's rounding of the factors themselves


@dataclass(frozen=True)
class Spectrum:
    """One layer's ΔW of one task, as `left @ right` with the largest singular values first.

    `left` `(rows, n)` and `right` `(n, columns)` have √σ each; `energies` are sums of σ² over the
    `unit` columns that each step in rank adds, so they never rise.
    """

    left: F64
    right: F64
    energies: tuple[float, ...]
    unit: int

    @property
    def cost(self) -> int:
        """Parameters that one more in rank adds."""
        return self.unit * (len(self.left) + int(self.right.shape[1]))

    def factors(self, rank: int, alpha: float) -> tuple[F32, F32]:
        """A and B, float32, such that α / rank · B A is the matrix of that rank nearest to ΔW.

        Their shapes are those of `factor_shapes`.
        """
        inner = rank * self.unit
        a, b = self.right[:inner], self.left[:, :inner] * (rank / alpha)
        return np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)


def spectrum(product: F64, unit: int, highest: int | None = None) -> Spectrum:
    """The spectrum of a matrix `(rows, columns)`, of ranks up to `highest` (None: its full one)."""
    rows, columns = product.shape
    u, sigma, vt = np.linalg.svd(product, full_matrices=False)
    full = -(-len(sigma) // unit)
    ranks = full if highest is None else min(full, highest)
    kept = min(len(sigma), ranks * unit)
    left, right = np.zeros((rows, ranks * unit)), np.zeros((ranks * unit, columns))
    left[:, :kept] = u[:, :kept] * np.sqrt(sigma[:kept])
    right[:kept] = np.sqrt(sigma[:kept, None]) * vt[:kept]
    squares = np.zeros(ranks * unit)
    squares[:kept] = sigma[:kept] ** 2
    return Spectrum(left, right, tuple(squares.reshape(ranks, unit).sum(axis=1).tolist()), unit)


def spectrum_of_factors(
    a: npt.NDArray[np.floating],
    b: npt.NDArray[np.floating],
    scale: float,
    shape: Sequence[int],
    factorisation: Factorisation,
) -> Spectrum:
    """The spectrum of scale · B A, which is viewed as a weight of `shape`; computed in float64.

    `a` and `b` have the shapes of `factor_shapes`. ΔW itself is never built.
    """
    unit = columns_per_rank(shape, factorisation)
    # Two thin QR factorisations leave a small matrix with the same singular values.
    q_left, r_left = np.linalg.qr(b.astype(np.float64) * scale)
    q_right, r_right = np.linalg.qr(a.astype(np.float64).T)
    small = spectrum(r_left @ r_right.T, unit)
    return Spectrum(q_left @ small.left, small.right @ q_right.T, small.energies, unit)


@dataclass(frozen=True)
class Step:
    """One more in rank on `layer`: the energy that it adds, and the parameters that it costs."""

    layer: str
    energy: float
    parameters: int


def steps_by_worth(spectra: Mapping[str, Spectrum]) -> list[Step]:
    """Every step of one task's layers, most energy per parameter first; empty ones are left out.

    Within a layer the order is that of its ranks: any beginning of the list is an expert.
    """
    steps = [
        Step(layer, energy, found.cost)
        for layer, found in spectra.items()
        for energy in found.energies
    ]
    least = NOTHING * sum(step.energy for step in steps)
    some = [step for step in steps if step.energy > least]
    return sorted(some, key=lambda step: -step.energy / step.parameters)


def ranks_of(steps: Iterable[Step], layers: Iterable[str]) -> dict[str, int]:
    """The rank of every layer after these steps."""
    ranks = dict.fromkeys(layers, 0)
    for step in steps:
        ranks[step.layer] += 1
    return ranks


def within(steps: Sequence[Step], parameters: int) -> list[Step]:
    """The steps that fit into `parameters` together; one that doesn't ends its layer's steps."""
    taken: list[Step] = []
    closed: set[str] = set()
    for step in steps:
        if step.layer in closed:
            continue
        if step.parameters > parameters:
            closed.add(step.layer)
            continue
        parameters -= step.parameters
        taken.append(step)
    return taken


def holding(steps: Sequence[Step], share: float) -> list[Step]:
    """The fewest first steps that together hold at least `share` (0 … 1) of all energy."""
    total = sum(step.energy for step in steps)
    held = np.cumsum([step.energy for step in steps])
    enough = int(np.searchsorted(held, share * total * (1 - NOTHING))) + 1
    return list(steps[: enough if share > 0 else 0])

"""Energies, exact reconstruction, and which singular values a budget or a share keeps."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.lowrank.delta import delta_weight, factor_shapes, largest_rank, update_matrix
from lorkd_deploy.lowrank.spectrum import (
    Step,
    holding,
    ranks_of,
    spectrum,
    spectrum_of_factors,
    steps_by_worth,
    within,
)

SHAPES = [(8, 3, 3, 3), (5, 7, 1, 1), (6, 4), (6, 5, 4, 2), (4, 9, 3, 3)]
ALPHA = 6.0


def factors(shape, rank: int, factorisation: str):
    rng = np.random.default_rng(len(shape) + rank)
    return [
        rng.normal(size=s).astype(np.float32) for s in factor_shapes(shape, rank, factorisation)
    ]


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factorisation", ["interleaved", "separable"])
def test_at_full_rank_delta_is_what_it_was(shape, factorisation, rank) -> None:
    a, b = factors(shape, rank, factorisation)
    delta = delta_weight(a.astype(np.float64), b.astype(np.float64), ALPHA / rank, shape)
    found = spectrum_of_factors(a, b, ALPHA / rank, shape, factorisation)
    full = len(found.energies)
    assert full == min(rank, largest_rank(shape, factorisation))
    np.testing.assert_allclose(  # the matrix that was viewed as a weight
        update_matrix(delta, factorisation), ALPHA / rank * b.astype(np.float64) @ a, rtol=1e-12
    )
    assert sum(found.energies) == pytest.approx((delta**2).sum(), rel=1e-12)
    assert list(found.energies) == sorted(found.energies, reverse=True)
    again = delta_weight(*found.factors(full, ALPHA), ALPHA / full, shape)
    np.testing.assert_allclose(again, delta, rtol=0, atol=1e-6 * np.abs(delta).max())
    assert [f.shape for f in found.factors(full, ALPHA)] == list(
        factor_shapes(shape, full, factorisation)
    )


@pytest.mark.parametrize("factorisation", ["interleaved", "separable"])
def test_what_is_lost_is_the_energy_left_out(factorisation) -> None:
    shape, rank = (8, 5, 3, 3), 4
    a, b = factors(shape, rank, factorisation)
    delta = delta_weight(a.astype(np.float64), b.astype(np.float64), ALPHA / rank, shape)
    found = spectrum_of_factors(a, b, ALPHA / rank, shape, factorisation)
    matrix = delta.reshape(8 * 3, 15) if factorisation == "interleaved" else delta.reshape(8, 45)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    for kept in range(1, rank):
        short = delta_weight(*found.factors(kept, ALPHA), ALPHA / kept, shape)
        lost = ((short - delta) ** 2).sum()
        assert lost == pytest.approx(sum(found.energies[kept:]), rel=1e-4)
        assert lost == pytest.approx((sigma[kept * found.unit :] ** 2).sum(), rel=1e-4)


def test_a_matrix_up_to_a_rank() -> None:
    matrix = np.diag([5.0, 4.0, 3.0, 2.0, 1.0])
    found = spectrum(matrix, 2)
    assert found.energies == pytest.approx((41, 13, 1))
    assert found.cost == 2 * 10
    np.testing.assert_allclose(found.left @ found.right, matrix, atol=1e-12)
    assert spectrum(matrix, 2, highest=1).energies == pytest.approx((41,))


def test_steps_are_taken_by_energy_a_parameter() -> None:
    dear = spectrum(np.diag([10.0, 1.0, 0.0]), 1)  # energies 100, 1; 6 parameters a rank
    cheap = spectrum(np.diag([6.0, 5.0]), 1)  # 36, 25; 4 parameters a rank
    steps = steps_by_worth({"dear": dear, "cheap": cheap})
    assert [(s.layer, round(s.energy), s.parameters) for s in steps] == [
        ("dear", 100, 6),
        ("cheap", 36, 4),
        ("cheap", 25, 4),
        ("dear", 1, 6),
    ]
    layers = ("dear", "cheap", "none")
    assert ranks_of(within(steps, 20), layers) == {"dear": 2, "cheap": 2, "none": 0}
    assert ranks_of(within(steps, 19), layers) == {"dear": 1, "cheap": 2, "none": 0}
    assert ranks_of(within(steps, 5), layers) == {"dear": 0, "cheap": 1, "none": 0}
    assert within(steps, 3) == []
    assert [len(holding(steps, share)) for share in (0.5, 100 / 162, 0.62, 0.99, 1)] == [
        1,
        1,
        2,
        3,
        4,
    ]
    assert holding([], 0.9) == []
    assert steps_by_worth({"untrained": spectrum(np.zeros((3, 3)), 1)}) == []


def test_a_dearer_step_of_a_layer_never_comes_before_its_first() -> None:
    steps = [Step("a", 9, 9), Step("b", 1, 2), Step("a", 0.5, 1)]
    assert within(steps, 4) == [steps[1]]

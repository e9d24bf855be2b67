"""Shapes of factors."""

from __future__ import annotations

import pytest

from lorkd_deploy.errors import UsageError
from lorkd_deploy.lowrank.delta import (
    FACTORISATIONS,
    Factorisation,
    columns_per_rank,
    factor_shapes,
)


@pytest.mark.parametrize("factorisation", FACTORISATIONS)
@pytest.mark.parametrize("shape", [(4,), (4, 3, 3), (4, 3, 3, 3, 3)])
def test_no_dimension_is_dropped(shape: tuple[int, ...], factorisation: Factorisation) -> None:
    with pytest.raises(UsageError, match="can't have factors"):
        factor_shapes(shape, 2, factorisation)
    if factorisation == "interleaved":
        with pytest.raises(UsageError, match="can't have factors"):
            columns_per_rank(shape, factorisation)

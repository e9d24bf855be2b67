"""torch's grouped product in place of one product a span: the same results, where it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorkd_deploy.experts import rows
from lorkd_deploy.experts.rows import FusedRows, Span

COUNTS = (3, 5, 5, 1, 40)
SPANS = [
    Span(slice(0, 1), slice(0, 3)),
    Span(slice(1, 3), slice(3, 13)),
    Span(slice(3, 4), slice(13, 14)),
    Span(slice(4, 5), slice(14, 54)),
]


def results(cin: int, cout: int, dtype: torch.dtype) -> list[Any]:
    """Output and all gradients of one mixed product."""
    torch.manual_seed(0)
    shapes = [(sum(COUNTS), cin), (cout, cin), (len(COUNTS), 4, cin), (len(COUNTS), cout, 4)]
    given = [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]
    y = FusedRows.apply(*given, None, SPANS)
    return [y, *torch.autograd.grad(y.square().sum(), given)]


@pytest.mark.parametrize(("cin", "cout"), [(16, 24), (24, 16)])
def test_a_grouped_product_is_the_loop(
    monkeypatch: pytest.MonkeyPatch, cin: int, cout: int
) -> None:
    used = []
    real = rows.functional.grouped_mm

    def noted(*given: Any, **options: Any) -> Any:
        used.append(given)
        return real(*given, **options)

    monkeypatch.setattr(rows.functional, "grouped_mm", noted)
    looped = results(cin, cout, torch.float32)
    assert not used  # on a CPU it isn't faster
    monkeypatch.setattr(rows, "GROUPED", {"cpu": torch.float32})
    grouped = results(cin, cout, torch.float32)
    assert len(used) == 3  # forward, and both factors of the gradient
    for left, right in zip(grouped, looped, strict=True):
        assert (left - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize(
    ("cin", "dtype"), [(18, torch.float32), (16, torch.float64)], ids=["lines", "precision"]
)
def test_what_the_grouped_product_does_not_take(
    monkeypatch: pytest.MonkeyPatch, cin: int, dtype: torch.dtype
) -> None:
    looped = results(cin, 24, dtype)
    monkeypatch.setattr(rows, "GROUPED", {"cpu": torch.float32})
    for left, right in zip(results(cin, 24, dtype), looped, strict=True):
        assert torch.equal(left, right)

"""The way to the channels between factors, in groups of tasks: as in one, and as few at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorkd_deploy.experts import taps
from lorkd_deploy.experts.convolutions import LowRankConv, Window
from lorkd_deploy.experts.routing import route_of_counts

COUNTS = [3, 0, 1, 4, 1]
WINDOW = Window((2, 1), (1, 2), (1, 2))


def results() -> list[torch.Tensor]:
    """Output and all gradients, with pieces of A that end within a channel."""
    torch.manual_seed(0)
    route = route_of_counts(COUNTS, torch.device("cpu"))
    shapes: list[Any] = [(9, 7, 6, 8), (5, 7, 3, 3), (4, 6, 21), (4, 15, 6)]
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    y = LowRankConv.apply(*given, None, WINDOW, route)
    return [y, *torch.autograd.grad(y.square().sum(), given)]


@pytest.mark.parametrize("numbers", [1, 6000])
def test_groups_of_tasks_give_what_all_do(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    together = results()
    sizes: list[int] = []
    groups = taps.Projection._groups

    def noted(projection: taps.Projection) -> Any:
        for tasks, own, spans in groups(projection):
            sizes.append(own.stop - own.start)
            yield tasks, own, spans

    monkeypatch.setattr(taps.Projection, "_groups", noted)
    monkeypatch.setattr(taps, "IN_CACHE", numbers)
    grouped = results()
    assert sizes == ([1, 1, 3, 4] if numbers == 1 else [2, 3, 4]) * 2  # forward and backward
    for left, right in zip(grouped, together, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)

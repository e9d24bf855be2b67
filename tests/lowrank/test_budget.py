"""Budgets as they are written, and what is none."""

from __future__ import annotations

import pytest

from lorkd_deploy.errors import UsageError
from lorkd_deploy.lowrank.budget import parse_budget


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("0.3MB", 300_000, "bytes"),
        ("300 kB", 300_000, "bytes"),
        ("0.5MiB", 524_288, "bytes"),
        ("40000 parameters", 40_000, "parameters"),
        ("1024B", 1024, "bytes"),
    ],
)
def test_budgets(text: str, amount: int, unit: str) -> None:
    budget = parse_budget(text)
    assert (budget.amount, budget.unit) == (amount, unit)
    assert budget.factors(1000) == (amount if unit == "parameters" else (amount - 1000) // 4)


@pytest.mark.parametrize("text", ["", "0.3", "300", "3 mb", "-1MB", "MB", "1e3kB"])
def test_wrong_budgets(text: str) -> None:
    with pytest.raises(UsageError, match="is no budget"):
        parse_budget(text)

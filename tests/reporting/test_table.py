"""Figures are rounded once, and downloads hold values, not texts."""

from __future__ import annotations

import csv
import io
import json

import pytest

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import ACCURACY
from lorkd_deploy.reporting.cells import difference_cell, label, number, signed, significant
from lorkd_deploy.reporting.markdown import grid, plain
from lorkd_deploy.reporting.table import Column, Table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4.2156, "4.22"),
        (33.246, "33.2"),
        (123.4, "123"),
        (1234.6, "1,230"),
        (9.999, "10.0"),
        (0.05123, "0.0512"),
        (-0.0123, "−0.0123"),
        (3.2e-7, "3.2e-07"),
    ],
)
def test_three_significant_figures(value: float, text: str) -> None:
    assert significant(value) == text


def test_a_count_is_not_rounded() -> None:
    assert number(3421).text == "3,421"


@pytest.mark.parametrize(("value", "text"), [(-0.04, "0.0"), (0.04, "0.0"), (-1.25, "−1.2")])
def test_no_minus_before_zero(value: float, text: str) -> None:
    assert signed(value, 1) == text


@pytest.mark.parametrize(
    ("low", "high", "tone"), [(-0.1, 0.1, ""), (-0.2, -0.1, "bad"), (0.01, 0.2, "good")]
)
def test_a_difference_is_coloured_only_where_its_interval_excludes_zero(
    low: float, high: float, tone: str
) -> None:
    assert (
        difference_cell(ACCURACY, Interval(value=(low + high) / 2, low=low, high=high)).tone == tone
    )


def test_what_was_not_measured_is_said_and_empty_in_downloads() -> None:
    table = Table(
        "t", "T", "", (Column("a", "A"), Column("b", "B")), ((number(None), number(2.5)),)
    )
    assert table.rows[0][0].text == "not measured here"
    assert json.loads(table.json()) == [{"a": None, "b": 2.5}]
    assert table.csv() == "a,b\r\n,2.5\r\n"


def test_a_spreadsheet_runs_no_name_as_a_formula() -> None:
    table = Table(
        "t", "T", "", (Column("n", "N"), Column("v", "V")), ((label("=1+1"), number(-2.5)),)
    )
    (row,) = csv.DictReader(io.StringIO(table.csv()))
    assert row == {"n": "'=1+1", "v": "-2.5"}


def test_markdown_shows_names_as_they_are() -> None:
    assert plain("a|b\n<img src=x> [x](y) `c`") == r"a\|b \<img src=x\> \[x\](y) \`c\`"
    table = Table("t", "T", "", (Column("n", "N", numeric=False),), ((label("a|b"),),))
    assert grid(table) == "| N |\n|---|\n| a\\|b |"

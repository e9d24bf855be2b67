"""A plot of the report: drawings, and the table of the values that they show."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorkd_deploy.reporting.plots.svg import SYMBOLS
from lorkd_deploy.reporting.table import Table


@dataclass(frozen=True)
class Key:
    """One entry of a plot's legend: what a symbol in a colour stands for; a line without one."""

    name: str
    colour: str
    symbol: str = ""
    hollow: bool = False

    @property
    def path(self) -> str:
        """The symbol's outline around (0, 0)."""
        return SYMBOLS[self.symbol] if self.symbol else "M-7,0H7"


@dataclass(frozen=True)
class Figure:
    """One plot; `drawings` has its SVG for each choice of `group`, the first is shown at first."""

    key: str
    title: str
    caption: str
    drawings: dict[str, str]
    data: Table
    legend: tuple[Key, ...] = ()
    group: str = ""

    def below(self, chapter: str) -> Figure:
        """The same plot with the chapter's name before its keys."""
        return replace(self, key=f"{chapter}-{self.key}", data=self.data.below(chapter))

"""A plot of the report: a plotly figure, and the table of the values that it shows.

Colours are names ("s0", "teacher", "soft"): the page replaces them by the theme's, so that light,
dark and print show the same figure. Names of departments and tasks are escaped where a figure is
made, since plotly reads a little HTML in its texts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lorkd_deploy.reporting.table import Table

CLEAR = "rgba(0, 0, 0, 0)"


@dataclass(frozen=True)
class Figure:
    """One plot; `specs` holds a plotly figure for each variant, the first one shown at first."""

    key: str
    title: str
    caption: str
    height: int
    specs: dict[str, dict[str, Any]]
    data: Table
    group: str = ""

    def below(self, chapter: str) -> Figure:
        """The same plot with the chapter's name before its keys."""
        specs = {f"{chapter}-{key}": spec for key, spec in self.specs.items()}
        return replace(
            self, key=f"{chapter}-{self.key}", specs=specs, data=self.data.below(chapter)
        )

    @property
    def first(self) -> str:
        """The variant that is drawn when the page opens."""
        return next(iter(self.specs))


def title(text: str, standoff: int = 8) -> dict[str, Any]:
    """An axis's title, so many px from the axis."""
    return {"text": text, "standoff": standoff, "font": {"size": 13}}


def layout(height: int, across: str, up: str = "", *, log: bool = False) -> dict[str, Any]:
    """The look that all plots share, for one pair of axes and their titles."""
    lines = {
        "gridcolor": "line",
        "linecolor": "soft",
        "tickcolor": "line",
        "zeroline": False,
        "automargin": True,
    }
    x: dict[str, Any] = {
        **lines,
        "title": title(across, 10),
        "showline": True,
    }
    if log:
        x |= {"type": "log", "dtick": "D2", "tickformat": "~g", "minorloglabels": "complete"}
    return {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 12, "b": 48},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {
            "family": "Inter, Segoe UI, Roboto, Liberation Sans, Arial, sans-serif",
            "size": 13,
            "color": "ink",
        },
        "xaxis": x,
        "yaxis": lines | ({"title": title(up)} if up else {}),
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hoverlabel": {
            "align": "left",
            "bgcolor": "card",
            "bordercolor": "soft",
            "font": {"color": "ink", "size": 13},
        },
    }

"""SVG that is drawn when a page is made: scales with their ticks, axes and marks.

Across, places are per cent of the plot's width, so that a plot fits any screen and its texts keep
their size; up, they are px. Colours are the page's variables by name ("s0", "teacher", "soft"), so
that light, dark and print show the same drawing. A mark's title is what a pointer is told of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

SYMBOLS = {  # around (0, 0), about 10 px wide
    "circle": "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
    "square": "M-4.5,-4.5h9v9h-9z",
    "triangle": "M0,-5.5L5.5,4.5H-5.5z",
    "cross": "M-5,-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
    "pentagon": "M0,-5.5L5.4,-1.6L3.3,4.7H-3.3L-5.4,-1.6z",
    "hexagon": "M-5.5,0L-2.8,-4.8H2.8L5.5,0L2.8,4.8H-2.8z",
    "diamond": "M0,-6L6,0L0,6L-6,0z",
}


@dataclass(frozen=True)
class Scale:
    """From a value to a place between 0 and 1, and the values that are written at the axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    title: str = ""
    log: bool = False

    def at(self, value: float) -> float:
        """The place of `value`."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)


def scale(values: Iterable[float], title: str = "", *, log: bool = False) -> Scale:
    """A scale that holds `values` with a little room; of a logarithmic one they are above zero."""
    known = list(values)
    low, high = min(known), max(known)
    if log:
        room = max((high / low) ** 0.04, 1.02)
        low, high = low / room, high * room
    else:
        room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - room, high + room
    ticks = _log_ticks(low, high) if log else _ticks(low, high)
    return Scale(low, high, ticks, title, log)


def _ticks(low: float, high: float, most: int = 8) -> tuple[float, ...]:
    """Round values, at most `most`, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    first = math.ceil(low / step)
    return tuple(round(k * step, 12) for k in range(first, math.floor(high / step) + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2 and 5 times powers of ten, or fewer of them; evenly spaced in a short range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = tuple(k * 10.0**p for p in powers for k in steps if low <= k * 10.0**p <= high)
        if len(found) <= 7:
            break
    return found if len(found) > 2 else _ticks(low, high, 5)


def across(place: float) -> str:
    """A horizontal place, 0 to 1."""
    return f"{100 * place:.2f}%"


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; `content` is markup, attributes are escaped: `class_`, `stroke_width`."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value != ""
    )
    return f"<{name}{shown}>{content}</{name}>"


def drawing(height: float, *parts: str) -> str:
    """The whole plot, `height` px without the room that the page leaves for texts around it."""
    return tag("svg", "".join(parts), class_="drawing", height=f"{height:g}", aria_hidden="true")


def text(content: str, x: str, y: float, *, anchor: str = "", class_: str = "") -> str:
    """A line of text whose baseline is at `y`; `anchor` is start, middle or end of it."""
    return tag("text", escape(content), x=x, y=f"{y:g}", text_anchor=anchor, class_=class_)


def line(start: tuple[float, float], end: tuple[float, float], class_: str) -> str:
    """From `start` to `end`, each a horizontal place and px."""
    (x1, y1), (x2, y2) = start, end
    return tag("line", x1=across(x1), y1=f"{y1:.1f}", x2=across(x2), y2=f"{y2:.1f}", class_=class_)


def mark(symbol: str, x: float, y: float, class_: str, title: str = "") -> str:
    """A symbol at a place, with its title."""
    said = tag("title", escape(title)) if title else ""
    shape = tag("path", said, d=SYMBOLS[symbol], class_=class_)
    return tag("svg", shape, x=across(x), y=f"{y:.1f}", overflow="visible")


def curve(points: Sequence[tuple[float, float]], height: float, class_: str, title: str) -> str:
    """A line through places (0 to 1, from the lower left), over the whole plot."""
    steps = "L".join(f"{1000 * x:.0f},{1000 - 1000 * y:.0f}" for x, y in points)
    path = tag("path", tag("title", escape(title)), d=f"M{steps}", class_=class_)
    box = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none"}
    return tag("svg", path, width="100%", height=f"{height:g}", overflow="visible", **box)


def coloured(colour: str, *parts: str) -> str:
    """Marks in one of the page's colours."""
    return tag("g", "".join(parts), style=f"--c:var(--{colour})")


def below(axis: Scale, height: float) -> str:
    """The horizontal axis at `height`, with vertical lines up to the top of the plot."""
    parts = [line((0, height), (1, height), "axis")]
    for value in axis.ticks:
        place = axis.at(value)
        parts.append(line((place, 0), (place, height), "grid"))
        parts.append(text(_written(value, axis), across(place), height + 18, anchor="middle"))
    if axis.title:
        parts.append(text(axis.title, "50%", height + 38, anchor="middle", class_="title"))
    return "".join(parts)


def beside(axis: Scale, height: float) -> str:
    """The vertical axis: horizontal lines with their values, the title above."""
    parts = []
    for value in axis.ticks:
        y = height * (1 - axis.at(value))
        parts.append(line((0, y), (1, y), "grid"))
        parts.append(text(_written(value, axis), "-8", y + 4, anchor="end"))
    parts.append(text(axis.title, "-40", -12, class_="title"))
    return "".join(parts)


def _written(value: float, axis: Scale) -> str:
    """A tick as short as its step allows."""
    step = min((b - a for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)), default=value)
    digits = max(0, -math.floor(math.log10(abs(step) * 1.0001))) if step else 0
    if axis.log:
        return f"{value:g}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,.{digits}f}".replace("-", "−")

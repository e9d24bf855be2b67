"""From a value to what a reader sees of it: each kind of figure is rounded here, nowhere else."""

from __future__ import annotations

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.profiling.resampling import Spread
from lorkd_deploy.reporting.table import Cell, Tone

UNMEASURED = "not measured here"
FOUNDATION = "Foundation model"
EXPERT = "Expert"
MiB = 1024 * 1024


def label(text: object, *, tone: Tone = "", note: str = "") -> Cell:
    """A cell of text that sorts by itself."""
    return Cell(str(text), str(text), note, tone)


def engine_name(engine: EngineProfile) -> str:
    """What a reader calls the engine's model."""
    return FOUNDATION if engine.kind == "teacher" else f"Expert {', '.join(engine.tasks)}"


def engine_cell(engine: EngineProfile) -> Cell:
    """The engine's model, with its target and precision in small print."""
    return label(engine_name(engine), note=f"{engine.target} {engine.precision}")


def number(value: float | None, digits: int = 3, unit: str = "", *, note: str = "") -> Cell:
    """`value` to `digits` significant figures, or that it was not measured."""
    if value is None:
        return Cell(UNMEASURED, tone="quiet")
    text = f"{value:,}" if isinstance(value, int) else significant(value, digits)
    return Cell(f"{text} {unit}" if unit else text, value, note)


def tail(value: float | None) -> Cell:
    """A high percentile, or that there were too few calls for one."""
    return Cell("too few calls", tone="quiet") if value is None else number(value)


def mebibytes(size: float | None, *, note: str = "") -> Cell:
    """Bytes, shown in MiB."""
    if size is None:
        return Cell(UNMEASURED, tone="quiet")
    return Cell(f"{significant(size / MiB, 3)} MiB", size, note)


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant figures, without an exponent between 1e-4 and 1e6."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{max(0, digits - 2)}e}"
    text = f"{value:.{digits}g}"
    if "e" in text:
        return f"{float(text):,.0f}"
    whole = len(str(abs(int(float(text)))).lstrip("0"))
    shown = f"{float(text):,.{max(0, digits - whole)}f}" if whole else f"{float(text):#.{digits}g}"
    return shown.replace("-", "−")


def share(value: float | None, *, note: str = "") -> Cell:
    """A fraction as per cent."""
    return number(None) if value is None else Cell(f"{100 * value:.1f} %", value, note)


def area(value: float | None, *, note: str = "") -> Cell:
    """An AUC, 0 … 1."""
    return number(None) if value is None else Cell(f"{value:.3f}", value, note)


def share_between(value: Interval | None) -> Cell:
    """A fraction as per cent with its 95 % interval."""
    if value is None:
        return number(None)
    return share(value.value, note=f"{100 * value.low:.1f} to {100 * value.high:.1f} %")


def area_between(value: Interval | None) -> Cell:
    """An AUC with its 95 % interval."""
    if value is None:
        return number(None)
    return area(value.value, note=f"{value.low:.3f} to {value.high:.3f}")


def points(
    value: Interval | None, *, scale: float = 100, unit: str = "points", gain: Tone = "good"
) -> Cell:
    """A signed difference with its interval; coloured only where the interval excludes zero, and
    above it with `gain`."""
    if value is None:
        return number(None)
    digits = 1 if scale == 100 else 3
    text, low, high = (signed(v * scale, digits) for v in (value.value, value.low, value.high))
    shown = Cell(f"{text} {unit}".strip(), value.value, f"{low} to {high}")
    if value.low > 0:
        return Cell(shown.text, shown.value, shown.note, gain)
    return Cell(shown.text, shown.value, shown.note, "bad" if value.high < 0 else "")


def signed(value: float, digits: int) -> str:
    """`+0.4`, `−1.2`, `0.0`: never a minus before zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def between(value: Interval, digits: int = 3, unit: str = "") -> str:
    """The 95 % interval in words."""
    return f"{significant(value.low, digits)} to {significant(value.high, digits)} {unit}".strip()


def spread(found: Spread | None, unit: str) -> Cell:
    """The median of the rounds, with the smallest and the largest round in small print."""
    if found is None:
        return number(None)
    note = f"{significant(found.minimum)} to {significant(found.maximum)}"
    return number(found.median, unit=unit, note=note if len(found.rounds) > 1 else "")

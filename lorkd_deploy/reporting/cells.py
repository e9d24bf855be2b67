"""From a value to what a reader sees of it: each kind of figure is rounded here, nowhere else."""

from __future__ import annotations

from dataclasses import replace

from lorkd_deploy.bundle.manifest import TEACHER
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import RATIO, Figure, Value
from lorkd_deploy.profiling.mlperf.profile import ScenarioRun
from lorkd_deploy.profiling.profile import BatchRatio, EngineProfile
from lorkd_deploy.profiling.resampling import Spread
from lorkd_deploy.reporting.table import Cell, Column, Tone

UNMEASURED = "not measured here"
FEW_CALLS = "too few calls"  # for so high a percentile
FOUNDATION = "Foundation model"
EXPERT = "Expert"
_OF_SPEED: dict[str, Tone] = {"faster": "good", "slower": "bad"}


def label(text: object, *, tone: Tone = "", note: str = "") -> Cell:
    """A cell of text that sorts by itself."""
    return Cell(str(text), str(text), note, tone)


def engine_name(engine: EngineProfile | ScenarioRun) -> str:
    """What a reader calls the engine's model."""
    return FOUNDATION if engine.kind == "teacher" else f"Expert {', '.join(engine.tasks)}"


def engine_cell(engine: EngineProfile | ScenarioRun) -> Cell:
    """The engine's model, with its target and precision in small print."""
    return label(engine_name(engine), note=f"{engine.target} {engine.precision}")


def artifact_cell(artifact: Artifact) -> Cell:
    """The same of an engine as it was exported, measured or not."""
    name = FOUNDATION if artifact.engine == TEACHER else f"{EXPERT} {artifact.engine}"
    return label(name, note=f"{artifact.target} {artifact.precision}")


def number(value: float | None, digits: int = 3, unit: str = "", *, note: str = "") -> Cell:
    """`value` to `digits` significant figures, or that it was not measured."""
    if value is None:
        return Cell(UNMEASURED, tone="quiet")
    text = f"{value:,}" if isinstance(value, int) else significant(value, digits)
    return Cell(f"{text} {unit}" if unit else text, value, note)


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


def column(figure: Figure) -> Column:
    """A figure's column; what its cells hold is as the profile has it."""
    return Column(figure.key, figure.title, hint=figure.hint)


def in_unit(figure: Figure, value: float) -> str:
    """A value of `figure`, as the profile has it, in the figure's unit: `85.9 %`, `4.22 ms`."""
    return f"{_digits(figure, value)} {figure.unit}".rstrip()


def figure_cell(figure: Figure, found: Value, *, absent: str = UNMEASURED) -> Cell:
    """What was read of `figure`, with its 95 % interval or the extent of its rounds below it.

    A caption says once that times are in ms; `absent` is shown where there is no value.
    """
    if found is None:
        return Cell(absent, tone="quiet")
    value, note = _parts(figure, found)
    text = _digits(figure, value) if figure.unit == "ms" else in_unit(figure, value)
    return Cell(text, value, f"{note} %" if note and figure.unit == "%" else note)


def _parts(figure: Figure, found: Interval | Spread | float) -> tuple[float, str]:
    """The value, and from where to where it goes."""
    if isinstance(found, Interval):
        return found.value, f"{_digits(figure, found.low)} to {_digits(figure, found.high)}"
    if isinstance(found, Spread):
        extent = f"{_digits(figure, found.minimum)} to {_digits(figure, found.maximum)}"
        return found.median, extent if len(found.rounds) > 1 else ""
    return found, ""


def _digits(figure: Figure, value: float) -> str:
    scaled = figure.scale * value
    return significant(scaled) if figure.decimals is None else f"{scaled:.{figure.decimals}f}"


def ratio_cell(found: BatchRatio) -> Cell:
    """An expert's speed-up at one batch size, coloured where a difference is shown."""
    return replace(figure_cell(RATIO, found.ratio), tone=_OF_SPEED.get(found.verdict, ""))


def difference_cell(
    figure: Figure, value: Interval | None, *, unit: str = "", gain: Tone = "good"
) -> Cell:
    """Expert minus foundation model with its interval; coloured only where that excludes zero, and
    with `gain` where it is for the better."""
    if value is None:
        return number(None)
    text, low, high = (
        signed(figure.scale * v, figure.decimals or 0) for v in (value.value, value.low, value.high)
    )
    below: Tone
    above: Tone
    below, above = ("bad", gain) if figure.more_is_better else (gain, "bad")
    tone: Tone = above if value.low > 0 else below if value.high < 0 else ""
    return Cell(f"{text} {unit}".rstrip(), value.value, f"{low} to {high}", tone)


def signed(value: float, digits: int) -> str:
    """`+0.4`, `−1.2`, `0.0`: never a minus before zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def between(value: Interval) -> str:
    """The 95 % interval in words."""
    return f"{significant(value.low)} to {significant(value.high)}"


def spread(found: Spread | None, unit: str = "") -> Cell:
    """The median of the rounds, with the smallest and the largest round in small print."""
    if found is None:
        return number(None)
    note = f"{significant(found.minimum)} to {significant(found.maximum)}"
    return number(found.median, unit=unit, note=note if len(found.rounds) > 1 else "")

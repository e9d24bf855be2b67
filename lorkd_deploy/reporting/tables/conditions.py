"""What the machine did while each engine was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorkd_deploy.profiling.conditions import Conditions
from lorkd_deploy.profiling.resampling import spread as spread_of
from lorkd_deploy.reporting.cells import engine_cell, label, number, spread
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

CAPTION = (
    "Of the rounds that were kept, the median, with the smallest and the largest round in small "
    "print. A round's figure is the worst of its batches and stages, clock and temperature as they "
    "were after each. What the system or the driver doesn't tell is not readable here."
)
UNREADABLE = Cell("not readable here", tone="quiet")
Read = Callable[[Conditions], float | None]


def conditions(sources: Sources, department: str) -> Table | None:
    """A row for each engine, the teacher's too; None where the rounds were not watched."""
    listed = [engine for engine in sources.engines(department) if engine.conditions]
    if not listed:
        return None
    columns = [
        Column("engine", "Engine", numeric=False),
        Column("others_share", "Other load", hint="share of the engine's CPUs that others took"),
        Column("throttled_share", "CPU limit", hint="share of the time that a limit stopped it"),
        Column("pace", "Pace", hint="time of a fixed piece of work, over the median"),
        Column("mhz", "Clock"),
        Column("celsius", "Temperature"),
        Column("slowdowns", "Slow-downs", hint="of CPUs for heat, in all rounds"),
    ]
    gpu = any(state.gpu_mhz or state.gpu_celsius for e in listed for state in e.conditions)
    if gpu:
        columns += [
            Column("gpu_mhz", "GPU clock", hint="of the first GPU"),
            Column("gpu_celsius", "GPU temperature", hint="of the first GPU"),
            Column("gpu_slowed", "GPU slowed", numeric=False),
        ]
    columns += [
        Column("attempts", "Attempts", hint="how often the rounds were measured in all"),
        Column("disturbed", "Disturbed", hint="rounds that were kept in spite of it"),
    ]
    rows = tuple(
        (
            engine_cell(engine),
            *_cpu(engine.conditions),
            *(_gpu(engine.conditions) if gpu else ()),
            *_judged(engine.conditions),
        )
        for engine in listed
    )
    return Table("conditions", "The machine meanwhile", CAPTION, tuple(columns), rows)


def _cpu(states: Sequence[Conditions]) -> tuple[Cell, ...]:
    heat = [state.slowdowns for state in states if state.slowdowns is not None]
    return (
        _share(states, lambda state: state.others),
        _share(states, lambda state: state.throttled),
        _rounds(states, lambda state: state.pace, "×"),
        _rounds(states, lambda state: state.mhz, "MHz"),
        _rounds(states, lambda state: state.celsius, "°C"),
        number(sum(heat)) if heat else UNREADABLE,
    )


def _gpu(states: Sequence[Conditions]) -> tuple[Cell, ...]:
    why = sorted({state.gpu_slowed for state in states if state.gpu_slowed})
    return (
        _rounds(states, lambda state: state.gpu_mhz, "MHz"),
        _rounds(states, lambda state: state.gpu_celsius, "°C"),
        label("; ".join(why), tone="bad") if why else label("none told"),
    )


def _judged(states: Sequence[Conditions]) -> tuple[Cell, Cell]:
    disturbed = sum(state.disturbed for state in states)
    return (
        number(sum(state.attempts for state in states), note=f"for {len(states)} rounds"),
        Cell(str(disturbed), disturbed, tone="bad" if disturbed else ""),
    )


def _share(states: Sequence[Conditions], read: Read) -> Cell:
    found = [100 * value for state in states if (value := read(state)) is not None]
    if not found:
        return UNREADABLE
    shown = spread_of(found)
    note = f"{shown.minimum:.1f} to {shown.maximum:.1f}"
    return Cell(f"{shown.median:.1f} %", shown.median / 100, note if len(found) > 1 else "")


def _rounds(states: Sequence[Conditions], read: Read, unit: str) -> Cell:
    found = [value for state in states if (value := read(state)) is not None]
    return spread(spread_of(found), unit) if found else UNREADABLE

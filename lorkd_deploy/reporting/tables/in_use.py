"""In use: what a task's answers come with, and what came of it on the test images."""

from __future__ import annotations

from collections.abc import Iterator

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.reporting.cells import label, number
from lorkd_deploy.reporting.facts import looks
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table
from lorkd_deploy.safety.coverage import promise

COLUMNS = (
    Column("task", "Task", numeric=False),
    Column("what", "What", numeric=False),
    Column("value", "Value"),
    Column("low", "From"),
    Column("high", "To"),
    Column("rests_on", "Rests on", numeric=False),
)
CAPTION = (
    "Of the unfused model, which every engine is held against. Calibration error and Brier score "
    "of the test images, without and with the temperature that is in the head; coverage: how often "
    "the set of possible classes held the right one, and how many images were referred to a "
    "person; the guard: how many of the task's own pictures are taken for others'. Intervals are "
    "95 %; what was promised by few held-out images has a wide one. The guard tells other kinds of "
    "picture by what they are made of, not by what they show: a picture upside down, or a near "
    "kind of image, may pass. The map of the most probable class: how much of the image lies where "
    "it is above half its largest; the area under the class's probability while pixels turn grey "
    "(deletion: the lower, the more the map is worth) or come into a blurred image (insertion: the "
    "higher), those first where the map is highest; images "
    "where nothing speaks for the answer are left out."
)


def in_use(sources: Sources, department: str) -> Table | None:
    """What the answers of the department's tasks come with; None where it is nothing."""
    rows = [row for task in sources.tasks(department) for row in _rows(sources, task)]
    return Table("in-use", "In use", CAPTION, COLUMNS, tuple(rows)) if rows else None


def _rows(sources: Sources, task: TaskEntry) -> Iterator[tuple[Cell, ...]]:
    found = task.safety
    if fitted := found.temperature:
        on = f"temperature {fitted.value:.3g}, {fitted.images} validation images"
        sides = (("without", fitted.before), ("with temperature", fitted.after))
        for words, side in sides:
            yield _row(task, f"calibration error, {words}", side.calibration_error, on)
            yield _row(task, f"Brier score, {words}", side.brier, on)
    if covered := found.coverage:
        for part in covered.tested:
            low, high = promise(covered.images, part.coverage)
            on = f"{covered.images} held-out images: {low:.3f} to {high:.3f} promised"
            yield _row(task, f"coverage, {part.coverage:g} asked for", part.found, on)
            yield _row(task, f"referred at {part.coverage:g}", part.referred, on)
    if guard := found.guard:
        alarms = Interval(value=guard.false_alarms, low=guard.low, high=guard.high)
        yield _row(task, "guard, false alarms", alarms, f"{guard.images} held-out images")
    for what, found_of_maps, on in looks.figures(sources, task):
        yield _row(task, what, found_of_maps, on)


def _row(task: TaskEntry, what: str, found: Interval, on: str) -> tuple[Cell, ...]:
    figures = (number(value) for value in (found.value, found.low, found.high))
    return (label(task.name), label(what), *figures, label(on))

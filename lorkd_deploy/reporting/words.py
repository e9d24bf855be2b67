"""Phrases that the report's texts share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.reporting.cells import significant

NO_DEVICE = (
    "Not a medical device.",
    "For research and engineering; not cleared for diagnosis or treatment. No figure here was "
    "measured on your patients.",
)
# A command or an option between backticks. A name from a file may look like one, which is harmless:
# it is then shown as one.
COMMAND = re.compile(r"`((?:lorkd |--)[\w .$=/-]+)`")
_SMALL = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def count(number: int, one: str) -> str:
    """`one department`, `four departments`, `12 departments`."""
    return f"{spelled(number)} {one if number == 1 else one + 's'}"


def spelled(number: int) -> str:
    """`one`, `four`, `12`."""
    return _SMALL[number] if number < len(_SMALL) else str(number)


def listed(values: Sequence[int]) -> str:
    shown = [str(value) for value in values]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def extent(values: Sequence[float], digits: int = 3) -> str:
    """`4.1 to 4.4`, or one figure where both round to the same."""
    low, high = significant(min(values), digits), significant(max(values), digits)
    return low if low == high else f"{low} to {high}"


def source_of(task: TaskEntry) -> str:
    """Where a task's images come from, as the manifest has it."""
    parts = [str(task.data[key]) for key in ("source", "name", "path") if task.data.get(key)]
    return " ".join(parts) or "a source that wasn't recorded"


def describe(task: TaskEntry) -> str:
    """A task in a sentence: its classes, where its images come from, its expert's rank."""
    many = task.kind == "multilabel"
    classes = f"{len(task.classes)} {'labels, any number at once' if many else 'classes'}"
    text = f"Task {task.name}: {classes} ({', '.join(task.classes)})"
    text += f"; images: {source_of(task)}"
    if task.rank and task.alpha:
        text += f"; expert of rank {task.shown_rank}, α {task.alpha:g}"
    return text + "."

"""What a yes and a no are worth: predictive values, which change with how common a finding is."""

from __future__ import annotations

from dataclasses import dataclass

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import ACCURACY
from lorkd_deploy.reporting.cells import figure_cell, in_unit, label
from lorkd_deploy.reporting.facts.counts import Counts, counts
from lorkd_deploy.reporting.facts.shown_engine import chosen
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

TITLE = "What a yes and a no are worth"
CAPTION = (
    "By Bayes' rule from the sensitivity and specificity of the engines above; in small print both "
    "at the ends of their 95 % intervals. They hold at the prevalence of the test images, which is "
    "rarely a department's."
)
_COLUMNS = (
    Column("task", "Task", numeric=False),
    Column("finding", "Finding", numeric=False),
    Column("sensitivity", "Sensitivity"),
    Column("specificity", "Specificity"),
    Column("prevalence", "Prevalence"),
    Column("positive_predictive_value", "A yes is right", hint="positive predictive value"),
    Column("negative_predictive_value", "A no is right", hint="negative predictive value"),
)


@dataclass(frozen=True)
class Worth:
    """One finding of one engine, from which the page reckons at other prevalences."""

    task: str
    of: Counts

    @property
    def prevalence(self) -> float:
        """Of the test images."""
        return self.of.shown / (self.of.shown + self.of.absent)

    @property
    def numbers(self) -> tuple[tuple[float, float, float], ...]:
        """Sensitivity and specificity, each with its interval's bounds: for the page's script."""
        both = (self.of.sensitivity, self.of.specificity)
        return tuple((found.value, found.low, found.high) for found in both)

    def of_yes(self, prevalence: float) -> Interval:
        """The positive predictive value."""
        return _range(self.of.sensitivity, self.of.specificity, prevalence)

    def of_no(self, prevalence: float) -> Interval:
        """The negative predictive value: the same with the sides changed."""
        return _range(self.of.specificity, self.of.sensitivity, 1 - prevalence)


def _range(hit: Interval, spared: Interval, share: float) -> Interval:
    value, low, high = (
        h * share / (h * share + (1 - s) * (1 - share)) if h * share + (1 - s) * (1 - share) else 0
        for h, s in ((hit.value, spared.value), (hit.low, spared.low), (hit.high, spared.high))
    )
    return Interval(value=value, low=low, high=high)


def worth(sources: Sources) -> tuple[Worth, ...]:
    """Every finding of the shown engines; none of a task with several classes."""
    return tuple(
        Worth(pair.task.name, found)
        for pair in chosen(sources)
        for found in counts(sources, pair.task, pair.expert)
    )


def predictive(found: tuple[Worth, ...]) -> Table | None:
    """A row for each finding, at the prevalence of the test images; None without a finding."""
    rows = tuple(
        (
            label(entry.task),
            label(entry.of.finding),
            _share(entry.of.sensitivity),
            _share(entry.of.specificity),
            Cell(in_unit(ACCURACY, entry.prevalence), entry.prevalence, "of the test images"),
            _share(entry.of_yes(entry.prevalence)),
            _share(entry.of_no(entry.prevalence)),
        )
        for entry in found
    )
    return Table("predictive", TITLE, CAPTION, _COLUMNS, rows) if rows else None


def _share(found: Interval) -> Cell:
    return figure_cell(ACCURACY, found)  # a share of the images, as accuracy is

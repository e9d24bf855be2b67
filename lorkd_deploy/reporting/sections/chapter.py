"""One department's chapter of the report.

A table or plot decides for itself whether it has anything to say of a department, so a new one is a
line in `ANSWERS` or `MACHINE`, wherever it is to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.profiling.scoring import open_task
from lorkd_deploy.reporting.facts.answers import Answers, answers_of
from lorkd_deploy.reporting.facts.looks import Look, looks
from lorkd_deploy.reporting.facts.samples import Sample, samples
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.plots.curves import calibration, roc
from lorkd_deploy.reporting.plots.distribution import distribution
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.table import Table
from lorkd_deploy.reporting.tables.accuracy import accuracy
from lorkd_deploy.reporting.tables.cold_start import cold_start
from lorkd_deploy.reporting.tables.conditions import conditions
from lorkd_deploy.reporting.tables.confusion import confusion
from lorkd_deploy.reporting.tables.decisions import against, decisions
from lorkd_deploy.reporting.tables.in_use import in_use
from lorkd_deploy.reporting.tables.memory import memory
from lorkd_deploy.reporting.tables.mlperf import scenarios
from lorkd_deploy.reporting.tables.stages import stages
from lorkd_deploy.reporting.tables.subgroups import gaps, subgroups
from lorkd_deploy.reporting.words import describe

DepartmentTable = Callable[[Sources, str], Table | None]
Samples = tuple[tuple[str, tuple[Sample, ...]], ...]  # for each task, its name and images
Looks = tuple[tuple[str, tuple[Look, ...]], ...]  # the same, with both models' maps

# How right the answers are: what a department asks first. The model cards have these too.
ANSWERS: tuple[DepartmentTable, ...] = (accuracy, decisions, against, in_use, subgroups, gaps)
# What the engines ask of the machine.
MACHINE: tuple[DepartmentTable, ...] = (
    stages,
    cold_start,
    memory,
    conditions,
    scenarios,
)


@dataclass(frozen=True)
class Chapter:
    """A department's chapter, in the order in which it is read; each part may be empty."""

    name: str
    about: tuple[str, ...]  # a sentence for each task
    answers: tuple[Table, ...]
    confusion: tuple[Table, ...]
    curves: tuple[Figure, ...]
    samples: Samples
    looks: Looks
    machine: tuple[Table, ...]
    latency: tuple[Figure, ...]

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """Every table, in the chapter's order; those of the plots are in the plots."""
        return (*self.answers, *self.confusion, *self.machine)


def tables_of(
    sources: Sources, department: str, tables: Sequence[DepartmentTable]
) -> tuple[Table, ...]:
    """Those of `tables` that have something to say of the department, in their order."""
    made = (table(sources, department) for table in tables)
    return tuple(table.without_gaps() for table in made if table)


def chapter(sources: Sources, department: str, key: str, *, images: bool) -> Chapter:
    """The chapter of `department`; `key` goes before the key of everything in it."""
    tasks = sources.tasks(department)
    kept = [answers for task in tasks if (answers := answers_of(sources, task))]
    curves: list[Figure] = []
    matrices: list[Table] = []
    for number, answers in enumerate(kept, 1):
        place = f"{key}-{number}" if len(kept) > 1 else key
        curves += [plot(answers).below(place) for plot in (roc, calibration)]
        matrices += [table.below(place) for table in confusion(answers)]
    of_answers, of_maps = _pictures(sources, tasks, kept) if images else ((), ())
    plot = distribution(sources, department)
    return Chapter(
        name=department,
        about=tuple(describe(task) for task in tasks),
        answers=tuple(t.below(key) for t in tables_of(sources, department, ANSWERS)),
        confusion=tuple(matrices),
        curves=tuple(curves),
        samples=of_answers,
        looks=of_maps,
        machine=tuple(t.below(key) for t in tables_of(sources, department, MACHINE)),
        latency=(plot.below(key),) if plot else (),
    )


def _pictures(
    sources: Sources, tasks: Sequence[TaskEntry], kept: Sequence[Answers]
) -> tuple[Samples, Looks]:
    """What there is to see of each task whose images are here; they are opened once for both."""
    answered = {answers.task.name: answers for answers in kept}
    of_answers, of_maps = [], []
    for task in tasks:
        data = open_task(sources.bundle, task)
        if data is None:
            continue
        own = answered.get(task.name)
        if own and (images := samples(sources, own, data)):
            of_answers.append((task.name, images))
        if maps := looks(sources, task, data):
            of_maps.append((task.name, maps))
    return tuple(of_answers), tuple(of_maps)

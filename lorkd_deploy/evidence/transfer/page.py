"""`TRANSFER/transfer.html`, `transfer.md` and a CSV file per table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.evidence.analysis.comparison import RESAMPLES
from lorkd_deploy.evidence.analysis.statistics import RARE
from lorkd_deploy.evidence.pages.page import data_warnings, seeds_in_words, warnings
from lorkd_deploy.evidence.pages.plots import dots
from lorkd_deploy.evidence.pages.tables import TITLES, differences_table, interval
from lorkd_deploy.evidence.transfer.result import ShotsResult, TransferResult
from lorkd_deploy.reporting.cells import label
from lorkd_deploy.reporting.files import Written, write_page
from lorkd_deploy.reporting.markdown import facts, plain, section
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.table import Cell, Column, Table

_INITS = {
    "expert": "from W0 with that task's expert",
    "shared": "from W0 alone",
    "mtl": "from the network trained without experts",
    "teacher": "the foundation model",
    "random": "from random weights",
    "joint": "all tasks trained again, the new one among them",
}
_FITS = {
    "experts": "a new low-rank expert and its head",
    "head": "a logistic regression on its features",
    "all": "all weights",
}


@dataclass(frozen=True)
class Chapter:
    """What one number of training images gives."""

    key: str
    title: str
    starts: Table
    dots: Figure
    differences: Table


@dataclass(frozen=True)
class TransferPage:
    """The page's content, in the order in which it is read."""

    name: str
    dateline: str
    title: str
    lead: str
    warnings: tuple[str, ...]
    chapters: tuple[Chapter, ...]
    others: Table | None
    protocol: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table, those of the plots too."""
        chapters = (
            table
            for chapter in self.chapters
            for table in (chapter.starts, chapter.dots.data, chapter.differences)
        )
        return (*chapters, *([self.others] if self.others else []))


def transfer_page(result: TransferResult) -> TransferPage:
    """What the page and its Markdown say."""
    name = str(result.data["name"])
    return TransferPage(
        name=name,
        dateline=f"{result.test_images} test images, {len(result.classes)} classes, "
        f"{seeds_in_words(result.seeds)}, {result.created}",
        title=f"{name}: learnt from {len(result.starts)} starts",
        lead=" ".join(_lead(result, found) for found in result.results),
        warnings=(
            *warnings(result.seeds, result.failed),
            *data_warnings(result.check, "TRANSFER"),
        ),
        chapters=tuple(_chapter(result, found) for found in result.results),
        others=_others(result),
        protocol=_protocol(result),
        provenance=(
            ("Data", ", ".join(f"{key} {value}" for key, value in result.data.items())),
            ("Software", ", ".join(f"{key} {value}" for key, value in result.software.items())),
        ),
    )


def write_transfer_report(folder: Path, page: TransferPage) -> Written:
    """Write the page, its Markdown and tables to the transfer's folder; raises as `write_page`."""
    return write_page(folder, "transfer", page, as_markdown(page))


def as_markdown(page: TransferPage) -> str:
    """The page without its plots, whose values are in its tables."""
    parts = [f"# {plain(page.title)}", plain(page.dateline), plain(page.lead)]
    if page.warnings:
        parts.append("\n".join(f"- {plain(text)}" for text in page.warnings))
    for chapter in page.chapters:
        parts += [f"## {plain(chapter.title)}", *section(chapter.starts, 3)]
        parts += section(chapter.differences, 3)
    if page.others:
        parts += section(page.others, 2)
    parts += ["## How this was done", *map(plain, page.protocol), facts(page.provenance)]
    return "\n\n".join(parts) + "\n"


def _lead(result: TransferResult, found: ShotsResult) -> str:
    auc = {s: found.comparison.figure(s, None, "auc").estimate.value for s in result.starts}
    best = max(auc, key=lambda start: auc[start])
    return f"{found.title}: AUC {auc[best]:.3f} at best ({best})."


def _chapter(result: TransferResult, found: ShotsResult) -> Chapter:
    key = f"shots-{found.shots or 'all'}"
    seeds = f"{key}-seeds"
    figure = dots(
        found.comparison,
        result.starts,
        result.seeds,
        "auc",
        TITLES["auc"],
        key=seeds,
        data_key=seeds,
    )
    differences = differences_table(
        found.comparison,
        {s: label(s, note=_words(s)) for s in result.starts if s != result.first},
        f"{key}-differences",
        f"{result.first} minus each other start",
        "",
    )
    title = f"{found.title} ({found.images} training images)"
    return Chapter(key, title, _starts(result, found, key), figure, differences)


def _starts(result: TransferResult, found: ShotsResult, key: str) -> Table:
    metrics = found.comparison.metrics
    columns = (
        Column("start", "Start and what is learnt", numeric=False),
        *(Column(metric, TITLES[metric]) for metric in metrics),
    )
    rows = tuple(
        (
            label(start, note=_words(start)),
            *(interval(found.comparison.figure(start, None, m).estimate) for m in metrics),
        )
        for start in result.starts
    )
    caption = "Means over the seeds on the test images, with 95 % intervals."
    return Table(f"{key}-starts", "Every start", caption, columns, rows)


def _others(result: TransferResult) -> Table | None:
    """A row for each task that was there: whether learning another one has changed its engine."""
    found: dict[tuple[str, str], list[bool]] = {}
    for own in result.others.values():
        for task, engine in own.items():
            trainings = found.setdefault((task, engine.before), [])
            trainings.append(engine.before == engine.after)
    if not found:
        return None
    columns = (
        Column("task", "Task", numeric=False),
        Column("weights", "Weights before, SHA-256", numeric=False),
        Column("trainings", "Trainings of the new task"),
        Column("same", "With the same bytes after"),
    )
    rows = tuple(
        (
            label(task),
            Cell(sha256[:16], sha256),
            Cell(str(len(same)), len(same)),
            Cell(str(sum(same)), sum(same), tone="" if all(same) else "bad"),
        )
        for (task, sha256), same in found.items()
    )
    caption = (
        "What each engine is built from, W0 and its task's expert fused, before and after a new "
        "expert was learnt on the frozen W0: where the bytes are the same, so is the engine. A row "
        "for each W0."
    )
    return Table("others", "The engines that were there", caption, columns, rows)


def _words(start: str) -> str:
    init, _, fit = start.rpartition("+")
    return f"{_INITS[init.partition(':')[0]]}: {_FITS[fit]}"


_JOINT = (
    "Jointly all tasks are trained from random weights as the run was, by its own recipe: the new "
    "one has its images' share of every batch, and its teacher a head fitted to the same images."
)


def _protocol(result: TransferResult) -> tuple[str, ...]:
    train = result.recipe["train"]
    return (
        f"Trainings draw as many images as {train['epochs']:g} epochs of all have, whatever the "
        f"number of shots, in batches of {train['batch_size']}; optimiser, schedule and selection "
        "are those of the recipe. A frozen start keeps the statistics of its norms. A head alone "
        "is a logistic regression whose penalty is chosen on the validation images, which are "
        "whole at every number of shots.",
        *([_JOINT] if "joint+experts" in result.starts else []),
        f"Seeds {', '.join(map(str, result.seeds))} draw the shots and set weights and "
        "augmentation. Differences are paired by image and by seed; the wider of a bootstrap over "
        "images (patients, where the data has them) and seeds and a t-interval over the seeds is "
        f"shown and decides. {RESAMPLES} resamples, within classes where one has fewer than {RARE} "
        "images.",
        f"All trainings together took {result.seconds / 60:.0f} minutes.",
    )

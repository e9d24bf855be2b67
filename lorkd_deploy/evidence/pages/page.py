"""What a study's page says: its sentences and tables, from the result alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorkd_deploy.datacheck.result import DataCheck
from lorkd_deploy.evidence.analysis.comparison import RESAMPLES
from lorkd_deploy.evidence.analysis.mig import BINS, DIMENSIONS
from lorkd_deploy.evidence.analysis.statistics import RARE
from lorkd_deploy.evidence.pages.plots import dots, forest
from lorkd_deploy.evidence.pages.tables import (
    TITLES,
    differences_table,
    methods_table,
    mig_tables,
    name_cell,
    others,
    task_table,
)
from lorkd_deploy.evidence.result import StudyResult
from lorkd_deploy.reporting.facts import cautions
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.table import Table


@dataclass(frozen=True)
class StudyPage:
    """The page's content, in the order in which it is read."""

    name: str
    dateline: str
    title: str
    lead: str
    warnings: tuple[str, ...]
    methods: Table
    dots: Figure
    differences_intro: str
    differences: Table
    forest: Figure
    tasks: tuple[Table, ...]
    mig_intro: str
    mig: tuple[Table, ...]
    protocol: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every plot."""
        return self.dots, self.forest

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table, those of the plots too."""
        return (
            self.methods,
            self.differences,
            *self.tasks,
            *self.mig,
            *(f.data for f in self.figures),
        )


def study_page(result: StudyResult) -> StudyPage:
    """What the page and its Markdown say."""
    return StudyPage(
        name=str(result.recipe["name"]),
        dateline=f"{result.recipe['name']}, {len(result.tasks)} tasks, "
        f"{seeds_in_words(result.seeds)}, {result.created}",
        title=f"{result.first} against {len(result.variants) - 1} other ways",
        lead=lead(result),
        warnings=(
            *warnings(result.seeds, result.failed),
            *data_warnings(result.check, "STUDY"),
        ),
        methods=methods_table(result),
        dots=dots(result.comparison, result.variants, result.seeds, "auc", TITLES["auc"]),
        differences_intro=_INTRO,
        differences=differences_table(
            result.comparison,
            {name: name_cell(name) for name in others(result)},
            "differences",
            f"{result.first} minus each other method",
            "Means over all tasks.",
        ),
        forest=forest(result, "auc", TITLES["auc"]),
        tasks=tuple(task_table(result, metric) for metric in result.comparison.metrics),
        mig_intro=_MIG,
        mig=mig_tables(result),
        protocol=_protocol(result),
        provenance=(
            ("Recipe, sha256", result.recipe_sha256),
            ("Software", ", ".join(f"{name} {v}" for name, v in result.software.items())),
        ),
    )


def lead(result: StudyResult) -> str:
    """What the study shows of the AUC over all tasks."""
    return f"In mean {TITLES['auc']} over all tasks, {verdicts_in_words(result, 'auc')}."


def verdicts_in_words(
    result: StudyResult, metric: str, called: Mapping[str, str] | None = None
) -> str:
    """What the first is better and worse than over all tasks, and against which no difference is
    shown; each by its name, or as it is `called`."""
    called = called or {name: name for name in result.variants}
    first = called[result.first]
    of: dict[str, list[str]] = {"better": [], "worse": [], "not shown": []}
    for second in others(result):
        verdict = result.comparison.difference(second, None, metric).verdict
        of[verdict].append(called[second])
    said = {
        "better": f"{first} is better than {_listed(of['better'])}",
        "worse": f"worse than {_listed(of['worse'])}",
        "not shown": f"against {_listed(of['not shown'])} no difference is shown",
    }
    parts = [said[word] for word in ("better", "worse", "not shown") if of[word]]
    if of["worse"] and not of["better"]:
        parts[0] = f"{first} is {parts[0]}"
    return "; ".join(parts) or "nothing is compared"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def seeds_in_words(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def warnings(seeds: Sequence[int], failed: Mapping[str, str]) -> tuple[str, ...]:
    """What to know first: that one seed shows nothing, and what failed."""
    found = []
    if len(seeds) == 1:
        found.append("One seed says nothing of what another training would give: nothing is shown.")
    found += [f"{folder} failed: {why}" for folder, why in failed.items()]
    return tuple(found)


def data_warnings(check: DataCheck | None, folder: str) -> tuple[str, ...]:
    """What the splits share, and where nobody has looked; `folder` is where a check is kept."""
    return (*cautions.leaks(check), *cautions.uncompared(check, folder=folder))


_INTRO = (
    "Every difference is paired by image and by seed. Its interval resamples images (patients, "
    "where the data has them) and seeds together; beside it stands a t-interval over the seeds "
    "alone, and the wider of the two is shown and decides. Only where it lies on one side of zero, "
    "and the p-value corrected over the tasks is below 0.05, the word is better or worse. Where it "
    "isn't shown, the number of seeds is said that would show it, if the difference and its spread "
    "over the seeds stayed as they are; none where the test images alone leave its sign open, or a "
    "thousand seeds wouldn't do."
)
_MIG = (
    f"How far one direction of the features belongs to one factor: latents are the first "
    f"{DIMENSIONS} principal components of a method's features of the test images in {BINS} "
    "equally wide bins, factors the class within a task, and over all tasks the task, and task "
    "with class. The gap is between the two latents that tell the most, over the factor's entropy."
)


def _protocol(result: StudyResult) -> tuple[str, ...]:
    train = result.recipe["train"]
    return (
        f"All methods see the same images, {train['epochs']:g} epochs of the mix of all tasks in "
        f"batches of {train['batch_size']}, with the same optimiser, schedule and, at its end, "
        "the last state. A network of a single task sees of it as many images as the mix draws.",
        f"Seeds {', '.join(map(str, result.seeds))} set weights, draws and augmentation; the test "
        f"images are answered once per training, the last partial batch too. Intervals are of "
        f"{RESAMPLES} resamples, within classes where a class has fewer than {RARE} images; "
        "p-values of the tasks are corrected by Holm.",
        "Latency and size are those of one task's network as it is deployed: an expert is fused "
        "into one dense network, knowledge factorisation needs its two." + _measured(result),
        f"All trainings together took {result.seconds / 3600:.1f} hours.",
    )


def _measured(result: StudyResult) -> str:
    """When and where latencies were; nothing in a result from before that was kept."""
    said = {cost.measured for cost in result.costs.values() if cost.measured}
    return f" All latencies were measured in turn: {', '.join(sorted(said))}." if said else ""

"""What the report says, before it is HTML or Markdown: both show this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.reporting import cautions, words
from lorkd_deploy.reporting.cells import UNMEASURED
from lorkd_deploy.reporting.glossary import glossary
from lorkd_deploy.reporting.plots import curves
from lorkd_deploy.reporting.plots.distribution import distribution
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.plots.tradeoff import MEASURES, tradeoffs
from lorkd_deploy.reporting.samples import Sample, samples
from lorkd_deploy.reporting.sources import Sources
from lorkd_deploy.reporting.table import Table
from lorkd_deploy.reporting.tables import decisions as quality
from lorkd_deploy.reporting.tables import engines as tables
from lorkd_deploy.reporting.tables import mlperf as scenarios
from lorkd_deploy.reporting.tables.cold_start import starting
from lorkd_deploy.reporting.tables.conditions import conditions
from lorkd_deploy.reporting.tables.memory import memory, together
from lorkd_deploy.reporting.tables.parity import proof
from lorkd_deploy.reporting.tables.stages import stages

NO_IMAGES = (
    "Test images may be patients', so none is on this page: `lorkd report --images` embeds a few "
    "of each task, with both models' answers, where the data is at hand."
)


@dataclass(frozen=True)
class Tile:
    """One of the figures that stand large on the first screen."""

    title: str
    value: str
    under: str
    empty: bool


@dataclass(frozen=True)
class Department:
    """One department's chapter."""

    name: str
    about: tuple[str, ...]
    quality: tuple[Table, ...]  # how right the answers are: what a department asks first
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    curves: tuple[Figure, ...] = ()
    matrices: tuple[Table, ...] = ()
    samples: tuple[tuple[str, tuple[Sample, ...]], ...] = ()  # a task's name, its images


@dataclass(frozen=True)
class Page:
    """The report's content, in the order in which it is read."""

    name: str
    over: str
    title: str
    lead: str
    tiles: tuple[Tile, ...]
    no_device: tuple[str, str]
    warnings: tuple[str, ...]
    summary: Table
    together: Table | None
    tradeoff_intro: str
    tradeoffs: tuple[Figure, ...]
    measures: dict[str, str]
    departments_intro: str
    departments: tuple[Department, ...]
    proof_intro: str
    proof: Table
    protocol: tuple[str, ...]
    glossary: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    provenance: tuple[tuple[str, str], ...]

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """Every table that can be downloaded, those of the plots too, in the page's order."""
        own = (self.summary, *([self.together] if self.together else []))
        parts = [t for d in self.departments for t in (*d.quality, *d.matrices, *d.tables)]
        return (*own, *parts, *(figure.data for figure in self.figures), self.proof)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every plot, in the page's order."""
        return (*self.tradeoffs, *(f for d in self.departments for f in (*d.figures, *d.curves)))


def page(sources: Sources, *, images: bool = False) -> Page:
    """Put together what one run's report says; `images` embeds a few test images a task."""
    profile = sources.profile
    plots = tuple(tradeoffs(sources))
    shown = {m for figure in plots for m in MEASURES if f"{figure.key}-{m}" in figure.specs}
    return Page(
        name=sources.manifest.name,
        over=_over(sources),
        title=words.title(sources),
        lead=words.lead(sources),
        tiles=tuple(
            Tile(title, value or UNMEASURED, under, value is None)
            for title, value, under in words.tiles(sources)
        ),
        no_device=words.NO_DEVICE,
        warnings=(*cautions.warnings(sources), *scenarios.warnings(sources)),
        summary=tables.summary(sources),
        together=together(sources),
        tradeoff_intro="Each dotted line is one task, from the foundation model (open diamond) to "
        "the department's expert (filled). Bars are 95 % intervals. Point at a mark for its "
        "figures; drag to enlarge, double-click to go back.",
        tradeoffs=plots,
        measures={key: text for key, text in MEASURES.items() if key in shown},
        departments_intro="Everything that was measured of each department's engines, with the "
        f"foundation model on the same machine beside them. {tables.LATENCY} {tables.ACCURACY}"
        f"{'' if images else f' {NO_IMAGES}'}",
        departments=tuple(
            _department(sources, name, number, images=images)
            for number, name in enumerate(sources.manifest.departments, 1)
        ),
        proof_intro="Before anything was exported, the unfused torch model's answers to the same "
        "inputs were written down. Each engine has to give them again: generated inputs, which "
        "any machine can rebuild, and test images where they are at hand.",
        proof=proof(sources),
        protocol=(*words.protocol(profile), *scenarios.protocol(sources)),
        glossary=glossary(sources),
        environment=tuple(words.environment(sources)),
        provenance=tuple(_provenance(sources)),
    )


def _over(sources: Sources) -> str:
    if sources.profile:
        day, cpu = sources.profile.created[:10], sources.profile.environment.cpu
    elif sources.scenarios:
        day = max(entry.measured for entry in sources.scenarios.runs)[:10]
        cpu = sources.scenarios.environment.cpu
    else:
        return sources.manifest.name
    return f"{sources.manifest.name} · measured {day} on {cpu}"


def _department(sources: Sources, name: str, number: int, *, images: bool) -> Department:
    tasks = [task for task in sources.manifest.tasks if task.department == name]
    answers = [
        tables.accuracy(sources, name, f"department-{number}-accuracy"),
        quality.decisions(sources, name, f"department-{number}-decisions"),
        quality.against(sources, name, f"department-{number}-against"),
    ]
    listed = [
        tables.every_engine(sources, name, f"department-{number}-every"),
        tables.engines(sources, name, f"department-{number}-engines"),
        tables.batches(sources, name, f"department-{number}-batches"),
        stages(sources, name, f"department-{number}-stages"),
        starting(sources, name, f"department-{number}-start"),
        memory(sources, name, f"department-{number}-memory"),
        conditions(sources, name, f"department-{number}-conditions"),
        scenarios.scenarios(sources, name, f"department-{number}-scenarios"),
    ]
    if not tables.of_department(sources, name):
        listed = listed[7:]  # no engine was measured: only what training wrote down is known
    plot = distribution(sources, name, f"department-{number}-latency")
    known = [given for task in tasks if (given := curves.of_task(sources, task))]
    drawn: list[Figure] = []
    matrices: list[Table] = []
    for index, given in enumerate(known, 1):
        key = f"department-{number}-" + (f"{index}-" if len(known) > 1 else "")
        drawn += [curves.roc(given, f"{key}roc"), curves.calibration(given, f"{key}calibration")]
        matrices += curves.confusion(given, f"{key}confusion")
    shown = [(given.task.name, samples(sources, given)) for given in known] if images else []
    return Department(
        name,
        tuple(describe(task) for task in tasks),
        tuple(table for table in answers if table),
        tuple(table for table in listed if table),
        (plot,) if plot else (),
        tuple(drawn),
        tuple(matrices),
        tuple((task, found) for task, found in shown if found),
    )


def describe(task: TaskEntry) -> str:
    """A task in a sentence: its classes, where its images come from, its expert's rank."""
    many = task.kind == "multilabel"
    classes = f"{len(task.classes)} {'labels, any number at once' if many else 'classes'}"
    source = " ".join(str(task.data[k]) for k in ("source", "name", "path") if task.data.get(k))
    text = f"Task {task.name}: {classes} ({', '.join(task.classes)})"
    text += f"; images: {source or 'source not recorded'}"
    if task.rank and task.alpha:
        text += f"; expert of rank {task.shown_rank}, α {task.alpha:g}"
    return text + "."


def _provenance(sources: Sources) -> list[tuple[str, str]]:
    manifest = sources.manifest
    facts = [
        ("Bundle", f"sha256 {sources.bundle.sha256}"),
        ("Recipe", f"{manifest.name}, sha256 {manifest.recipe_sha256}"),
        ("Preprocessing", f"sha256 {manifest.preprocess_sha256}"),
        ("Decomposed", manifest.created),
    ]
    if sources.teacher:
        facts.append(("Foundation model", f"sha256 {sources.teacher.sha256}"))
    if sources.profile:
        facts.append(("Measured", sources.profile.created))
        facts.append(("Single calls", f"sha256 {sources.profile.calls_sha256}"))
    versions = ", ".join(f"{name} {v}" for name, v in sorted(manifest.versions.items()))
    return [*facts, ("Decomposed with", versions)]

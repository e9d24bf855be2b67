"""What the report says, before it is HTML or Markdown: both show this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from lorkd_deploy.profiling.compare import RunChanges
from lorkd_deploy.reporting.facts import cautions
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.plots.tradeoff import MEASURES, tradeoffs
from lorkd_deploy.reporting.sections import first_screen, method
from lorkd_deploy.reporting.sections.chapter import Chapter, chapter
from lorkd_deploy.reporting.sections.commands import commands
from lorkd_deploy.reporting.sections.glossary import glossary
from lorkd_deploy.reporting.sections.sheet import Sheet, sheets
from lorkd_deploy.reporting.table import Table
from lorkd_deploy.reporting.tables import accuracy, latency, mlperf
from lorkd_deploy.reporting.tables.changes import changes
from lorkd_deploy.reporting.tables.engines import engines
from lorkd_deploy.reporting.tables.layers import layers
from lorkd_deploy.reporting.tables.memory import all_departments
from lorkd_deploy.reporting.tables.parity import parity
from lorkd_deploy.reporting.tables.predictive import Worth, predictive, worth
from lorkd_deploy.reporting.tables.sensitivity import sensitivity
from lorkd_deploy.reporting.tables.verdicts import verdicts
from lorkd_deploy.reporting.words import NO_DEVICE

TRADEOFFS = (
    "Each dotted line is one task, from the foundation model (open diamond) to the department's "
    "expert (filled). Bars are 95 % intervals. Point at a mark for its figures."
)
DEPARTMENTS = (
    "Everything that was measured of each department's engines, with the foundation model on the "
    f"same machine beside them. {latency.INTRO} {accuracy.INTRO}"
)
NO_IMAGES = (
    "Test images may be patients', so none is on this page: `lorkd report --images` embeds a few "
    "of each task, with both models' answers, where the data is at hand."
)
PARITY = (
    "Before anything was exported, the unfused torch model's answers to the same inputs were "
    "written down. Each engine has to give them again: for generated inputs, which any machine can "
    "rebuild, and for test images where they are at hand."
)


@dataclass(frozen=True)
class Page:
    """The report's content, in the order in which it is read."""

    name: str
    dateline: str
    title: str
    lead: str
    verdicts: Table
    about: str
    worth: tuple[Worth, ...]
    predictive: Table | None
    no_device: tuple[str, str]
    warnings: tuple[str, ...]
    tradeoff_intro: str
    measures: dict[str, str]
    tradeoffs: tuple[Figure, ...]
    departments_intro: str
    departments: tuple[Chapter, ...]
    sheets: tuple[Sheet, ...]
    engines: tuple[Table, ...]
    parity_intro: str
    parity: Table
    protocol: tuple[str, ...]
    glossary: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table that can be downloaded, those of the plots too, in the page's order."""
        own = (self.verdicts, *([self.predictive] if self.predictive else []))
        chapters = [table for d in self.departments for table in d.all_tables]
        plots = [figure.data for figure in self.figures]
        return (*own, *chapters, *plots, *self.engines, self.parity)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every plot, in the page's order."""
        return (*self.tradeoffs, *(f for d in self.departments for f in (*d.latency, *d.curves)))


def page(sources: Sources, *, images: bool = False, changed: RunChanges | None = None) -> Page:
    """What one run's report says; `images` embeds a few test images per task, `changed` is what
    changed since another run."""
    plots = tuple(tradeoffs(sources))
    shown = {measure for figure in plots for measure in figure.drawings}
    first, findings = verdicts(sources), worth(sources)
    of_engines = (
        engines(sources),
        layers(sources),
        sensitivity(sources),
        changes(changed) if changed else None,
        all_departments(sources),
    )
    return Page(
        name=sources.manifest.name,
        dateline=first_screen.dateline(sources),
        title=first_screen.title(sources),
        lead=first_screen.lead(sources),
        verdicts=first,
        about=first_screen.decomposed(sources),
        worth=findings,
        predictive=predictive(findings),
        no_device=NO_DEVICE,
        warnings=(*cautions.warnings(sources), *mlperf.warnings(sources)),
        tradeoff_intro=TRADEOFFS,
        measures={key: text for key, text in MEASURES.items() if key in shown},
        tradeoffs=plots,
        departments_intro=DEPARTMENTS if images else f"{DEPARTMENTS} {NO_IMAGES}",
        departments=tuple(
            chapter(sources, name, f"department-{number}", images=images)
            for number, name in enumerate(sources.manifest.departments, 1)
        ),
        sheets=sheets(sources, first, findings),
        engines=tuple(table for table in of_engines if table),
        parity_intro=PARITY,
        parity=parity(sources).without_gaps(),
        protocol=(*method.protocol(sources.profile), *mlperf.protocol(sources)),
        glossary=glossary(sources),
        environment=tuple(method.environment(sources)),
        commands=commands(sources),
        provenance=tuple(_provenance(sources)),
    )


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

"""How right the engines' answers are: accuracy and AUC on each task's test split."""

from __future__ import annotations

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.profiling.figures import ACCURACY, AUC
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.reporting.cells import FOUNDATION, column, figure_cell, label, number
from lorkd_deploy.reporting.facts.sources import Sources, by_model
from lorkd_deploy.reporting.table import Cell, Column, Table

INTRO = (
    "Accuracy is that of every test image through the engine, with its 95 % bootstrap interval; "
    "beside it stands the same split through the unfused torch model, before any export."
)
_COLUMNS = (
    Column("task", "Task", numeric=False),
    Column("model", "Model", numeric=False),
    Column("test_images", "Test images"),
    column(ACCURACY),
    column(AUC),
    Column("majority", "Majority class", hint="accuracy of always giving the commonest class"),
    Column("accuracy_before_export", "Accuracy before export", hint="the unfused torch model"),
    Column("auc_before_export", "AUC before export", hint="the unfused torch model"),
)


def accuracy(sources: Sources, department: str) -> Table:
    """Accuracy and AUC per task: through the engines, and of the torch models before export."""
    rows: list[tuple[Cell, ...]] = []
    for task in sources.tasks(department):
        models = by_model(sources.pairs_of(task))
        for name, engines in zip(("teacher", "expert"), models, strict=True):
            rows += [_row(task, name, engine) for engine in engines] or [_row(task, name, None)]
    return Table("accuracy", "Accuracy on the test split", "", _COLUMNS, tuple(rows))


def _row(task: TaskEntry, model: str, engine: EngineProfile | None) -> tuple[Cell, ...]:
    score = engine.score(task.name) if engine else None
    before = task.metrics.get(model, {})
    return (
        label(task.name),
        label(
            FOUNDATION if model == "teacher" else "Expert",
            note=f"{engine.target} {engine.precision}" if engine else "",
        ),
        number(score.images if score else None),
        *(figure_cell(figure, figure.of(score)) for figure in (ACCURACY, AUC)),
        figure_cell(ACCURACY, score.majority if score else None),
        *(figure_cell(figure, before.get(figure.key)) for figure in (ACCURACY, AUC)),
    )

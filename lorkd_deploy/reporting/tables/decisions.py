"""Tables beside plain accuracy: decisions at a threshold, calibration, and the expert's answers
against the foundation model's, image by image."""

from __future__ import annotations

from lorkd_deploy.profiling.figures import ACCURACY, AUC, OF_ANSWERS
from lorkd_deploy.profiling.profile import Difference, EngineProfile, Score
from lorkd_deploy.reporting.cells import (
    EXPERT,
    FOUNDATION,
    column,
    difference_cell,
    figure_cell,
    label,
    number,
    significant,
)
from lorkd_deploy.reporting.facts.sources import Pair, Sources
from lorkd_deploy.reporting.table import Cell, Column, Table, Tone

# Accuracy and AUC have a table of their own; a difference in points is none of AUC.
OF_DECISIONS = tuple(figure for figure in OF_ANSWERS if figure not in (ACCURACY, AUC))
CHANGES = tuple(figure for figure in OF_ANSWERS if figure is not AUC)
DECISIONS = (
    "Sensitivity and specificity are those at the threshold; of more than two classes or findings "
    "each is one against the rest, and the mean is shown. The expected calibration error is the "
    "distance between how sure an answer is and how often it is right, in 15 bins."
)
AGAINST = (
    "Expert minus foundation model on the same test images, in points; the 95 % interval is in "
    "small print. Gained and lost are images that only one of the two answers correctly; McNemar's "
    "exact test says how often chance alone splits them so unevenly."
)


def decisions(sources: Sources, department: str) -> Table | None:
    """Balanced accuracy, sensitivity, specificity and calibration; None where none was measured."""
    columns = (
        Column("task", "Task", numeric=False),
        Column("model", "Model", numeric=False),
        Column("threshold", "Threshold"),
        *map(column, OF_DECISIONS),
    )
    rows = []
    for pair in sources.pairs(department):
        for model, engine in ((FOUNDATION, pair.teacher), (EXPERT, pair.expert)):
            score = pair.score(engine)
            if engine and score and score.threshold_from:
                rows.append(_row(pair, model, engine, score))
    unique = tuple(dict.fromkeys(rows))  # several engines of a task may share one teacher
    if not unique:
        return None
    return Table(
        "decisions", "Decisions and calibration", _caption(sources, department), columns, unique
    )


def _caption(sources: Sources, department: str) -> str:
    scores = [pair.score(pair.expert) for pair in sources.pairs(department)]
    given = any(score and score.threshold_from == "recipe" for score in scores)
    how = (
        "Thresholds are the recipe's."
        if given
        else "Thresholds were chosen on the validation images, each engine's own (Youden)."
    )
    return f"{how} {DECISIONS}"


def _row(pair: Pair, model: str, engine: EngineProfile, score: Score) -> tuple[Cell, ...]:
    return (
        label(pair.task.name),
        label(model, note=f"{engine.target} {engine.precision}"),
        _thresholds(score.thresholds),
        *(figure_cell(figure, figure.of(score)) for figure in OF_DECISIONS),
    )


def _thresholds(values: tuple[float, ...]) -> Cell:
    if len(set(values)) == 1:
        return number(values[0])
    text = f"{significant(min(values), 2)} to {significant(max(values), 2)}"
    return Cell(text, None, f"one for each of {len(values)}")


def against(sources: Sources, department: str) -> Table | None:
    """Each expert's answers beside the teacher's; None where they were not compared."""
    columns = (
        Column("task", "Task", numeric=False),
        Column("engine", "Engine", numeric=False),
        *(
            Column(f.key, f.title, hint="" if f.more_is_better else "less is better")
            for f in CHANGES
        ),
        Column("gained", "Gained", hint="wrong by the foundation model, right by the expert"),
        Column("lost", "Lost", hint="right by the foundation model, wrong by the expert"),
        Column("moved", "Both wrong", hint="wrong by both, and not the same answer"),
        Column("mcnemar_p", "McNemar p"),
    )
    rows = []
    for pair in sources.pairs(department):
        found = pair.difference
        if found and found.flips:
            rows.append(
                (
                    label(pair.task.name),
                    label(pair.target),
                    *_differences(found, weak=pair.weak_teacher),
                )
            )
    if not rows:
        return None
    return Table("against", "Against the foundation model", AGAINST, columns, tuple(rows))


def _differences(found: Difference, *, weak: bool) -> tuple[Cell, ...]:
    """`weak`: the teacher isn't above the majority class, so no gain over it is coloured."""
    assert found.flips
    flips = found.flips
    gain: Tone = "" if weak else "good"
    return (
        *(difference_cell(figure, figure.of(found), gain=gain) for figure in CHANGES),
        number(flips.gained, note=f"of {flips.answers:,}"),
        number(flips.lost, note=f"of {flips.answers:,}"),
        number(flips.moved),
        number(flips.p, 2) if flips.p is not None else Cell("–", None, "findings of one image"),
    )

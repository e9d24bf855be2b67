"""What a department's engines are for, and what their figures don't say: cards and ML-BOM alike."""

from __future__ import annotations

from collections.abc import Sequence

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.reporting.cells import UNMEASURED
from lorkd_deploy.reporting.facts import cautions
from lorkd_deploy.reporting.facts.sources import Pair, Sources


def intended_use(tasks: list[TaskEntry]) -> str:
    """What the engines of some tasks are for, in a sentence."""
    names = ", ".join(task.name for task in tasks)
    return (
        f"Research and engineering: classifying images like those of the data below ({names}), on "
        "hardware of your own, to study how a decomposed model behaves."
    )


def limits(sources: Sources, tasks: list[TaskEntry]) -> list[str]:
    """What the figures of a department's tasks don't say, a sentence each."""
    own = sources.pairs(tasks[0].department)
    lines = [
        "The figures hold for the test split named above and for nothing else; how the engine does "
        "on another hospital's images, devices or patients was not measured.",
        f"{_unmeasured(own)} behaviour on images of another kind: {UNMEASURED}.",
        *cautions.leaks(sources.check, [task.name for task in tasks]),
        *cautions.uncompared(sources.check, [task.name for task in tasks]),
        "The probabilities are not calibrated risks; a threshold holds for images like those of "
        "the validation split.",
    ]
    if unskilled := cautions.no_better(own):
        lines.append(
            "No more accurate than always giving the commonest class of the test images: "
            f"{'; '.join(unskilled)}."
        )
    if below := cautions.below(own):
        lines.append(
            f"Below the foundation model by more than chance explains: {', '.join(below)}."
        )
    return lines


def _unmeasured(pairs: Sequence[Pair]) -> str:
    scores = [pair.score(pair.expert) for pair in pairs]
    known = all(score and score.subgroups for score in scores)
    fairness = [] if known else ["fairness across groups of patients and"]
    if all(score and score.threshold_from for score in scores):
        text = " ".join(fairness)
    else:
        text = ", ".join(["calibration", "sensitivity at a threshold", *fairness])
        text += " and" if known else ""
    return text[:1].upper() + text[1:]

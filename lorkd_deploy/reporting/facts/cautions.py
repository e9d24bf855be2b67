"""What a reader has to know before believing the figures: the report's warnings."""

from __future__ import annotations

from collections.abc import Sequence

from lorkd_deploy.datacheck.result import DataCheck
from lorkd_deploy.reporting.facts.sources import Pair, Sources

_MEASURE = "Run `lorkd benchmark`, then `lorkd report` again."


def warnings(sources: Sources) -> list[str]:
    """What a reader has to know: gaps, disturbances, experts that are below the teacher, and models
    that are no better than one that knows nothing."""
    found: list[str] = []
    pairs = sources.pairs()
    if not sources.profile:
        found.append(
            f"Latency, memory and accuracy through the engines were not measured here. {_MEASURE}"
        )
    elif not sources.teachers():
        found.append(
            "The foundation model was not measured beside the experts, so nothing here says how "
            "they compare: run `lorkd export --teacher`, then `lorkd benchmark`."
        )
    if sources.profile and (absent := [p for p in pairs if p.expert is None]):
        names = ", ".join(f"{pair.task.name} {pair.target}".rstrip() for pair in absent)
        found.append(f"Not measured here: {names}. {_MEASURE}")
    if unskilled := no_better(pairs):
        found.append(
            "No more accurate than always giving the commonest class of the test images: "
            f"{'; '.join(unskilled)}. A gain over such a model says little, and is not coloured."
        )
    if worse := below(pairs):
        found.append(
            "Below the foundation model in accuracy or AUC by more than chance explains (the 95 % "
            f"interval is below zero): {', '.join(worse)}."
        )
    found += leaks(sources.check)
    found += uncompared(sources.check)
    found += map(sentence, sources.profile.notes if sources.profile else ())
    if {task.data.get("source") for task in sources.manifest.tasks} & {"phantom"}:
        found.append(
            "Some images are drawn by a program (phantom), not taken from patients: their figures "
            "show that the tool works and say nothing about medicine."
        )
    return found


def sentence(note: str) -> str:
    """A note of a profile or comparison, which has neither a capital nor a full stop, as text."""
    return f"{note[:1].upper()}{note[1:].removesuffix('.')}."


def leaks(check: DataCheck | None, tasks: Sequence[str] | None = None) -> list[str]:
    """For each task, or each of `tasks`, that images or patients lie in two splits."""
    found = []
    for task in check.tasks if check else ():
        says = [finding.says for finding in task.findings if finding.level == "leakage"]
        if says and (tasks is None or task.task in tasks):
            found.append(
                f"Leakage in the data of {task.task}: {'; '.join(says)}. Its figures are too good."
            )
    return found


def uncompared(
    check: DataCheck | None, tasks: Sequence[str] | None = None, *, folder: str = "RUN"
) -> list[str]:
    """For each task, or each of `tasks`, that nobody has looked for images in two splits; `folder`
    is what the check is kept in."""
    return [
        f"Whether images of {task.task} lie in two splits was not looked for, since they are many: "
        f"`lorkd data check RECIPE --run {folder}` does it."
        for task in (check.tasks if check else ())
        if not task.compared and (tasks is None or task.task in tasks)
    ]


def below(pairs: Sequence[Pair]) -> list[str]:
    """Tasks whose expert is below the teacher in accuracy or AUC, the whole interval below zero;
    where only some of a task's engines are, with those in brackets."""
    engines: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.difference:
            engines.setdefault(pair.task.name, []).append(pair)
    found = []
    for task, own in sorted(engines.items()):
        worse = [pair.target for pair in own if _is_below(pair)]
        if worse:
            found.append(task if len(worse) == len(own) else f"{task} ({', '.join(worse)})")
    return found


def _is_below(pair: Pair) -> bool:
    found = pair.difference
    return found is not None and (
        found.accuracy.high < 0 or (found.auc is not None and found.auc.high < 0)
    )


def no_better(pairs: Sequence[Pair]) -> list[str]:
    """Models whose accuracy isn't above the majority class of a task's test split, each named once
    with its lowest accuracy of all engines."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for pair in pairs:
        for model, engine in (("the foundation model", pair.teacher), ("the expert", pair.expert)):
            score = pair.score(engine)
            if score and not score.skilled:
                key = (model, pair.task.name)
                found[key] = min(found.get(key, (1, 1)), (score.accuracy.value, score.majority))
    return [
        f"{model} on {task} ({100 * right:.1f} %, always the commonest: {100 * most:.1f} %)"
        for (model, task), (right, most) in found.items()
    ]

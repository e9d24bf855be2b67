"""Which of a task's engines the first screen shows: the one that a department would deploy."""

from __future__ import annotations

from collections.abc import Sequence

from lorkd_deploy.deploy.candidates import BASELINE, MAX_DROP
from lorkd_deploy.reporting.sources import Pair, Sources

RULE = (
    "Each row is the task's fastest engine whose parity passed and which loses at most "
    f"{MAX_DROP:g} points of test accuracy against {BASELINE} (`--precision auto` goes by "
    "validation accuracy); the others are in the chapters."
)


def chosen(sources: Sources) -> list[Pair]:
    """One engine a task, in the recipe's order; a task without an engine is a pair without one.

    The rule is that of `lorkd export --precision auto`, but on the test images, which are what a
    profile scores; auto never sees them. Where no engine of a task is accepted, the fastest of all
    is shown, with what `fault` says of it.
    """
    found = []
    for task in sources.manifest.tasks:
        own = [pair for pair in sources.pairs(task.department) if pair.task.name == task.name]
        allowed = [pair for pair in own if not fault(pair, own)]
        found.append(min(allowed or own, key=_milliseconds))
    return found


def fault(pair: Pair, own: Sequence[Pair]) -> str:
    """Why the engine isn't accepted, in a few words; nothing where it is.

    It has to be proven to be its model, and about as accurate as the best fp32 engine of `own`, its
    task's (the best of all where none is fp32). Without a test split parity alone decides.
    """
    if pair.artifact is None or pair.artifact.parity.status != "passed":
        return "parity not proven"
    scored = [p for p in own if p.score(p.expert)]
    exact = [p for p in scored if p.expert and p.expert.precision == BASELINE] or scored
    if not exact:
        return ""
    drop = 100 * (max(map(_accuracy, exact)) - _accuracy(pair))
    # A drop is a difference of fractions: 0.5 points may come out as 0.50000000000001.
    return f"loses {drop:.1f} points" if drop > MAX_DROP + 1e-9 else ""


def _accuracy(pair: Pair) -> float:
    score = pair.score(pair.expert)
    return score.accuracy.value if score else 0.0


def _milliseconds(pair: Pair) -> float:
    return pair.expert.latency.p50.value if pair.expert else float("inf")

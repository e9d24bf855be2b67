"""Which of a task's engines the first screen shows: the one that a department would deploy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lorkd_deploy.deploy.candidates import MAX_DROP, fastest, too_much
from lorkd_deploy.precisions.table import BASELINE
from lorkd_deploy.reporting.facts.sources import Pair, Sources

RULE = (
    "Each row is the task's fastest engine whose parity passed and which loses at most "
    f"{MAX_DROP:g} points of test accuracy against {BASELINE}: picked for being fast, so its "
    "speed-up is on the high side; all engines are in a table further down."
)


def chosen(sources: Sources) -> list[Pair]:
    """One engine per task, in the recipe's order; a task without an engine is a pair without one.

    The rule is that of `lorkd export --precision auto`, but on the test images, which are what a
    profile scores; auto never sees them. Where no engine of a task is accepted, the fastest of all
    is shown, with what `fault` says of it.
    """
    shown = []
    for task in sources.manifest.tasks:
        own = sources.pairs_of(task)
        accepted = [pair for pair in own if proven(pair)]
        taken = fastest(accepted, partial(_lost, own=own), _milliseconds)
        shown.append(taken or min(own, key=_milliseconds))
    return shown


def fault(pair: Pair, own: Sequence[Pair]) -> str:
    """Why the engine isn't accepted, in a few words; nothing where it is.

    It has to be proven to be its model, and about as accurate as the best fp32 engine of `own`, its
    task's (the best of all where none is fp32). Without a test split parity alone decides.
    """
    if not proven(pair):
        return "parity not proven"
    lost = _lost(pair, own)
    return f"loses {lost:.1f} points" if too_much(lost) else ""


def proven(pair: Pair) -> bool:
    """Whether the engine is proven to be its model."""
    return pair.artifact is not None and pair.artifact.parity.status == "passed"


def _lost(pair: Pair, own: Sequence[Pair]) -> float:
    """Points of accuracy that the engine loses against the best fp32 engine of `own`."""
    scored = [p for p in own if p.score(p.expert)]
    exact = [p for p in scored if p.expert and p.expert.precision == BASELINE] or scored
    return 100 * (max(map(_accuracy, exact)) - _accuracy(pair)) if exact else 0.0


def _accuracy(pair: Pair) -> float:
    score = pair.score(pair.expert)
    return score.accuracy.value if score else 0.0


def _milliseconds(pair: Pair) -> float:
    return pair.expert.latency.p50.value if pair.expert else float("inf")

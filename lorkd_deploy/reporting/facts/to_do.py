"""What is still to do before a department may rely on an engine's figures."""

from __future__ import annotations

from collections.abc import Iterator

from lorkd_deploy.reporting.facts import cautions
from lorkd_deploy.reporting.facts.shown_engine import fault, proven
from lorkd_deploy.reporting.facts.sources import Pair, Sources
from lorkd_deploy.reporting.facts.verdicts import NOT_SHOWN, WORSE, Verdict, images_needed, margin


def to_do(sources: Sources, pair: Pair, verdict: Verdict) -> list[str]:
    """For one task and the engine that the first screen shows; empty where nothing is known."""
    return [*_measure(sources, pair), *_doubts(sources, pair), *_images(sources, pair, verdict)]


def _measure(sources: Sources, pair: Pair) -> Iterator[str]:
    if pair.expert is None:
        yield "measuring: `lorkd benchmark`" if pair.artifact else "an engine: `lorkd export`"
    elif pair.teacher is None:
        yield "the foundation model beside it: `lorkd export --teacher`"
    elif pair.score(pair.expert) is None:
        yield "answers to the test images, which aren't on this machine"
    if pair.expert and (why := fault(pair, sources.pairs_of(pair.task))):
        yield (
            f"an engine: this one {why}"
            if proven(pair)
            else f"an engine: this one's {why} (`lorkd verify`)"
        )
    if pair.ratio and pair.ratio.verdict == "too few rounds":
        yield "speed in five rounds"


def _doubts(sources: Sources, pair: Pair) -> Iterator[str]:
    if cautions.leaks(sources.check, (pair.task.name,)):
        yield "splits that don't overlap"
    if pair.task.data.get("source") == "phantom":
        yield "patients' images: these are drawn"
    if pair.weak_teacher:
        yield "a foundation model that beats always giving the commonest class"
    found = pair.difference
    if found and found.auc and found.auc.high < 0:
        yield f"a look at the ROC curve: AUC is {-found.auc.value:.3f} lower"


def _images(sources: Sources, pair: Pair, verdict: Verdict) -> Iterator[str]:
    score = pair.score(pair.expert)
    if score is None or verdict.difference is None or verdict.word not in (NOT_SHOWN, WORSE):
        return
    needed = images_needed(pair, verdict.difference, margin(sources))
    if verdict.word == NOT_SHOWN and needed:
        yield f"about {needed:,} test images: {score.images:,} can't tell"
    else:
        yield "a better expert: longer training or a higher rank"

"""Are the answers still those of the images that the model was made for?

What an audit log holds is compared with what the held-out validation images gave: the guard's
scores, and each class's probability. Two measures: the population stability index over the tenths
of the validation images (PSI, Siddiqi 2006), and the largest distance of the two distribution
functions (Kolmogorov-Smirnov), with its asymptotic p value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lorkd_deploy.bundle.manifest import GUARD, PROBABILITIES
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.clinic.audit import Entry, entries
from lorkd_deploy.errors import UsageError, unknown_name
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import Part

LIMIT = 0.25  # of the PSI: "a major shift" in its usual reading
FEWEST = 30  # answers below which nothing is said: a PSI of so few is large by chance
_BINS = 10
_LEAST = 1e-4  # of a share, so that an empty bin doesn't make the index infinite


class Drifted(Part):
    """One measure of one task: the answers' distribution beside the held-out images'.

    `what` is `guard`, or the probability `p(CLASS)`. `quantiles` are the 5th, 25th, 50th, 75th and
    95th percentile, of the held-out images and then of the answers.
    """

    task: str
    what: str
    held_out: int
    answers: int
    psi: float
    ks: float
    p: float
    quantiles: tuple[tuple[float, ...], tuple[float, ...]]
    over: bool


class Drift(Part):
    """What `drift` found: `over` where any measure is above `limit`. `outside` is the share of
    answers that the guard called outside, by task; `too_few` the tasks with fewer answers than can
    be compared, and how many they have.
    """

    limit: float
    over: bool
    measures: tuple[Drifted, ...]
    outside: dict[str, float]
    too_few: dict[str, int]


def drift(log: str | Path, run: str | Path, *, limit: float = LIMIT) -> Drift:
    """Compare the answers in an audit log with the held-out validation images of `run`'s bundle.

    A measure is over where its PSI is above `limit`, and its KS p value below 0.01: few answers
    have a large PSI by chance. Raises `GateError` for a log whose chain is broken, `UsageError` for
    one of another run or a bundle that holds nothing to compare with.
    """
    bundle = load_bundle(open_run(run).bundle)
    by_task: dict[str, list[Entry]] = {}
    for entry in entries(log):
        by_task.setdefault(entry.task, []).append(entry)
    known = [task.name for task in bundle.manifest.tasks]
    for task in by_task:
        if task not in known:
            raise unknown_name("task of this run", task, known, where=log)
    if not by_task:
        raise UsageError("the log has no answers yet", where=log)
    measures: list[Drifted] = []
    few = {task: len(found) for task, found in by_task.items() if len(found) < FEWEST}
    for task, found in by_task.items():
        if task not in few:
            measures += _of_task(bundle, task, found, limit)
    return Drift(
        limit=limit,
        over=any(measure.over for measure in measures),
        measures=tuple(measures),
        outside={
            task: sum(entry.outcome == "outside" for entry in found) / len(found)
            for task, found in by_task.items()
        },
        too_few=few,
    )


def _of_task(bundle: Bundle, task: str, found: list[Entry], limit: float) -> Iterator[Drifted]:
    held_out = bundle.safety(task)
    if PROBABILITIES not in held_out:
        raise UsageError(
            f"the bundle holds nothing of {task} to compare answers with",
            where=bundle.path,
            fix="train with `--set safety.guard=true` or `--set safety.coverage=true`",
        )
    scores = [entry.guard for entry in found if entry.guard is not None]
    if GUARD in held_out and len(scores) >= FEWEST:
        yield _measure(task, "guard", held_out[GUARD], np.array(scores), limit)
    answered = [entry.probabilities for entry in found if entry.probabilities]
    if len(answered) >= FEWEST:
        for place, name in enumerate(bundle.task(task).classes):
            values = np.array([probabilities[name] for probabilities in answered])
            reference = held_out[PROBABILITIES][:, place]
            yield _measure(task, f"p({name})", reference, values, limit)


def _measure(
    task: str,
    what: str,
    reference: npt.NDArray[np.floating],
    values: npt.NDArray[np.floating],
    limit: float,
) -> Drifted:
    index, (distance, p) = psi(reference, values), ks(reference, values)
    shares = [5, 25, 50, 75, 95]
    return Drifted(
        task=task,
        what=what,
        held_out=len(reference),
        answers=len(values),
        psi=index,
        ks=distance,
        p=p,
        quantiles=(
            tuple(np.percentile(reference, shares).tolist()),
            tuple(np.percentile(values, shares).tolist()),
        ),
        over=index > limit and p < 0.01,
    )


def psi(reference: npt.NDArray[np.floating], values: npt.NDArray[np.floating]) -> float:
    """Σ (q − p) · ln(q / p) over the tenths of `reference`: p its shares, q those of `values`."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1]))
    p, q = (
        np.maximum(
            np.bincount(np.searchsorted(edges, given, side="right"), minlength=len(edges) + 1)
            / len(given),
            _LEAST,
        )
        for given in (reference, values)
    )
    return float(((q - p) * np.log(q / p)).sum())


def ks(
    reference: npt.NDArray[np.floating], values: npt.NDArray[np.floating]
) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov distance and its asymptotic p value (Kolmogorov 1933)."""
    both = np.sort(np.concatenate([reference, values]))
    below = [np.searchsorted(np.sort(g), both, side="right") / len(g) for g in (reference, values)]
    distance = float(np.abs(below[0] - below[1]).max())
    n = len(reference) * len(values) / (len(reference) + len(values))
    root = math.sqrt(n) * distance
    if root < 0.2:  # the series below needs very many terms, and p is 1
        return distance, 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * root) ** 2) for k in range(1, 101))
    return distance, min(1.0, max(0.0, sum(terms)))

"""The proof that an engine equals the model it came from: its logits beside reference logits.

The reference was written from the unfused torch model before any export and lies in the bundle,
under its hash (`bundle/reference.py`). `reference.py` runs the engine on the same images.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from lorkd_deploy.arrays import F32, F64, I64
from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.errors import GateError, with_fix
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.metrics.interval import bootstrap
from lorkd_deploy.precisions.table import Tolerance
from lorkd_deploy.runtime import Probe
from lorkd_deploy.schema import Part


class Change(Part):
    """A measure (0 … 1) of the same images' labels through both sides, and the second minus the
    first with its 95 % bootstrap interval, paired by image."""

    before: float
    after: float
    difference: float
    low: float
    high: float


class Compared(Part):
    """One task's logits from the engine beside the reference, over `rows` images; `of` says where
    they are probabilities.

    `max_abs`, `mean_abs` and `cosine` (the worst row's) leave out rows that are not finite, of
    which there are `non_finite`; they are None where no row is left. `flips` counts rows with
    another label (multi-label: labels with another sign), `certain_flips` those among them whose
    reference margin exceeds twice the tolerance, so that rounding can't excuse them;
    `flips_allowed` is None where flips near a tie aren't limited. `accuracy` and `auc` are there
    where the images' labels are.
    """

    task: str
    on: Literal["inputs", "images"]
    of: Literal["logits", "probabilities"] = "logits"
    rows: int
    tolerance: float
    max_abs: float | None
    mean_abs: float | None
    cosine: float | None
    flips: int
    certain_flips: int
    non_finite: int
    flips_allowed: int | None = None
    accuracy: Change | None = None
    auc: Change | None = None

    @property
    def excess(self) -> float:
        """The largest difference over its tolerance: above 1 it fails."""
        return float("inf") if self.max_abs is None else self.max_abs / self.tolerance

    @property
    def passed(self) -> bool:
        """Whether every row is finite and within the tolerance, and few enough labels flipped."""
        close = self.max_abs is not None and self.max_abs <= self.tolerance
        few = self.flips_allowed is None or self.flips <= self.flips_allowed
        return close and few and not self.certain_flips and not self.non_finite

    def __str__(self) -> str:
        what = "generated inputs" if self.on == "inputs" else "test images"
        if self.non_finite:
            figures = f"{self.non_finite} rows are not finite"
        else:
            of = "" if self.of == "logits" else f" of {self.of}"
            figures = f"max |difference|{of} {self.max_abs:.3g} (tolerance {self.tolerance:.3g})"
        allowed = "" if self.flips_allowed is None else f" ({self.flips_allowed} allowed)"
        return (
            f"{self.task}, {self.rows} {what}: {figures}, "
            f"{self.flips} labels flipped{allowed}, {self.certain_flips} of them beyond doubt"
        )


class GuardCompared(Part):
    """A guard's scores (above 1: outside) from the engine beside the reference, over `rows` images.

    `largest` is the largest difference as a fraction of max(1, score); `flips` counts images that
    one of them calls outside and the other doesn't, of which `flips_allowed` may be; None where
    they aren't judged: generated inputs are pictures of nothing.
    """

    on: Literal["inputs", "images"]
    rows: int
    largest: float
    flips: int
    flips_allowed: int | None

    @property
    def passed(self) -> bool:
        """Whether few enough pictures are judged otherwise."""
        few = self.flips_allowed is None or self.flips <= self.flips_allowed
        return few and math.isfinite(self.largest)

    def __str__(self) -> str:
        return (
            f"the guard, {self.rows} test images: {self.flips} judged otherwise "
            f"({self.flips_allowed} allowed), scores differ by {self.largest:.3g} at most"
        )


class MapsCompared(Part):
    """Maps of where the network looks from the engine beside the reference, over `rows` images.

    `max_abs` is the largest difference at any place of any class's map, None where they have
    another shape or values that are not finite; `tolerance` is the precision's, as a fraction of
    the largest value of the reference.
    """

    on: Literal["inputs", "images"]
    rows: int
    tolerance: float
    max_abs: float | None

    @property
    def passed(self) -> bool:
        """Whether every place is within the tolerance."""
        return self.max_abs is not None and self.max_abs <= self.tolerance

    def __str__(self) -> str:
        what = "generated inputs" if self.on == "inputs" else "test images"
        found = "no map" if self.max_abs is None else f"max |difference| {self.max_abs:.3g}"
        return f"the maps, {self.rows} {what}: {found} (tolerance {self.tolerance:.3g})"


class Link(Part):
    """One step of the chain from the model that was trained to the engine: what stands before it,
    what after, and their logits beside each other, judged by the tolerance of what stands after."""

    before: str
    after: str
    compared: tuple[Compared, ...]


class Parity(Part):
    """The verdict on one engine and the figures behind it.

    `compared` is from end to end: the unfused torch model beside the engine. `links` are the steps
    between them, where there is one, `links_not_here` why they weren't run. `guard` is there where
    the bundle has one, `maps` where the engine gives them. `images_not_here` says
    for a task why its test images weren't used; `reasons` why the engine failed, or why it was not
    run.
    """

    status: Literal["passed", "failed", "not run here"]
    compared: tuple[Compared, ...] = ()
    guard: tuple[GuardCompared, ...] = ()
    maps: tuple[MapsCompared, ...] = ()
    links: tuple[Link, ...] = ()
    links_not_here: str | None = None
    images_not_here: dict[str, str] = Field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def max_abs(self) -> float | None:
        """The largest difference in all of `compared`; None where nothing was compared."""
        return max((c.max_abs for c in self.compared if c.max_abs is not None), default=None)

    @property
    def worst(self) -> Compared | None:
        """What is nearest to its tolerance, or furthest beyond; None where nothing was compared."""
        return max(self.compared, key=lambda part: part.excess, default=None)

    @property
    def flips(self) -> int:
        """Flipped labels in all of `compared`."""
        return sum(c.flips for c in self.compared)


def not_run_here(target: str, probe: Probe) -> Parity:
    """A proof that is left to the device: why, and what to do about it."""
    reason = probe.reason or f"{target} can't run on this machine"
    return Parity(status="not run here", reasons=(with_fix(reason, probe.fix),))


class ParityError(GateError):
    """An engine that is not the model it came from; `parity` has the figures."""

    def __init__(self, what: str, parity: Parity, *, where: object, fix: str) -> None:
        super().__init__(what, where=where, fix=fix)
        self.parity = parity


def compare(  # noqa: PLR0917
    task: TaskEntry,
    on: Literal["inputs", "images"],
    expected: F32,
    found: F32,
    allowed: Tolerance,
    labels: I64 | None = None,
    *,
    raw: bool = False,
) -> Compared:
    """Figures of `found` against `expected`, both `(n, K)` logits of one task, n ≥ 1.

    `labels` are the images', where they are known. With `raw`, `found` are probabilities, and held
    against those of `expected`: within half of what logits may differ by, since no softmax changes
    by more than that, nor any sigmoid.
    """
    share = allowed.logits if on == "images" else allowed.inputs
    tolerance = share * max(1.0, float(np.abs(expected).max()))
    finite = np.isfinite(found).all(axis=1)
    reference, engine = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    if raw:
        tolerance, reference = tolerance / 2, metrics.probabilities(reference, task.kind)
    difference = np.abs(reference - engine)
    flips, margins = _flips(reference, engine, task.kind, at=0.5 if raw else 0.0)
    some = len(reference) > 0
    changes = {}
    if labels is not None and finite.all():
        before, after = (
            (reference, engine)
            if raw
            else (metrics.probabilities(side, task.kind) for side in (reference, engine))
        )
        changes = _changes(labels, before, after)
    return Compared(
        task=task.name,
        on=on,
        of="probabilities" if raw else "logits",
        rows=len(expected),
        tolerance=tolerance,
        max_abs=float(difference.max()) if some else None,
        mean_abs=float(difference.mean()) if some else None,
        cosine=float(_cosine(reference, engine).min()) if some else None,
        flips=int(flips.sum()),
        certain_flips=int((flips & (margins > 2 * tolerance)).sum()),
        non_finite=int((~finite).sum()),
        flips_allowed=math.ceil(allowed.flips * flips.size) if on == "images" else None,
        **changes,
    )


def compare_guard(
    on: Literal["inputs", "images"], expected: F32, found: F64, allowed: Tolerance
) -> GuardCompared:
    """Figures of a guard's scores `found` against `expected`, both `(n,)`, n ≥ 1."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(found - expected) / np.maximum(1.0, expected)
    return GuardCompared(
        on=on,
        rows=len(expected),
        largest=float(difference.max()),
        flips=int(((found > 1) != (expected > 1)).sum()),
        flips_allowed=math.ceil(allowed.flips * len(expected)) if on == "images" else None,
    )


def _changes(labels: I64, before: F64, after: F64) -> dict[str, Change]:
    """Accuracy and AUC of both sides' probabilities and their difference; what is undefined is left
    out."""
    found = {}
    for metric in (metrics.accuracy, metrics.auc):
        values = [metric(labels, side) for side in (before, after)]
        span = bootstrap(metrics.minus(metric, metric), labels, np.hstack([after, before]))
        if not any(map(math.isnan, (*values, span.low))):
            found[metric.name] = Change(
                before=values[0],
                after=values[1],
                difference=span.value,
                low=min(span.low, span.value),
                high=max(span.high, span.value),
            )
    return found


def _flips(reference: Any, engine: Any, kind: str, *, at: float) -> tuple[Any, Any]:
    """Which labels differ, and how far the reference was from giving another one."""
    if kind == "multilabel":  # each decides for itself: a logit at 0, a probability at 0.5
        return (reference > at) != (engine > at), np.abs(reference - at)
    ordered = np.sort(reference, axis=1)
    return reference.argmax(axis=1) != engine.argmax(axis=1), ordered[:, -1] - ordered[:, -2]


def _cosine(reference: Any, engine: Any) -> Any:
    """Cosine of each pair of rows; two rows of zeros are equal."""
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(engine, axis=1)
    same = (reference == engine).all(axis=1)
    products = (reference * engine).sum(axis=1)
    return np.where(same, 1.0, products / np.where(lengths > 0, lengths, 1.0))

"""From what was seen to what is said: each kind of finding, its level and its sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lorkd_deploy.arrays import I64
from lorkd_deploy.data import SPLITS, Split, TaskData
from lorkd_deploy.datacheck.pictures import Pictures
from lorkd_deploy.datacheck.result import Finding
from lorkd_deploy.datacheck.shortcuts import shortcuts
from lorkd_deploy.datacheck.strangers import strangers
from lorkd_deploy.datacheck.twins import Pairs
from lorkd_deploy.errors import RuntimeUnavailableError
from lorkd_deploy.metrics.score import majority

ACROSS = (("val", "train"), ("test", "train"), ("test", "val"))
LEAKS = {"exact duplicates", "near duplicates", "repeated images", "patients in two splits",
         "labels that disagree"}  # the kinds that a training looks for  # fmt: skip
FEW = 10  # images of a class in a validation or test split
MAJORITY = 0.95
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Found:
    """A task's data, its pictures by split, and twins: the same pictures and nearly the same,
    across two splits and, by `(name, name)`, within one."""

    data: TaskData
    seen: dict[str, Pictures]
    twins: dict[tuple[str, str], tuple[Pairs, Pairs]]

    @property
    def across(self) -> dict[tuple[str, str], tuple[Pairs, Pairs]]:
        """The twins of two splits."""
        return {(one, other): both for (one, other), both in self.twins.items() if one != other}

    def split(self, name: str) -> Split:
        split: Split = getattr(self.data, name)
        return split


def findings(found: Found, *, leaks_only: bool = False) -> tuple[Finding, ...]:
    """Everything that is to be said of a task, leakage first."""
    every = [*_twins(found), *shared_groups(found.data), *_conflicts(found)]
    if not leaks_only:
        every += [*_counts(found), *_pictures(found), *_shortcuts(found)]
    order = {"leakage": 0, "caution": 1, "note": 2}
    return tuple(sorted(every, key=lambda finding: order[finding.level]))


def _twins(found: Found) -> Iterator[Finding]:
    for (one, other), (same, nearly) in found.across.items():
        total = len(found.split(one))
        images = set(same.first.tolist())
        if images:
            yield Finding(
                kind="exact duplicates",
                level="leakage",
                count=len(images),
                of=total,
                says=f"{len(images)} of {total} {one} images are in {other} too, the same pixels "
                "at the network's size",
            )
        others = set(nearly.first.tolist()) - images
        if others:
            yield Finding(
                kind="near duplicates",
                level="leakage",
                count=len(others),
                of=total,
                says=f"{len(others)} of {total} {one} images are nearly the same picture as one of "
                f"{other} ({len(nearly)} pairs)",
            )
    for name in SPLITS:
        same, nearly = found.twins[name, name]
        total = len(found.split(name))
        if len(same):
            yield Finding(
                kind="repeated images",
                level="note",
                count=len(same),
                of=total,
                says=f"{len(same)} of {total} {name} images repeat an earlier one of the split",
            )
        if len(nearly):
            count = len(np.union1d(nearly.first, nearly.second))
            yield Finding(
                kind="near duplicates within a split",
                level="note",
                count=count,
                of=total,
                says=f"{count} of {total} {name} images are nearly the same picture as another of "
                f"the split ({len(nearly)} pairs{_of_patients(found.split(name).groups, nearly)})",
            )


def _of_patients(groups: I64 | None, pairs: Pairs) -> str:
    if groups is None:
        return ""
    return f", {int((groups[pairs.first] != groups[pairs.second]).sum())} of two patients"


def shared_groups(data: TaskData) -> Iterator[Finding]:
    """Patients in two splits, where they are known; no image is read."""
    for one, other in ACROSS:
        splits: tuple[Split, Split] = (getattr(data, one), getattr(data, other))
        a, b = splits[0].groups, splits[1].groups
        if a is None or b is None:
            continue
        both = np.intersect1d(a, b)
        if len(both):
            count = int(np.isin(a, both).sum())
            yield Finding(
                kind="patients in two splits",
                level="leakage",
                count=len(both),
                of=len(np.unique(a)),
                says=f"{len(both)} patients, cases or other groups lie in {one} and in {other} "
                f"({count} of {len(a)} {one} images)",
            )


def _conflicts(found: Found) -> Iterator[Finding]:
    pairs = [(one, other, twins) for (one, other), both in found.twins.items() for twins in both]
    count, total = 0, 0
    for one, other, twins in pairs:
        differ = found.split(one).labels[twins.first] != found.split(other).labels[twins.second]
        count += int((differ if differ.ndim == 1 else differ.any(axis=1)).sum())
        total += len(twins)
    if count:
        yield Finding(
            kind="labels that disagree",
            level="caution",
            count=count,
            of=total,
            says=f"{count} of {total} pairs of twins have different labels",
        )


def _counts(found: Found) -> Iterator[Finding]:
    classes = found.data.classes
    for name in ("val", "test"):
        labels = found.split(name).labels
        counts = _shown(labels, len(classes))
        few = np.flatnonzero(counts < FEW)
        if len(few):
            named = ", ".join(f"{classes[k]} {counts[k]}" for k in few[:12])
            yield Finding(
                kind="few images",
                level="caution",
                count=len(few),
                of=len(classes),
                says=f"{name} has fewer than {FEW} images of {named}"
                + (" …" if len(few) > 12 else ""),
            )
    for name in SPLITS:
        labels = found.split(name).labels
        if (share := majority(labels)) > MAJORITY:
            yield Finding(
                kind="one answer for nearly all",
                level="caution",
                count=round(share * len(labels)),
                of=len(labels),
                says=f"always the commonest answer is right for {100 * share:.1f} % of {name}",
            )


def _shown(labels: I64, classes: int) -> I64:
    return labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)


def _pictures(found: Found) -> Iterator[Finding]:
    for name in SPLITS:
        flat = found.seen[name].flat
        if len(flat):
            yield Finding(
                kind="images of one value",
                level="caution",
                count=len(flat),
                of=len(found.split(name)),
                says=f"{len(flat)} {name} images have one value all over, the first at {flat[0]}",
            )
    train = found.split("train")
    strange = strangers(found.seen["train"], train.groups, found.seen["test"])
    if len(strange):
        total = len(found.split("test"))
        yield Finding(
            kind="unlike any training image",
            level="caution",
            count=len(strange),
            of=total,
            says=f"{len(strange)} of {total} test images resemble no training image, the first "
            f"at {', '.join(str(i) for i in strange[:5])}",
        )


def _shortcuts(found: Found) -> Iterator[Finding]:
    try:
        shown = shortcuts(found.data, found.seen)
    except RuntimeUnavailableError as exc:
        log.warning("%s", exc)
        return
    total = len(found.split("val")) + len(found.split("test"))
    for one in shown:
        yield Finding(
            kind=f"shortcut: {one.family}",
            level="caution",
            count=total,
            of=total,
            says=f"{one.family} alone tells the label: AUC {one.auc.value:.2f} "
            f"({one.auc.low:.2f} to {one.auc.high:.2f})",
        )

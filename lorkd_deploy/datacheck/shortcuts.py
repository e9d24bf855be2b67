"""Labels that can be told without looking: by size, format, brightness, border or site alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorkd_deploy.arrays import F32, F64, I64
from lorkd_deploy.data import TaskData
from lorkd_deploy.datacheck.pictures import TRAITS, Pictures
from lorkd_deploy.errors import RuntimeUnavailableError
from lorkd_deploy.metrics.interval import Interval, where_defined
from lorkd_deploy.metrics.score import auc

MOST = 10_000  # training images that the classifier learns from, and others that it answers for
TREES = 100
SUSPECT = 0.65  # AUC above which the whole interval has to lie


@dataclass(frozen=True)
class Shortcut:
    """How well `family` alone tells the labels: macro AUC on validation and test images."""

    family: str
    auc: Interval


def shortcuts(data: TaskData, seen: dict[str, Pictures]) -> list[Shortcut]:
    """Every family of traits, and every attribute, that alone tells the labels.

    A small forest learns from the training images' traits and answers for the others, of many
    `MOST`. Traits that are the same for all are left out. Raises `RuntimeUnavailableError` without
    scikit-learn.
    """
    train, others = _some(len(data.train)), _some(len(data.val) + len(data.test))
    given = {name: [seen[s].family(name) for s in ("train", "val", "test")] for name in TRAITS}
    for name in data.train.attributes:
        codes = [split.attributes[name].codes for split in (data.train, data.val, data.test)]
        given[name] = [one[:, None].astype(np.float32) for one in codes]
    labels = data.train.labels[train]
    asked = np.concatenate([data.val.labels, data.test.labels])[others]
    found = []
    for name, (known, *unknown) in given.items():
        if (known == known[0]).all():
            continue
        answers = _forest(known[train], labels, np.concatenate(unknown)[others])
        area = where_defined(auc, asked, answers)
        if area is not None and area.low > SUSPECT:
            found.append(Shortcut(name, area))
    return sorted(found, key=lambda one: -one.auc.value)


def _some(count: int) -> I64:
    chosen = np.arange(count)
    if count > MOST:
        chosen = np.sort(np.random.default_rng(0).permutation(count)[:MOST])
    return chosen


def _forest(known: F32, labels: I64, asked: F32) -> F64:
    """Probabilities `(N, K)` for the images `asked`, of classes or findings."""
    try:
        from sklearn.ensemble import (  # type: ignore[import-untyped,unused-ignore]
            RandomForestClassifier,
        )
    except ImportError as exc:
        raise RuntimeUnavailableError(
            "shortcuts are looked for by scikit-learn, which is not installed",
            fix="install lorkd-deploy[train]",
        ) from exc
    columns: Sequence[I64] = [labels] if labels.ndim == 1 else list(labels.T)
    count = int(labels.max()) + 1 if labels.ndim == 1 else 2
    answers = []
    for column in columns:
        forest = RandomForestClassifier(TREES, min_samples_leaf=5, random_state=0, n_jobs=1)
        forest.fit(known, column)
        each = np.zeros((len(asked), count))
        each[:, forest.classes_] = forest.predict_proba(asked)
        answers.append(each if labels.ndim == 1 else each[:, 1:])
    return np.concatenate(answers, axis=1)

"""What makes a task's answers safe to use, fitted to the network that is about to be bundled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lorkd_deploy.bundle.manifest import SafetyEntry
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.safety import coverage as conformal
from lorkd_deploy.safety.calibration import Temperature, fitted_temperature, sureness
from lorkd_deploy.safety.coverage import Coverage
from lorkd_deploy.storage import Tensors
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.networks.evaluate import task_logits


class Safe(NamedTuple):
    """A task's entry in the manifest, and the tensors of its file; none where it has no file."""

    entry: SafetyEntry
    tensors: Tensors


def make_safe(
    setup: Setup, model: ExpertClassifier, earlier: tuple[SafetyEntry, ...] = ()
) -> list[Safe]:
    """Fold each task's temperature into its head, in place, then fit the rest to what it gives.

    The temperature is fitted on the validation images that chose the network's state, the rest on
    those that are held out. `earlier` are the entries of heads that hold a temperature already.
    """
    return [
        _safe(setup, model, task, earlier[task] if earlier else SafetyEntry())
        for task in range(len(setup.names))
    ]


def safety_tensors(setup: Setup, safe: Sequence[Safe]) -> dict[str, Tensors]:
    """Task → the tensors of its file, for tasks that have one."""
    named = zip(setup.names, safe, strict=True)
    return {name: one.tensors for name, one in named if one.entry.file}


def _safe(setup: Setup, model: ExpertClassifier, task: int, earlier: SafetyEntry) -> Safe:
    wanted, kind, test = setup.recipe.safety, setup.kinds[task], setup.test[task]
    entry, tensors = SafetyEntry(), {}
    tested = task_logits(model, test, task, setup.preprocess).astype(np.float64)
    if wanted.temperature:
        val = setup.val[task]
        logits = task_logits(model, val, task, setup.preprocess)
        before_this = earlier.temperature.value if earlier.temperature else 1.0
        value = fitted_temperature(logits.astype(np.float64), val.labels, kind, before_this)
        head = model.heads.head(task)
        with torch.no_grad():
            for parameter in (head.weight, head.bias):
                parameter.div_(value)
        before = sureness(tested, test.labels, kind)
        tested = tested / value
        fitted = Temperature(
            value=value * before_this,
            images=len(val),
            before=before,
            after=sureness(tested, test.labels, kind),
        )
        entry = entry.model_copy(update={"temperature": fitted})
    if wanted.coverage and len(held_out := setup.held_out[task]):
        probs = probabilities(task_logits(model, held_out, task, setup.preprocess), kind)
        scores = conformal.nonconformity(probs, held_out.labels)
        answers = probabilities(tested, kind)
        covered = Coverage(
            images=len(scores), tested=conformal.outcomes(answers, test.labels, kind, scores)
        )
        entry = entry.model_copy(update={"coverage": covered})
        tensors["scores"] = scores.astype(np.float32)
    return Safe(entry, tensors)

"""What makes a task's answers safe to use, fitted to the network that is about to be bundled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lorkd_deploy.arrays import F32, I64, U8
from lorkd_deploy.bundle.manifest import GUARD, PROBABILITIES, SCORES, SafetyEntry
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.safety import coverage as conformal
from lorkd_deploy.safety.calibration import Temperature, fitted_temperature, sureness
from lorkd_deploy.safety.coverage import Coverage
from lorkd_deploy.safety.guard import Guard, distances, fitted, guard_of
from lorkd_deploy.safety.guard import scores as guard_scores
from lorkd_deploy.storage import Tensors
from lorkd_deploy.training.batches.loader import Images
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.networks.deployable import Guarded
from lorkd_deploy.training.networks.evaluate import BATCH, task_logits
from lorkd_deploy.training.networks.network import network_input

GUARD_IMAGES = 2000  # of the training split: means and covariances need no more


class Safe(NamedTuple):
    """A task's entry in the manifest, and the tensors of its file; none where it has no file."""

    entry: SafetyEntry
    tensors: Tensors


class Known(NamedTuple):
    """A guard, and what it compares with."""

    guard: Guard
    tensors: Tensors


def make_safe(
    setup: Setup, model: ExpertClassifier, earlier: tuple[SafetyEntry, ...] = ()
) -> list[Safe]:
    """Fold each task's temperature into its head, in place, then fit the rest to what it gives.

    The temperature is fitted on one half of the validation images, the rest on those that are held
    out. `earlier` are the entries of heads that hold a temperature already.
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
    entry = SafetyEntry()
    if not (wanted.temperature or wanted.holds_out):
        return Safe(entry, {})
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
    if not wanted.holds_out or not len(held_out := setup.held_out[task]):
        return Safe(entry, {})
    own = probabilities(task_logits(model, held_out, task, setup.preprocess), kind)
    tensors: dict[str, F32] = {PROBABILITIES: own.astype(np.float32)}
    if wanted.coverage:
        scores = conformal.nonconformity(own, held_out.labels)
        answers = probabilities(tested, kind)
        covered = Coverage(
            images=len(scores), tested=conformal.outcomes(answers, test.labels, kind, scores)
        )
        entry = entry.model_copy(update={"coverage": covered})
        tensors[SCORES] = scores.astype(np.float32)
    if wanted.guard:
        kept, guard = _guard(setup, model, task, held_out)
        entry = entry.model_copy(update={"guard": guard})
        tensors |= kept
    return Safe(entry, tensors)


def _guard(
    setup: Setup, model: ExpertClassifier, task: int, held_out: Images
) -> tuple[dict[str, F32], Guard]:
    """Fit on training images as they are stored, at most `GUARD_IMAGES`; set the threshold."""
    network = Guarded(*model.dense(task)).eval()
    train = setup.train[task]
    drawn = np.random.default_rng(setup.recipe.seed).permutation(len(train))[:GUARD_IMAGES]
    kept = fitted(guard_features(network, train, np.sort(drawn), setup))
    own = guard_features(network, held_out, np.arange(len(held_out)), setup)
    guard = guard_of(distances(kept, own), len(drawn))
    return {**kept, GUARD: guard_scores(kept, guard, own).astype(np.float32)}, guard


@torch.no_grad()
def guard_features(network: Guarded, images: Images | U8, rows: I64, setup: Setup) -> F32:
    """What the guard sees of the images at `rows`, float32 `(len(rows), E)`."""
    parts = [
        network(network_input(images[rows[i : i + BATCH]], setup.preprocess, network)).features
        for i in range(0, len(rows), BATCH)
    ]
    return np.asarray(torch.cat(parts).float().cpu().numpy(), np.float32)


def guards(safe: Sequence[Safe]) -> list[Known | None]:
    """Each task's guard, to tell engines what it says of the reference's images."""
    return [Known(one.entry.guard, one.tensors) if one.entry.guard else None for one in safe]

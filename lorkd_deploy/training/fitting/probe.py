"""A teacher's heads on its frozen backbone: logistic regression on features that are computed once.

The problem is convex, so there is nothing to schedule: L-BFGS finds each head, and of the penalties
on its weights the one with the least loss on the validation images is taken.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lorkd_deploy.metrics.score import score
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.losses import label_loss
from lorkd_deploy.training.networks.evaluate import summary

log = logging.getLogger(__name__)
PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # from stiff to loose
_ITERATIONS = 60  # of L-BFGS, each penalty beginning where the one before it ended
_LEAST_SPREAD = 1e-3  # of a feature that is the same for all images


def fit_heads(job: Job, features: TeacherFeatures) -> Fitted:
    """Fit every head of the teacher, in place, to what `features` are of the training images."""
    began = time.perf_counter()
    setup, network = job.setup, features.teacher
    penalties: dict[str, float] = {}
    results = []
    weights = setup.class_weights(job.spec, job.device)
    for number, name in enumerate(setup.names):
        split = setup.val[number]
        seen = features.of_images(split, f"validation features of {name}")
        known = _Known(
            _rows(np.asarray(features.of_task(number), np.float32), job.device),
            _rows(setup.data[number].train.labels, job.device),
            _rows(seen, job.device),
            _rows(split.labels, job.device),
        )
        fit = _Regression(known, setup.kinds[number], job.spec.label_smoothing, weights[number])
        head = network.heads.head(number)
        penalties[name] = fit.into(head)
        with torch.no_grad():
            logits = head(known.val_x).float().cpu().numpy()
        results.append(score(split.labels, logits, setup.kinds[number]))
        log.info("head of %s: penalty %g", name, penalties[name])
    found = summary(results, setup.names)
    notes = {"teacher_features": features.facts, "penalties": penalties}
    seconds = time.perf_counter() - began
    return Fitted(0, [{"step": 0, **found}], seconds, 0.0, features.precision, notes)


def _rows(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


class _Known(NamedTuple):
    """Features `(n, F)` and labels of the training images, and of the validation images."""

    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor


class _Regression:
    """One head's fit on standardised features."""

    def __init__(self, known: _Known, kind: str, smoothing: float, weights: Tensor | None) -> None:
        self._mean = known.x.mean(dim=0)
        self._spread = known.x.std(dim=0).clamp_min(_LEAST_SPREAD)
        self._known = known._replace(x=self._scaled(known.x), val_x=self._scaled(known.val_x))
        self._kind, self._smoothing, self._weights = kind, smoothing, weights

    def into(self, head: nn.Linear) -> float:
        """Give `head` the best weights by validation loss; returns their penalty."""
        x = self._known.x
        weight = x.new_zeros(head.weight.shape).requires_grad_()
        bias = x.new_zeros(head.bias.shape).requires_grad_()
        least, chosen = float("inf"), 0.0
        for penalty in PENALTIES:
            self._minimise(weight, bias, penalty)
            with torch.no_grad():
                logits = self._known.val_x @ weight.T + bias
                loss = float(label_loss([logits], [self._known.val_y], [self._kind]))
                if loss >= least:
                    break  # looser ones only learn the training images by heart
                least, chosen = loss, penalty
                head.weight.copy_(weight / self._spread)
                head.bias.copy_(bias - head.weight @ self._mean)
        return chosen

    def _minimise(self, weight: Tensor, bias: Tensor, penalty: float) -> None:
        known = self._known
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = label_loss(
                [known.x @ weight.T + bias], [known.y], [self._kind], self._smoothing,
                [self._weights],
            )  # fmt: skip
            loss = loss + penalty / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self._mean) / self._spread

"""Heads by logistic regression: scikit-learn's optimum, and the penalty that validation chooses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lorkd_deploy.training.fitting import probe
from lorkd_deploy.training.fitting.losses import label_loss


def known(classes: int, seed: int = 0, noise: float = 1.0) -> probe._Known:
    """Features of very different sizes, of which a few tell the class."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-2, 2, 12)
    centres = rng.normal(size=(classes, 12)) * (np.arange(12) < 4)

    def split(images: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = rng.integers(0, classes, images)
        x = (centres[y] + noise * rng.normal(size=(images, 12))) * sizes + 3 * sizes
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)

    return probe._Known(*split(300), *split(200))


@pytest.mark.parametrize("classes", [2, 4])
def test_a_head_is_the_optimum_that_scikit_learn_finds(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.setattr(probe, "PENALTIES", (0.1,))
    data = known(classes)
    head = nn.Linear(12, classes)
    assert probe._Regression(data, "multiclass", 0.0, None).into(head) == 0.1
    x = data.x.numpy()
    scaled = (x - x.mean(0)) / x.std(0, ddof=1)
    reference = linear_model.LogisticRegression(C=1 / (0.1 * len(x)), max_iter=1000)
    if classes == 2:  # there one weight stands for the difference of two, with half the penalty
        reference.set_params(C=2 / (0.1 * len(x)))
    reference.fit(scaled, data.y.numpy())
    with torch.no_grad():
        found = torch.softmax(head(data.x), 1).numpy()
    np.testing.assert_allclose(found, reference.predict_proba(scaled), atol=2e-3)


def test_the_penalty_is_that_of_the_least_validation_loss() -> None:
    noisy = known(3, noise=6.0)
    stiff = probe._Regression(noisy, "multiclass", 0.0, None).into(nn.Linear(12, 3))
    loose = probe._Regression(known(3, noise=0.3), "multiclass", 0.0, None).into(nn.Linear(12, 3))
    assert stiff > loose
    losses = {}
    for penalty in probe.PENALTIES:
        head = nn.Linear(12, 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probe, "PENALTIES", (penalty,))
            probe._Regression(noisy, "multiclass", 0.0, None).into(head)
        with torch.no_grad():
            losses[penalty] = float(label_loss([head(noisy.val_x)], [noisy.val_y], ["multiclass"]))
    assert min(losses, key=lambda penalty: losses[penalty]) == stiff


def test_findings_are_fitted_one_by_one() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(400, 5)).astype(np.float32))
    y = torch.stack([x[:, 0] > 0, x[:, 1] > 1], dim=1).long()
    head = nn.Linear(5, 2)
    data = probe._Known(x[:300], y[:300], x[300:], y[300:])
    probe._Regression(data, "multilabel", 0.0, None).into(head)
    with torch.no_grad():
        right = ((head(x[300:]) > 0).long() == y[300:]).float().mean()
    assert right > 0.95

"""The mutual information gap against scikit-learn, and on features whose gap is known."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.evidence.analysis.mig import binned, disentanglement, gap, principal_components


def test_a_factor_that_one_latent_tells_alone_has_a_gap_of_one() -> None:
    rng = np.random.default_rng(0)
    factor = rng.integers(0, 4, 4000)
    latents = np.stack([factor + rng.uniform(-0.1, 0.1, 4000), rng.normal(size=4000)], axis=1)
    assert gap(latents, factor).value == pytest.approx(1.0, abs=0.02)
    twice = np.stack([factor, factor, rng.normal(size=4000)], axis=1).astype(float)
    assert gap(twice, factor).value == pytest.approx(0.0, abs=1e-12)


def test_mutual_information_equals_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    factor = rng.choice([2, 5, 9], 500)
    latents = rng.normal(size=(500, 3)) + factor[:, None] * np.array([0.4, 0.1, 0.0])
    cells = binned(latents, 20)
    known = sorted(sklearn.mutual_info_score(cells[:, d], factor) for d in range(3))
    entropy = sklearn.mutual_info_score(factor, factor)
    assert gap(latents, factor).value == pytest.approx((known[-1] - known[-2]) / entropy)


def test_bins_are_equally_wide_and_hold_every_value() -> None:
    latents = np.array([[0.0, 3.0], [0.49, 3.0], [0.5, 3.0], [1.0, 3.0]])
    assert binned(latents, 2).tolist() == [[0, 0], [0, 0], [1, 0], [1, 0]]


def test_resamples_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    factor = rng.integers(0, 3, 200)
    latents = rng.normal(size=(200, 2)) + np.stack([factor, 0 * factor], axis=1)
    found = gap(latents, factor, n=10, seed=3)
    assert found.draws.shape == (10,)
    assert abs(found.draws.mean() - found.value) < 0.1
    assert found.draws.std() > 0
    assert np.array_equal(found.draws, gap(latents, factor, n=10, seed=3).draws)


def test_principal_components_are_the_centred_features_turned() -> None:
    features = np.random.default_rng(3).normal(size=(40, 6)) * np.arange(1, 7)
    latents = principal_components(features, 6)
    centred = features - features.mean(axis=0)
    assert latents @ latents.T == pytest.approx(centred @ centred.T)
    assert np.all(np.diff(latents.var(axis=0)) <= 0)
    assert principal_components(features, 2).shape == (40, 2)


def test_features_that_know_the_task_in_one_direction() -> None:
    rng = np.random.default_rng(4)
    labels = [np.arange(300) % 2, np.arange(300) // 150]
    features = [rng.normal(size=(300, 5)) * 0.2 for _ in labels]
    for number, own in enumerate(features):
        own[:, 0] += 10 * number  # the task
        own[:, 1] += 3 * labels[number]  # the class, of the same spread in both
    found = disentanglement(features, labels, dimensions=4, n=20)
    assert found.task.value > 0.8
    assert found.within.value > 0.5
    assert 0 < found.classes.value < found.task.value
    assert found.within.draws.shape == found.classes.draws.shape == (20,)

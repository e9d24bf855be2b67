"""Intervals over seeds and images: against plain loops, SciPy, and what they promise to cover."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.evidence.analysis import statistics
from lorkd_deploy.evidence.analysis.statistics import (
    Estimate,
    Resampled,
    estimate,
    holm,
    image_counts,
    over_tasks,
    resampled,
    seeds_needed,
    verdict,
)
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.metrics.score import accuracy, auc


def answers(seeds: int, images: int, classes: int = 3, seed: int = 0) -> tuple:
    """Labels `(N,)` and probabilities `(S, N, K)` with some skill."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(seeds, images, classes)) + np.eye(classes)[labels]
    probs = np.exp(logits)
    return labels, probs / probs.sum(axis=2, keepdims=True)


def drawn(values: list[float], images: float = 0.0, n: int = 4000) -> Resampled:
    """A figure of these values a seed, to which the resamples of images add a common spread."""
    common = np.random.default_rng(5).normal(0, images, (n, 1))
    return Resampled(np.array(values), np.array(values) + common)


def test_a_resampled_figure_equals_a_plain_loop() -> None:
    labels, probs = answers(2, 90)
    figure = resampled(auc, labels, probs, n=30, seed=4)
    counts = np.concatenate(list(image_counts(labels, None, 30, 4)))
    assert figure.values == pytest.approx([auc(labels, one) for one in probs])
    for row, of_resample in zip(counts, figure.draws, strict=True):
        images = np.repeat(np.arange(90), row.astype(int))
        assert of_resample == pytest.approx([auc(labels[images], one[images]) for one in probs])


def test_resamples_are_paired_between_methods_and_follow_the_seed() -> None:
    labels, probs = answers(3, 200)
    first = resampled(accuracy, labels, probs, n=20)
    same = resampled(accuracy, labels, probs.copy(), n=20)
    assert not (first - same).draws.any()
    assert first.draws.std(axis=0).min() > 0
    other = resampled(accuracy, labels, probs, n=20, seed=1)
    assert not np.array_equal(first.draws, other.draws)


def test_groups_are_drawn_whole() -> None:
    labels = np.arange(400) % 2
    groups = np.arange(400)[::-1] // 4 + 7
    counts = np.concatenate(list(image_counts(labels, groups, 40, 0)))
    assert (counts.sum(axis=1) == 400).all()
    assert (counts.reshape(40, 100, 4) == counts.reshape(40, 100, 4)[:, :, :1]).all()
    assert set(np.unique(counts)) >= {0.0, 1.0, 2.0}


def test_a_rare_class_keeps_its_number_in_every_resample() -> None:
    labels = np.repeat([0, 1, 2], [300, 200, 8])
    counts = np.concatenate(list(image_counts(labels, None, 50, 0)))
    assert (counts[:, labels == 2].sum(axis=1) == 8).all()
    assert (counts[:, labels == 0].sum(axis=1) == 300).all()
    common = np.concatenate(list(image_counts(labels[:500], None, 50, 0)))
    assert common[:, :300].sum(axis=1).std() > 0


def test_a_group_counts_for_the_rarest_class_that_it_shows() -> None:
    labels = np.array([0] * 100 + [1] * 100 + [0, 2] * 5)
    groups = np.concatenate([np.arange(200), np.repeat(np.arange(200, 205), 2)])
    counts = np.concatenate(list(image_counts(labels, groups, 30, 0)))
    assert (counts[:, labels == 2].sum(axis=1) == 5).all()
    assert (counts[:, -10::2] == counts[:, -9::2]).all()


def test_findings_of_a_multi_label_task_are_classes_too() -> None:
    labels = np.zeros((300, 2), np.int64)
    labels[:100, 0] = 1
    labels[95:105, 1] = 1
    counts = np.concatenate(list(image_counts(labels, None, 30, 0)))
    assert (counts @ labels[:, 1] == 10).all()


def test_the_t_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.01, 0.03, -0.005, 0.02, 0.015]
    found = estimate(drawn(values))
    expected = stats.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert found.t is not None
    assert (found.t.low, found.t.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == found.t
    assert found.value == pytest.approx(np.mean(values))


def test_the_images_spread_is_not_averaged_away_by_seeds() -> None:
    steady = estimate(drawn([0.02] * 50, images=0.03))
    assert steady.interval == steady.bootstrap
    half = (steady.bootstrap.high - steady.bootstrap.low) / 2
    assert half == pytest.approx(1.96 * 0.03, rel=0.06)
    assert steady.p == pytest.approx(0.5, abs=0.05)  # P(|z| > 0.02 / 0.03)
    both = estimate(drawn(list(np.random.default_rng(1).normal(0, 0.03, 400)), images=0.03))
    half = (both.bootstrap.high - both.bootstrap.low) / 2
    assert half == pytest.approx(1.96 * 0.03 * (1 + 1 / 400) ** 0.5, rel=0.08)


def test_one_seed_shows_nothing() -> None:
    found = estimate(drawn([0.2], images=0.001))
    assert found.bootstrap.low > 0.19
    assert found.interval is None
    assert found.p == 1.0
    assert verdict(found, found.p) == "not shown"


@pytest.mark.slow
def test_where_nothing_differs_a_difference_is_seldom_shown() -> None:
    rng = np.random.default_rng(0)
    shown = 0
    for trial in range(400):
        figure = drawn(list(rng.normal(0, 0.02, 5) + rng.normal(0, 0.01)), images=0.01, n=500)
        found = estimate(figure, seed=trial)
        shown += verdict(found, found.p) != "not shown"
    assert shown / 400 < 0.08


def test_words_follow_from_interval_and_corrected_p_alone() -> None:
    def of(low: float, high: float) -> Estimate:
        middle = (low + high) / 2
        narrow = Interval(value=middle, low=middle, high=middle)
        wide = Interval(value=middle, low=low, high=high)
        return Estimate(value=middle, bootstrap=wide, t=narrow, p=0.01)

    assert verdict(of(0.01, 0.03), 0.04) == "better"
    assert verdict(of(-0.03, -0.01), 0.04) == "worse"
    assert verdict(of(-0.01, 0.03), 0.04) == "not shown"
    assert verdict(of(0.01, 0.03), 0.06) == "not shown"


def test_holm_corrects_for_the_number_of_tasks() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_mean_over_tasks_stays_paired() -> None:
    first, second = drawn([0.1, 0.2], 0.01, 50), drawn([0.3, 0.6], 0.02, 50)
    both = over_tasks([first, second])
    assert both.values == pytest.approx([0.2, 0.4])
    assert both.draws == pytest.approx((first.draws + second.draws) / 2)


def test_seeds_that_would_show_it() -> None:
    stats = pytest.importorskip("scipy.stats")
    figure = drawn([-0.01, 0.0, 0.01, 0.02, 0.03], images=0.0001)
    assert verdict(estimate(figure), 0.0) == "not shown"
    needed = seeds_needed(figure)
    assert needed is not None
    few, enough = (
        stats.t.ppf(0.975, seeds - 1) * figure.values.std(ddof=1) / seeds**0.5
        for seeds in (needed - 1, needed)
    )
    assert enough < 0.01 <= few
    assert seeds_needed(drawn([0.01, 0.02, 0.0], images=0.02)) is None  # the images leave it open
    assert seeds_needed(drawn([0.01])) is None


def test_what_the_images_do_to_each_seed_goes_with_more_seeds() -> None:
    def figure(seeds: int) -> Resampled:
        rng = np.random.default_rng(seeds)
        values = np.linspace(-1, 1, seeds)
        values = 0.006 + 0.004 * values / values.std(ddof=1)
        return Resampled(values, values + rng.normal(0, 0.015, (4000, seeds)))

    needed = seeds_needed(figure(5))
    assert needed is not None  # though the images move the mean of five by more than its value
    fewer, more = (estimate(figure(round(needed * part))).interval for part in (0.8, 1.2))
    assert fewer is not None and more is not None
    assert fewer.low < 0 < more.low


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probs = answers(2, 60)
    whole = resampled(auc, labels, probs, n=25)
    monkeypatch.setattr(statistics, "_BLOCK", 60 * 7)
    assert np.array_equal(resampled(auc, labels, probs, n=25).draws, whole.draws)

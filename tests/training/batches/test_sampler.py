"""The sampler: exact batches, fair shares, nothing carried from step to step."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.training.batches.sampler import MixedSampler


def test_every_batch_is_full_and_in_task_order() -> None:
    sampler = MixedSampler([500, 40, 3], batch_size=17, temperature=2, seed=1, steps=50)
    for step in range(50):
        draw = sampler[step]
        assert sum(draw.counts) == 17
        assert all((own < size).all() for own, size in zip(draw.indices, (500, 40, 3), strict=True))


@pytest.mark.parametrize(("temperature", "expected"), [(1, 100.0), (2, 10.0), (1e9, 1.0)])
def test_temperature_sets_the_ratio_of_large_to_small(temperature: float, expected: float) -> None:
    sampler = MixedSampler([10_000, 100], 64, temperature, seed=0, steps=4000)
    counts = np.sum([sampler[s].counts for s in range(4000)], axis=0)
    assert counts[0] / counts[1] == pytest.approx(expected, rel=0.03)


def test_an_image_is_seen_again_only_after_all_others() -> None:
    sampler = MixedSampler([7], batch_size=3, temperature=1, seed=4, steps=14)
    seen = np.concatenate([sampler[s].indices[0] for s in range(14)])
    for start in range(0, 42, 7):
        assert sorted(seen[start : start + 7]) == list(range(7))


def test_steps_can_be_drawn_in_any_order() -> None:
    one = MixedSampler([50, 9], 16, 2, seed=3, steps=30)
    other = MixedSampler([50, 9], 16, 2, seed=3, steps=30)
    backwards = {s: other[s].indices for s in reversed(range(30))}
    for step in range(30):
        for a, b in zip(one[step].indices, backwards[step], strict=True):
            np.testing.assert_array_equal(a, b)


def test_more_tasks_than_samples() -> None:
    sampler = MixedSampler([10] * 20, batch_size=4, temperature=1, seed=0, steps=25)
    counts = np.array([sampler[s].counts for s in range(25)])
    assert (counts.sum(axis=1) == 4).all()
    assert (counts.sum(axis=0) > 0).all()


def test_another_seed_draws_another_order() -> None:
    draws = [MixedSampler([100], 32, 1, seed=s, steps=1)[0].indices[0] for s in (0, 1)]
    assert not np.array_equal(*draws)

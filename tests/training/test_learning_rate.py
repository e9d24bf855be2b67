"""Linear warm-up, then cosine: the factor on the learning rate at every step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.training.fitting.loop import schedule

STEPS = 100


def _factors(steps: int = STEPS, **spec: object) -> list[float]:
    return [schedule(TrainSpec.model_validate(spec), step, steps) for step in range(steps)]


def test_warm_up_rises_to_the_whole_rate_and_the_cosine_falls_to_almost_nothing() -> None:
    found = _factors(warmup=0.1)
    assert found[0] == pytest.approx(0.1), "the first step learns too"
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[9] == found[10] == 1, "the end of the warm-up is the cosine's beginning"
    assert found[55] == pytest.approx(0.5), "half of the way down"
    assert found[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert 0 < found[99] < 1e-3, "zero would be a step for nothing"
    assert all(now > then for now, then in pairwise(found[10:]))


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    found = _factors(warmup=0)
    assert found[0] == 1
    assert found[50] == pytest.approx(0.5)


def test_constant_is_constant_after_the_warm_up() -> None:
    found = _factors(warmup=0.2, schedule="constant")
    assert found[:2] == pytest.approx([0.05, 0.1])
    assert found[19:] == [1.0] * 81


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_trainings_learn(steps: int) -> None:
    assert all(factor > 0 for factor in _factors(steps, warmup=0.5))

"""LoadGen's settings are MLPerf's, and the server's rate is the highest that held."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.profiling.mlperf import loadgen, scenarios

pytest.importorskip("mlperf_loadgen", reason="MLCommons LoadGen isn't installed here")


def test_the_rules_are_loadgens_own_unless_it_is_quick() -> None:
    runner: Any = SimpleNamespace()
    inputs = np.zeros((2000, 3, 4, 4), np.float32)
    request = {"scenario": "single-stream", "batch": 4, "quick": False, "server_ms": 15.0}
    test = loadgen.Test(runner, inputs, request)
    assert test.performance_samples == 1024
    settings = test._settings("performance", 0.002, 500, searching=False)
    assert (settings.min_duration_ms, settings.min_query_count) == (600_000, 1024)
    assert settings.qsl_rng_seed != 0  # the official seeds
    for scenario, queries in (("multi-stream", 662), ("offline", 24_576)):
        other = loadgen.Test(runner, inputs, request | {"scenario": scenario})
        settings = other._settings("performance", 0.002, 500, searching=False)
        assert (settings.min_duration_ms, settings.min_query_count) == (600_000, queries)


def test_the_servers_rules_are_mlperfs() -> None:
    """15 ms is MLPerf's bound of image classification, kept by 99 of 100 queries; arrival rate and
    bound are LoadGen's `target_qps` and `target_latency`."""
    assert scenarios.SERVER_MS == 15
    runner: Any = SimpleNamespace()
    inputs = np.zeros((4, 3, 4, 4), np.float32)
    request = {"scenario": "server", "batch": 4, "quick": False, "search_ms": 3000}
    for bound in (scenarios.SERVER_MS, 2.5):
        test = loadgen.Test(runner, inputs, request | {"server_ms": bound})
        settings = test._settings("performance", 0.002, 432.5, searching=False)
        assert settings.server_target_latency_ns == bound * 1e6
        assert settings.server_target_latency_percentile == 0.99
        assert settings.server_target_qps == 432.5
        assert (settings.min_duration_ms, settings.min_query_count) == (600_000, 100)
        assert settings.server_coalesce_queries is False  # an arrival is a query of its own
        short = test._settings("performance", 0.002, 432.5, searching=True)
        assert (short.min_duration_ms, short.min_query_count) == (3000, 20)
        assert short.server_target_latency_ns == bound * 1e6


@pytest.mark.parametrize(("limit", "low", "high"), [(1000.0, 750, 1000), (20.0, 10, 20)])
def test_the_servers_rate_is_the_highest_that_held(limit: float, low: float, high: float) -> None:
    class Answering(loadgen.Test):
        """Keeps the bound up to `limit` queries a second, far above or below the first try."""

        def run(
            self, logs: Path, mode: str, expected: float, rate: float, *, searching: bool = False
        ) -> dict[str, Any]:
            return {"result_perf_constraints_met": rate <= limit}

    request = {"scenario": "server", "batch": 1, "quick": True, "server_ms": 15.0}
    runner: Any = SimpleNamespace()
    test = Answering(runner, np.zeros((4, 3, 4, 4), np.float32), request)
    assert low <= test.search(expected=0.7 / 400) / loadgen.MARGIN <= high

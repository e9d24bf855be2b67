"""The order of the rounds and the choice of CPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorkd_deploy.errors import UsageError
from lorkd_deploy.profiling.planning.protocol import choose_cpus, orders

ENGINES = ("teacher/onnx-fp32", "a/b/onnx-fp32", "a/c/onnx-fp32", "d/e/onnx-fp32")


def test_each_round_has_every_engine_once() -> None:
    found = orders(ENGINES, 5, seed=3)
    assert len(found) == 5
    assert all(sorted(order) == sorted(ENGINES) for order in found)


def test_pairs_of_rounds_are_balanced() -> None:
    found = orders(ENGINES, 10, seed=3)
    for engine in ENGINES:
        assert sum(order.index(engine) for order in found) == 10 * (len(ENGINES) - 1) / 2
    before = sum(order.index(ENGINES[0]) < order.index(ENGINES[1]) for order in found)
    assert before == 5


def test_the_seed_gives_the_order() -> None:
    assert orders(ENGINES, 6, seed=1) == orders(ENGINES, 6, seed=1)
    drawn = {orders(ENGINES, 6, seed=seed) for seed in range(8)}
    assert len(drawn) > 4


def test_threads_get_cores_of_their_own_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert choose_cpus(1, tmp_path) == (3,)
    assert choose_cpus(2, tmp_path) == (1, 3)
    assert choose_cpus(4, tmp_path) == (0, 1, 2, 3)


def test_more_threads_than_cpus_are_refused() -> None:
    allowed = len(os.sched_getaffinity(0))
    with pytest.raises(UsageError, match="threads were asked for") as caught:
        choose_cpus(allowed + 1)
    assert str(allowed) in (caught.value.fix or "")

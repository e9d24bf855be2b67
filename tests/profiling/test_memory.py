"""Memory of the runtime's allocator and of all departments together; a start without a cache."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from lorkd_deploy import benchmark, report
from lorkd_deploy.schema import document_bytes

WARM = "day/warm/trial-fp32"
COLD = "night/cold/trial-fp32"
Hospital = Any  # the fixture's class, in conftest.py


def test_what_the_runtimes_allocator_holds_is_that_of_the_smallest_batch(
    hospital: Hospital,
) -> None:
    hospital.engine("warm", np.eye(3)[:, :2], allocated=48)
    profile = benchmark(hospital.run, teacher=False, rounds=2, seconds=0.001, iterations=1)
    assert [timing.batch for timing in profile.engine(WARM).timings] == [1, 4]
    assert profile.engine(WARM).memory.allocator.rounds == (48, 48)
    assert profile.engine(COLD).memory.allocator is None
    text = report(hospital.run).markdown.read_text()
    assert "| Runtime's allocator |" in text and "| 48.0 MiB (48.0 to 48.0) |" in text


def test_all_departments_on_one_machine(hospital: Hospital) -> None:
    for task, classes in hospital.tasks.items():
        hospital.engine(task, np.eye(3)[:, :classes], mib=128)
    profile = benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    (found,) = profile.together
    assert found.engines == (WARM, COLD)
    assert found.bytes == sum(profile.engine(name).bytes for name in found.engines)
    # Each alone holds its 128 MiB and Python; in one process Python is there once.
    assert 2 * 128 < found.apart_shared < found.apart
    assert 2 * 128 < found.one_process < found.apart - 5
    assert 120 < found.one_process - found.one_engine < 192
    alone = benchmark(hospital.run, task=["warm"], rounds=1, seconds=0.001, iterations=1)
    assert alone.together == ()


def test_a_start_without_the_page_cache_is_measured_too(hospital: Hospital) -> None:
    quick = {"rounds": 2, "seconds": 0.001, "iterations": 1, "task": ["warm"], "teacher": False}
    cold = benchmark(hospital.run, **quick).engine(WARM).cold_start
    assert cold.uncached_load is None and cold.forgotten is None
    _set(hospital, "uncached", True)
    hospital.engine("warm", np.eye(3)[:, :2])
    profile = benchmark(hospital.run, **quick)
    cold = profile.engine(WARM).cold_start
    assert profile.protocol.uncached
    assert len(cold.uncached_process_to_first_answer.rounds) == 2
    assert 0 < cold.forgotten.median <= 1
    assert cold.uncached_process_to_first_answer.minimum > cold.uncached_load.minimum > 0


def _set(hospital: Hospital, key: str, value: object) -> None:
    file = hospital.run / "bundle" / "manifest.json"
    content = json.loads(file.read_text())
    content["recipe"]["benchmark"][key] = value
    file.write_bytes(document_bytes(content))

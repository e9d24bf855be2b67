"""A department's chapter: what is in it and in which order, whatever was measured of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lorkd_deploy.profiling.figures import OF_ANSWERS, OF_CALLS
from lorkd_deploy.profiling.mlperf.profile import ScenarioProfile, ScenarioRun
from lorkd_deploy.reporting.facts.sources import Sources, read_sources
from lorkd_deploy.reporting.sections import chapter as module
from lorkd_deploy.reporting.sections.chapter import Chapter, chapter
from lorkd_deploy.reporting.table import Column, Table
from lorkd_deploy.reporting.tables.engines import engines
from lorkd_deploy.run import open_run
from tests.reporting.run_folder import MANY_ENGINES, TASKS, build_run, environment

KEYS = (
    *("accuracy", "decisions", "against", "confusion-teacher", "confusion-expert"),
    *("stages", "start", "memory", "scenarios"),
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return sources(tmp_path_factory.mktemp("measured"), profile=True)


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Engines were exported and LoadGen ran them, but no benchmark did."""
    return sources(tmp_path_factory.mktemp("unmeasured"), profile=False)


def sources(folder: Path, *, profile: bool) -> Sources:
    run = build_run(folder / "run", tasks=TASKS[:2], engines=MANY_ENGINES, profile=profile)
    of_loadgen = ScenarioProfile(
        bundle_sha256="0" * 64,
        preprocess_sha256="0" * 64,
        environment=environment(),
        runs=(scenario("breast", "ultrasound"),),
    )
    return dataclasses.replace(read_sources(open_run(run)), scenarios=of_loadgen)


def scenario(department: str, task: str) -> ScenarioRun:
    return ScenarioRun(
        engine=f"{department}/{task}/onnx-fp32",
        kind="expert",
        department=department,
        tasks=(task,),
        target="onnx",
        precision="fp32",
        scenario="offline",
        metric="samples per second",
        value=240,
        unit="/s",
        result="VALID",
        conforms=True,
        because=(),
        quick=False,
        queries=24576,
        samples="test images",
        min_duration_ms=600_000,
        min_queries=1,
        performance_samples=156,
        largest_batch=8,
        server_ms=None,
        lowered=0,
        percentiles={"50": 4.1, "90": 4.4, "99": 5.0},
        scores=(),
        threads=1,
        cpus=(1,),
        loadgen="6.0.17",
        measured="2026-11-24T10:00:00Z",
        logs="loadgen/offline",
        asked={},
    )


def keys(found: Chapter) -> list[str]:
    return [table.key.removeprefix("department-1-") for table in found.all_tables]


def test_a_measured_department_has_every_table_in_this_order(measured: Sources) -> None:
    found = chapter(measured, "breast", "department-1", images=False)
    assert keys(found) == list(KEYS)
    assert [figure.key for figure in (*found.curves, *found.latency)] == [
        "department-1-roc",
        "department-1-calibration",
        "department-1-latency",
    ]
    assert not found.samples


def test_an_unmeasured_department_has_its_training_s_accuracy_and_loadgen_s_scenarios(
    unmeasured: Sources,
) -> None:
    found = chapter(unmeasured, "breast", "department-1", images=False)
    assert keys(found) == ["accuracy", "scenarios"]
    assert not (*found.curves, *found.latency, *found.samples)
    assert keys(chapter(unmeasured, "chest", "department-1", images=False)) == ["accuracy"]


def test_every_figure_of_calls_and_of_answers_has_a_column(measured: Sources) -> None:
    found = chapter(measured, "breast", "department-1", images=False)
    flat = engines(measured)
    assert flat
    for tables, figures in (((flat,), OF_CALLS), (found.answers, OF_ANSWERS)):
        columns = {column.key: column for table in tables for column in table.columns}
        for figure in figures:
            assert columns[figure.key].title == figure.title


@pytest.mark.parametrize("part", ["ANSWERS", "MACHINE"])
@pytest.mark.parametrize("run", ["measured", "unmeasured"])
def test_a_new_table_moves_no_other(
    run: str, part: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new(*_: object) -> Table:
        return Table("new", "New", "", (Column("a", "A"),), ())

    given = request.getfixturevalue(run)
    before = chapter(given, "breast", "department-1", images=False)
    monkeypatch.setattr(module, part, (new, *getattr(module, part)))
    after = chapter(given, "breast", "department-1", images=False)
    assert keys(after) != keys(before)
    assert [table for table in after.all_tables if not table.key.endswith("-new")] == list(
        before.all_tables
    )

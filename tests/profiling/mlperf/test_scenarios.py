"""MLPerf's scenarios: LoadGen itself, over real processes, and what it says of them."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy import benchmark, benchmark_scenarios, cli, pack, report
from lorkd_deploy.errors import LorkdError, RuntimeUnavailableError, UsageError
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.profiling.mlperf import scenarios
from lorkd_deploy.profiling.mlperf.log import DETAIL, read_answers, read_log
from lorkd_deploy.profiling.mlperf.profile import LOADGEN, ScenarioRun, read_scenarios
from lorkd_deploy.profiling.worker.process import WorkerError
from lorkd_deploy.schema import document_bytes

pytest.importorskip("mlperf_loadgen", reason="MLCommons LoadGen isn't installed here")
TEACHER = "teacher/trial-fp32"
WARM = "day/warm/trial-fp32"
COLD = "night/cold/trial-fp32"
Hospital = Any  # the fixture's class, in tests/profiling/conftest.py


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of a test: a twentieth of a quick run."""
    monkeypatch.setattr(scenarios, "QUICK_MS", 50)
    monkeypatch.setattr(scenarios, "QUICK_SEARCH_MS", 20)


@pytest.fixture
def hospital(hospital: Hospital) -> Hospital:
    """Its engines take two milliseconds for a call: LoadGen asks faster ones for so many samples
    that its own work takes seconds.
    """
    return type(hospital)(hospital.run, hospital.data, sleep=0.002)


def only(runs: tuple[ScenarioRun, ...], scenario: str, engine: str) -> ScenarioRun:
    (found,) = (r for r in runs if r.scenario == scenario and r.engine == engine)
    return found


def test_performance_and_accuracy_by_loadgens_own_logs(hospital: Hospital) -> None:
    profile = benchmark_scenarios(hospital.run, ["offline", "single-stream"], quick=True)
    folder = hospital.run / "profile"
    assert read_scenarios(folder / LOADGEN) == profile
    assert [(r.scenario, r.engine) for r in profile.runs] == [
        (scenario, engine)
        for engine in (WARM, COLD, TEACHER)
        for scenario in ("single-stream", "offline")
    ]
    for entry in profile.runs:
        for mode in ("performance", "accuracy"):
            log = read_log(folder / entry.logs / mode)
            assert log["effective_test_mode"] == f"{mode.capitalize()}Only"
        assert read_log(folder / entry.logs / "performance")["result_validity"] == entry.result
        assert entry.value > 0 and entry.quick and not entry.conforms
        assert entry.because[0].startswith("a quick run of 0.05 s")
        assert set(entry.percentiles) == {"50", "90", "95", "97", "99", "99.9"}
        assert (entry.samples, entry.threads) == ("test images", 1)
    warm = only(profile.runs, "single-stream", WARM)
    assert (warm.unit, warm.queries >= 100, warm.largest_batch) == ("ms", True, 1)
    assert warm.percentiles["50"] <= warm.value <= warm.percentiles["99.9"]
    assert [(s.task, s.images, s.accuracy.value) for s in warm.scores] == [("warm", 33, 1.0)]
    assert warm.scores[0].auc is not None and warm.scores[0].auc.value == 1.0
    # The foundation model mistakes each class of `warm` for the other; see `Hospital`.
    for scenario in ("single-stream", "offline"):
        scores = only(profile.runs, scenario, TEACHER).scores
        assert [(s.task, s.accuracy.value) for s in scores] == [("warm", 0.0), ("cold", 1.0)]
    assert only(profile.runs, "offline", COLD).unit == "/s"


def test_server_keeps_the_engines_pace_and_multi_stream_asks_for_eight(hospital: Hospital) -> None:
    hospital.engine("warm", np.eye(3)[:, :2], sleep=0.002)
    profile = benchmark_scenarios(
        hospital.run,
        ["server", "multi-stream"],
        task=["warm"],
        teacher=False,
        largest_batch=4,
        server_ms=500,
        quick=True,
    )
    server, multi = (only(profile.runs, s, WARM) for s in ("server", "multi-stream"))
    assert 1 < server.value < 4 / 0.002
    assert (server.largest_batch, server.server_ms, multi.server_ms) == (4, 500, None)
    assert server.percentiles["50"] >= 2
    log = read_log(hospital.run / "profile" / server.logs / "performance")
    assert log["effective_target_latency_ns"] == 500e6
    assert log["effective_target_latency_percentile"] == 0.99
    assert log["effective_target_qps"] > 0
    assert (multi.largest_batch, multi.unit) == (8, "ms")
    assert multi.value >= 2
    assert server.scores[0].accuracy.value == multi.scores[0].accuracy.value == 1.0


def test_another_scenario_is_added_and_the_report_shows_them(hospital: Hospital) -> None:
    benchmark_scenarios(hospital.run, ["offline"], teacher=False, quick=True)
    first = read_scenarios(hospital.run / "profile" / LOADGEN)
    benchmark_scenarios(hospital.run, ["single-stream"], task=["warm"], teacher=False, quick=True)
    both = benchmark_scenarios(hospital.run, ["offline"], task=["cold"], teacher=False, quick=True)
    assert only(both.runs, "offline", WARM) == only(first.runs, "offline", WARM)
    assert only(both.runs, "offline", COLD) != only(first.runs, "offline", COLD)
    assert len(both.runs) == 3

    text = report(hospital.run).markdown.read_text()
    assert "#### MLPerf scenarios" in text
    assert "3 of 3 MLPerf scenarios do not conform" in text
    assert "No result was reviewed by MLCommons" in text
    assert "quick run" in text and "single-stream" in text
    benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    files = report(hospital.run)
    assert "#### MLPerf scenarios" in files.markdown.read_text()
    card = files.model_cards[0].read_text().split("## MLPerf scenarios")[1].split("\n## ")[0]
    assert "- 3 of 3 MLPerf scenarios do not conform" in card
    assert "| single-stream | Expert warm (trial fp32) |" in card and "cold" not in card


def test_without_test_images_there_is_no_accuracy_mode(hospital: Hospital) -> None:
    (hospital.data / "cold.npz").unlink()
    profile = benchmark_scenarios(hospital.run, ["single-stream"], quick=True)
    cold = only(profile.runs, "single-stream", COLD)
    assert (cold.samples, cold.scores) == ("generated images", ())
    assert any("no accuracy mode" in why for why in cold.because)
    assert not (hospital.run / "profile" / cold.logs / "accuracy").exists()
    assert any("cold" in note for note in profile.notes)
    assert only(profile.runs, "single-stream", WARM).scores
    assert [s.task for s in only(profile.runs, "single-stream", TEACHER).scores] == ["warm"]


def test_an_engine_that_fails_under_loadgen_is_named(hospital: Hospital) -> None:
    hospital.engine("warm", np.eye(3)[:, :2], raises_at=30)
    with pytest.raises(WorkerError, match=r"day/warm.*batch too large"):
        benchmark_scenarios(hospital.run, ["single-stream"], task=["warm"], quick=True)
    assert not (hospital.run / "profile" / LOADGEN).exists()


def test_an_engine_that_fails_second_keeps_the_first(hospital: Hospital) -> None:
    hospital.engine("cold", np.eye(3), raises_at=30)
    with pytest.raises(WorkerError, match="night/cold"):
        benchmark_scenarios(hospital.run, ["single-stream"], teacher=False, quick=True)
    kept = read_scenarios(hospital.run / "profile" / LOADGEN)
    assert [entry.engine for entry in kept.runs] == [WARM]

    hospital.engine("cold", np.eye(3))  # mended
    whole = benchmark_scenarios(
        hospital.run, ["single-stream"], teacher=False, quick=True, resume=True
    )
    assert [entry.engine for entry in whole.runs] == [WARM, COLD]
    assert whole.runs[0] == kept.runs[0]


def test_a_failed_run_leaves_the_logs_of_the_one_before(hospital: Hospital) -> None:
    asked: dict[str, Any] = {"task": ["warm"], "teacher": False, "quick": True}
    before = benchmark_scenarios(hospital.run, ["single-stream"], **asked)
    hospital.engine("warm", np.eye(3)[:, :2], raises_at=30)
    with pytest.raises(WorkerError):
        benchmark_scenarios(hospital.run, ["single-stream"], **asked)
    assert read_scenarios(hospital.run / "profile" / LOADGEN) == before
    logs = hospital.run / "profile" / before.runs[0].logs
    assert read_log(logs / "performance")["result_query_count"] == before.runs[0].queries


def test_what_was_killed_midway_goes_on(hospital: Hospital) -> None:
    hospital.engine("cold", np.eye(3), sleep=0.05)  # so that the kill comes before it is done
    call = (
        "from lorkd_deploy.profiling.mlperf import scenarios as s;"
        "s.QUICK_MS, s.QUICK_SEARCH_MS = 50, 20;"
        f"s.benchmark_scenarios({str(hospital.run)!r}, ['single-stream'], quick=True)"
    )
    file = hospital.run / "profile" / LOADGEN
    with subprocess.Popen([sys.executable, "-c", call]) as process:
        for _ in range(2400):
            if file.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.kill()
    kept = read_scenarios(file)
    assert [entry.engine for entry in kept.runs] == [WARM]

    whole = benchmark_scenarios(hospital.run, ["single-stream"], quick=True, resume=True)
    assert [entry.engine for entry in whole.runs] == [WARM, COLD, TEACHER]
    assert whole.runs[0] == kept.runs[0]
    assert benchmark_scenarios(hospital.run, ["single-stream"], quick=True, resume=True).runs == (
        whole.runs
    )


def test_resume_measures_again_what_was_asked_otherwise(hospital: Hospital) -> None:
    asked: dict[str, Any] = {"task": ["warm"], "teacher": False, "quick": True, "resume": True}
    first = benchmark_scenarios(hospital.run, ["offline"], **asked)
    batch = benchmark_scenarios(hospital.run, ["offline"], largest_batch=1, **asked)
    assert batch.runs[0].asked["largest_batch"] == 1
    assert batch.runs[0].logs == first.runs[0].logs and batch.runs[0] != first.runs[0]
    hospital.engine("warm", 2 * np.eye(3)[:, :2])
    engine = benchmark_scenarios(hospital.run, ["offline"], largest_batch=1, **asked)
    assert engine.runs[0].asked["files"] != batch.runs[0].asked["files"]
    (hospital.data / "warm.npz").unlink()
    (entry,) = benchmark_scenarios(hospital.run, ["offline"], largest_batch=1, **asked).runs
    assert entry.samples == "generated images"


def test_battery_and_environment_of_the_scenarios_stay_in_the_report(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {"teacher": False, "quick": True}
    here = environment().model_copy(update={"battery": True, "governor": "powersave"})
    monkeypatch.setattr(scenarios, "environment", lambda: here)
    monkeypatch.setattr(scenarios, "load_average", lambda: (97.0, 0.0, 0.0))
    options = ["--scenario", "offline", "--task", "warm", "--no-teacher", "--quick"]
    assert cli.main(["benchmark", str(hospital.run), *options]) == 0
    assert "note: the machine ran on battery" in " ".join(capsys.readouterr().out.split())
    page = report(hospital.run)
    for text in (page.markdown.read_text(), html.unescape(page.html.read_text())):
        assert "the machine ran on battery" in text and "governor is 'powersave'" in text
        assert "load average 97.00" in text
        assert here.cpu.split("(")[0] in text and "battery: clocks may" in text
        assert "measured by MLPerf's scenarios alone" in text

    mains = here.model_copy(update={"battery": False, "cpu": "Another CPU"})
    monkeypatch.setattr(scenarios, "environment", lambda: mains)
    later = benchmark_scenarios(hospital.run, ["offline"], task=["cold"], **asked)
    assert [any("battery" in note for note in run.notes) for run in later.runs] == [True, False]
    benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    text = report(hospital.run).markdown.read_text()
    assert "lowered (1 of 2 scenario runs)" in text
    assert "1 of 2 scenario runs were measured on another machine" in text
    assert "- Processor (MLPerf scenarios): Another CPU" in text
    assert "- Memory (MLPerf scenarios)" not in text  # as that of the benchmark


def test_a_department_delivered_alone_is_measured_without_the_teacher(
    hospital: Hospital, tmp_path: Path
) -> None:
    made = pack(hospital.run, "day", tmp_path / "day")
    found = benchmark_scenarios(made.folder, ["single-stream"], quick=True)
    assert [entry.engine for entry in found.runs] == [WARM]
    assert found.runs[0].scores[0].accuracy.value == 1.0
    profile = benchmark(made.folder, rounds=1, seconds=0.001, iterations=1)
    assert [engine.engine for engine in profile.engines] == [WARM]
    for notes in (found.notes, profile.notes):
        assert sum("delivered alone" in note for note in notes) == 1
    unasked = benchmark_scenarios(made.folder, ["single-stream"], teacher=False, quick=True)
    assert not any("delivered alone" in note for note in unasked.notes)


def test_wrong_use_is_told(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        benchmark_scenarios(hospital.run, ["singel-stream"])
    assert caught.value.fix and "single-stream" in caught.value.fix
    run = str(hospital.run)
    options = ["--scenario", "offline", "--rounds", "3", "--repeats", "1"]
    assert cli.main(["benchmark", run, *options]) == 2
    assert "--rounds and --repeats can't be used here" in capsys.readouterr().err
    assert cli.main(["benchmark", run, "--server-ms", "3"]) == 2
    monkeypatch.setattr(scenarios, "available", lambda: None)
    with pytest.raises(RuntimeUnavailableError, match="not installed") as missing:
        benchmark_scenarios(hospital.run, ["offline"])
    assert missing.value.fix and "lorkd-deploy[loadgen]" in missing.value.fix


def test_the_command_marks_quick_runs(
    hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", str(hospital.run), "--task", "warm", "--no-teacher", "--quick"]
    assert cli.main([*arguments, "--scenario", "offline"]) == 0
    assert "does not conform: a quick run" in capsys.readouterr().out
    assert cli.main([*arguments, "--scenario", "offline", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["runs"]
    assert (entry["quick"], entry["conforms"]) == (True, False)


def test_a_quick_benchmark_says_so(hospital: Hospital) -> None:
    profile = benchmark(hospital.run, task=["warm"], teacher=False, quick=True, seconds=0.001)
    assert (profile.protocol.rounds, profile.protocol.quick) == (2, True)
    assert any("does not conform to the protocol" in note for note in profile.notes)
    with pytest.raises(UsageError, match="decides nothing"):
        benchmark(hospital.run, quick=True, assertions=["p50_ms<8"])


def test_a_folder_that_cannot_be_written_is_told_before_measuring(hospital: Hospital) -> None:
    (hospital.run / "profile").write_text("a file is in the way")  # root may write to any folder
    hospital.engine("warm", np.eye(3)[:, :2], dies_at=1)
    with pytest.raises(LorkdError, match="profile can't be written") as caught:
        benchmark_scenarios(hospital.run, ["single-stream"], task=["warm"], quick=True)
    assert caught.value.fix and caught.value.where == str(hospital.run / "profile")


def test_damaged_files_are_told(hospital: Hospital, tmp_path: Path) -> None:
    benchmark_scenarios(hospital.run, ["single-stream"], task=["warm"], teacher=False, quick=True)
    logs = hospital.run / "profile/loadgen/single-stream" / WARM
    with pytest.raises(LorkdError, match="33 of 34 images"):
        read_answers(logs / "accuracy", 34)
    (logs / "performance" / DETAIL).unlink()
    with pytest.raises(LorkdError, match="LoadGen left no log"):
        read_log(logs / "performance")
    file = hospital.run / "profile" / LOADGEN
    for content, said in (
        (b"{", "not valid JSON"),
        (document_bytes({"schema_version": 9}), "schema 9"),
        (document_bytes({"schema_version": 2}), "not valid at bundle_sha256"),
        (b"{}", "no digest"),
    ):
        shutil.copy(file, tmp_path / "kept.json")
        (tmp_path / LOADGEN).write_bytes(content)
        with pytest.raises(LorkdError, match=said):
            read_scenarios(tmp_path / LOADGEN)

"""The whole benchmark over real processes: what it measures, scores, writes and refuses."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy import benchmark, report
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import ArtifactError, LorkdError, UsageError
from lorkd_deploy.machine import activity
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.profiling import benchmark as benchmark_module
from lorkd_deploy.profiling.planning.selection import EngineFilter, select_engines
from lorkd_deploy.profiling.profile import (
    ANSWERS,
    CALLS,
    PROFILE,
    Profile,
    answers_name,
    calls_name,
    labels_name,
    read_profile,
)
from lorkd_deploy.profiling.rounds import measure as measuring
from lorkd_deploy.profiling.rounds.round import measure_round
from lorkd_deploy.profiling.timing import percentile
from lorkd_deploy.profiling.worker.process import WorkerError
from lorkd_deploy.progress import Silent
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import read_tensors, sha256_file

TEACHER = "teacher/trial-fp32"
WARM = "day/warm/trial-fp32"
COLD = "night/cold/trial-fp32"
Hospital = Any  # the fixture's class, in conftest.py


def test_measures_every_engine_and_writes_what_it_returns(
    measured: tuple[Hospital, Profile],
) -> None:
    hospital, profile = measured
    folder = hospital.run / "profile"
    assert read_profile(folder / PROFILE) == profile
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    assert [engine.engine for engine in profile.engines] == [WARM, COLD, TEACHER]
    assert [engine.kind for engine in profile.engines] == ["expert", "expert", "teacher"]
    assert profile.engine(WARM).department == "day"
    assert profile.engine(TEACHER).department is None

    protocol = profile.protocol
    assert (protocol.rounds, protocol.iterations, protocol.seconds) == (2, 9, 0.01)
    assert protocol.order[1] == protocol.order[0][::-1]
    assert sorted(protocol.order[0]) == sorted([WARM, COLD, TEACHER])
    assert protocol.input_shape == (3, 16, 16)
    assert protocol.teacher_input_shape == (3, 24, 24)
    assert protocol.cpus == (max(os.sched_getaffinity(0)),)
    assert profile.environment.load is not None

    for engine in profile.engines:
        assert [timing.batch for timing in engine.timings] == [1, 4]
        assert engine.latency.calls == sum(engine.latency.round_calls) >= 18
        assert all(calls >= 3 for calls in engine.timings[1].round_calls)  # 9 images in fours
        assert engine.facts["threads"] == 1
        assert engine.memory.empty is not None and engine.memory.empty.median > 5
        assert engine.memory.peak is not None and engine.memory.peak.median > 0
        cold = engine.cold_start
        assert len(cold.load.rounds) == 2
        assert cold.process_to_first_answer.minimum > cold.first_inference.minimum
        stages = engine.stages
        parts = (stages.read, stages.preprocess, stages.inference, stages.postprocess)
        assert all(len(part.rounds) == 2 and part.minimum > 0 for part in parts)
        assert stages.end_to_end.minimum > stages.read.minimum + stages.preprocess.minimum
        assert engine.build_seconds == 0.1 and engine.best_batch is None
        assert len(engine.conditions) == 2
        assert all(state.attempts == 1 and state.others >= 0 for state in engine.conditions)
    assert not (folder / "rounds").exists()  # everything is in the profile

    assert sha256_file(folder / CALLS) == profile.calls_sha256
    calls = read_tensors(folder / CALLS)
    assert len(calls) == 3 * 2 * 2
    _names_no_machine((folder / PROFILE).read_text(), hospital)
    second = calls[calls_name(COLD, 1, 1)]
    assert len(second) == profile.engine(COLD).latency.round_calls[1]
    assert percentile(second, 50) == profile.engine(COLD).latency.round_p50[1]


def test_scores_the_whole_test_split_of_each_task(measured: tuple[Hospital, Profile]) -> None:
    hospital, profile = measured
    warm, cold, teacher = (profile.engine(name) for name in (WARM, COLD, TEACHER))
    (score,) = warm.scores
    assert (score.task, score.images, score.accuracy.value) == ("warm", hospital.images, 1.0)
    assert score.auc is not None and score.auc.value == 1.0
    assert score.majority == pytest.approx(17 / 33)
    assert (score.sensitivity.value, score.specificity.value) == (1.0, 1.0)
    assert score.balanced_accuracy.value == 1.0 and score.calibration_error.value < 0.5
    assert (len(score.thresholds), score.threshold_from) == (1, "validation")
    assert len(cold.scores[0].thresholds) == 3
    assert [s.accuracy.value for s in cold.scores] == [1.0]
    assert [(s.task, s.accuracy.value) for s in teacher.scores] == [("warm", 0.0), ("cold", 1.0)]
    by_engine = {entry.engine: entry for entry in profile.comparisons}
    assert by_engine[WARM].scores[0].accuracy.value == 1.0
    assert by_engine[COLD].scores[0].accuracy.value == 0.0
    flips = by_engine[WARM].scores[0].flips
    assert (flips.answers, flips.gained, flips.lost, flips.moved) == (33, 33, 0, 0)
    assert flips.p == pytest.approx(2 / 2**33)
    assert by_engine[COLD].scores[0].flips.p == 1.0
    answers = read_tensors(hospital.run / "profile" / ANSWERS)
    assert sha256_file(hospital.run / "profile" / ANSWERS) == profile.answers_sha256
    assert answers[labels_name("warm")].tolist() == [i % 2 for i in range(33)]
    given = answers[answers_name("warm", TEACHER)]
    assert given.shape == (33, 2) and given.argmax(axis=1).tolist() == [
        1 - i % 2 for i in range(33)
    ]
    assert by_engine[COLD].size == pytest.approx(teacher.bytes / cold.bytes)


def test_findings_are_scored_and_shown_each_for_itself(findings: Hospital) -> None:
    profile = benchmark(findings.run, task=["cold"], rounds=1, seconds=0.001, iterations=1)
    ((score,), (of_teacher,)) = (profile.engine(name).scores for name in (COLD, TEACHER))
    assert (score.accuracy.value, score.auc.value) == (1.0, 1.0)
    assert (score.sensitivity.value, score.specificity.value) == (1.0, 1.0)
    assert (len(score.thresholds), score.threshold_from) == (3, "validation")
    # Of 33 images 16, 16 and 16 show the first, second and third finding.
    assert score.majority == pytest.approx(17 / 33)
    assert of_teacher.accuracy.value == pytest.approx(2 / 3)
    assert of_teacher.auc.value == pytest.approx(2 / 3)
    (found,) = profile.comparisons[0].scores
    assert found.accuracy.value == pytest.approx(1 / 3)
    flips = found.flips
    assert (flips.answers, flips.gained, flips.lost, flips.moved) == (99, 33, 0, 0)
    assert flips.p is None  # the findings of one image are not independent
    answers = read_tensors(findings.run / "profile" / ANSWERS)
    given = answers[answers_name("cold", COLD)]
    assert np.array_equal(given >= 0.5, answers[labels_name("cold")] == 1)
    assert not np.allclose(given.sum(axis=1), 1)

    files = report(findings.run, images=True)
    text = files.markdown.read_text()
    teacher, expert = (text.split(f"#### Findings: {m}")[1] for m in ("foundation model", "expert"))
    assert "| class2 | 16 | 0 | 0 | 17 |" in expert.split("####")[0]
    assert "| class2 | 0 | 16 | 17 | 0 |" in teacher.split("####")[0]
    assert "| 33 (of 99) | 0 (of 99) | 0 | – (findings of one image) |" in text
    page = files.html.read_text()
    assert re.findall(r'alt="test image \d+, ([^"]+)"', page)[:4] == [
        "no finding",
        "class0",
        "class1",
        "class0, class1",
    ]


def test_the_report_shows_test_images_only_when_asked(hospital: Hospital) -> None:
    benchmark(hospital.run, task=["warm"], rounds=1, seconds=0.001, iterations=1)
    assert "<img" not in report(hospital.run).html.read_text()
    page = report(hospital.run, images=True).html.read_text()
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="test image (\d+), ', page)
    assert len(shown) == 8 and "lorkd report --images" not in page
    assert [int(index) for _, index in shown[:4]] == [0, 1, 2, 3]  # the teacher mistakes every one
    stored = np.load(hospital.data / "warm.npz")["test_images"][2]
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[2][0]))))
    assert np.array_equal(decoded, stored)
    assert page.count("(wrong)") == 8
    (hospital.data / "warm.npz").unlink()
    assert "<img" not in report(hospital.run, images=True).html.read_text()


def test_a_threshold_of_the_recipe_needs_no_validation(hospital: Hospital) -> None:
    file = hospital.run / "bundle" / "manifest.json"
    content = json.loads(file.read_text())
    content["recipe"]["departments"][0]["tasks"][0]["threshold"] = 0.99
    file.write_bytes(document_bytes(content))
    hospital.engine("warm", np.eye(3)[:, :2])
    profile = benchmark(hospital.run, task=["warm"], rounds=1, seconds=0.001, iterations=1)
    (score,) = profile.engine(WARM).scores
    assert (score.thresholds, score.threshold_from) == ((0.99,), "recipe")
    assert (score.sensitivity.value, score.specificity.value) == (0.0, 1.0)


def test_a_stopped_benchmark_goes_on_where_it_was(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Silent):
        rounds = 0

        def advance(self, steps: int = 1, **shown: str) -> None:
            self.rounds += "round" in shown
            if self.rounds == 3:
                raise KeyboardInterrupt

    quick: dict[str, Any] = {"seconds": 0.001, "iterations": 3}
    with pytest.raises(KeyboardInterrupt):
        benchmark(hospital.run, progress=Stop(), **quick)
    kept = sorted((hospital.run / "profile" / "rounds").glob("*/*/*/*/round.json"))
    kept += sorted((hospital.run / "profile" / "rounds").glob("*/*/*/round.json"))
    assert len(kept) == 3
    done = {
        f"{file.parent.relative_to(hospital.run / 'profile' / 'rounds')}": read_tensors(
            file.with_name("calls.safetensors")
        )
        for file in kept
    }
    with pytest.raises(UsageError, match="iterations differ") as caught:
        benchmark(hospital.run, resume=True, seconds=0.001, iterations=4)
    assert caught.value.fix and "leave out --resume" in caught.value.fix

    known: list[int] = []  # what the machine's pace is compared with, at each further round

    def told(*given: Any) -> Any:
        known.append(len(given[-1].pace.seen))
        return measure_round(*given)

    monkeypatch.setattr(measuring, "measure_round", told)
    profile = benchmark(hospital.run, resume=True, **quick)
    assert known == [3 * 2, 4 * 2, 5 * 2]  # of two batches each
    calls = read_tensors(hospital.run / "profile" / CALLS)
    for place, batches in done.items():
        number, _, engine = place.partition("/")
        for batch, values in batches.items():
            name = calls_name(engine, int(batch), int(number) - 1)
            assert np.array_equal(calls[name], values)
    assert any("3 of 6 engine rounds were measured before" in note for note in profile.notes)
    assert not (hospital.run / "profile" / "rounds").exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"cpu": "Another CPU"}, "(cpu)"),
        ({"gpus": ("Another GPU, 570.1, 81920 MiB",)}, "(gpus)"),
        ({"packages": {"onnxruntime": "0.0"}, "python": "3.0"}, "(python, packages)"),
    ],
)
def test_rounds_of_another_machine_or_runtime_are_not_gone_on_with(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any], said: str
) -> None:
    hospital.engine("cold", np.eye(3), dies_at=1)
    quick: dict[str, Any] = {"rounds": 1, "seconds": 0.001, "iterations": 1}
    with pytest.raises(WorkerError):
        benchmark(hospital.run, **quick)
    here = environment()
    with monkeypatch.context() as moved:
        moved.setattr(benchmark_module, "environment", lambda: here.model_copy(update=other))
        with pytest.raises(UsageError) as caught:
            benchmark(hospital.run, resume=True, **quick)
    assert f"the machine {said} differ" in str(caught.value)
    with pytest.raises(WorkerError, match="night/cold"):  # here it goes on
        benchmark(hospital.run, resume=True, **quick)


def test_a_benchmark_that_is_killed_keeps_its_rounds(hospital: Hospital) -> None:
    hospital.engine("cold", np.eye(3), sleep=0.05)  # so that the kill comes in the middle
    options = ["--rounds", "40", "--seconds", "0.001", "--iterations", "3", "--quiet"]
    command = [sys.executable, "-m", "lorkd_deploy", "benchmark", str(hospital.run), *options]
    rounds = hospital.run / "profile" / "rounds"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        for _ in range(1200):
            if list(rounds.rglob("round.json")) or process.poll() is not None:
                break
            time.sleep(0.05)
        process.kill()
    done = len(list(rounds.rglob("round.json")))
    assert 0 < done < 120 and not (hospital.run / "profile" / PROFILE).exists()
    shorter = json.loads((rounds / "plan.json").read_text())
    shorter |= {"rounds": 1, "order": shorter["order"][:1]}  # as if one round had been asked for
    (rounds / "plan.json").write_bytes(document_bytes(shorter))
    profile = benchmark(hospital.run, resume=True, rounds=1, seconds=0.001, iterations=3)
    assert any(f"{min(done, 3)} of 3 engine rounds" in note for note in profile.notes)


def test_an_engine_of_another_machine_says_what_to_do(hospital: Hospital) -> None:
    hospital.engine("cold", np.eye(3), refuse=True)
    with pytest.raises(WorkerError, match=r"night/cold/trial-fp32.*of another machine") as caught:
        benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    assert caught.value.fix == "export it here"


def test_battery_and_heat_stay_in_the_report(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = environment().model_copy(update={"battery": True, "governor": "powersave"})
    monkeypatch.setattr(benchmark_module, "environment", lambda: here)
    told = iter(range(100))
    monkeypatch.setattr(activity, "slowdowns", lambda _: next(told))
    benchmark(hospital.run, task=["warm"], rounds=1, seconds=0.001, iterations=1)
    for file in (report(hospital.run).markdown, report(hospital.run).html):
        text = file.read_text()
        assert "ran on battery" in text and "slowed itself down for heat in 2 of 2" in text


def test_each_engine_is_measured_at_its_best_batch_too(hospital: Hospital) -> None:
    hospital.engine("warm", np.eye(3)[:, :2], sleep=0.004)  # however many images
    profile = benchmark(
        hospital.run, task=["warm"], rounds=1, seconds=0.001, iterations=1, largest_batch=16
    )
    warm = profile.engine(WARM)
    assert profile.protocol.best_batches[WARM] == 16
    assert [timing.batch for timing in warm.timings] == [1, 4, 16]
    # A single call of 4 ms may be held up for longer than it takes: the fastest, whichever it is.
    assert warm.best_batch == max(warm.timings, key=lambda t: t.round_throughput[0]).batch
    (beside,) = profile.comparisons
    rates = [
        max(timing.round_throughput[0] for timing in profile.engine(name).timings)
        for name in (WARM, TEACHER)
    ]
    assert beside.throughput is not None
    assert beside.throughput.value == pytest.approx(rates[0] / rates[1])
    report(hospital.run)
    text = " ".join((hospital.run / "report.md").read_text().split())
    assert f"each at its own best batch: {WARM} " in text


def test_a_folder_that_cannot_be_written_is_told_before_measuring(hospital: Hospital) -> None:
    (hospital.run / "profile").write_text("a file is in the way")
    hospital.engine("warm", np.eye(3)[:, :2], dies_at=1)
    with pytest.raises(LorkdError, match="profile can't be written") as caught:
        benchmark(hospital.run)
    assert caught.value.fix and caught.value.where == str(hospital.run / "profile")


def test_without_its_images_it_measures_speed_and_says_so(hospital: Hospital) -> None:
    (hospital.data / "cold.npz").unlink()
    profile = benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    assert profile.engine(COLD).scores == ()
    assert profile.engine(WARM).scores
    assert any("speed only" in note and "cold" in note for note in profile.notes)
    assert not any("warm" in note for note in profile.notes if "speed only" in note)
    assert str(hospital.data) not in profile.model_dump_json()
    text = report(hospital.run).markdown.read_text()
    assert "Speed only, no accuracy, of cold" in text


def test_other_images_than_the_bundles_are_not_scored(hospital: Hospital) -> None:
    shutil.copy(hospital.data / "cold.npz", hospital.data / "warm.npz")
    profile = benchmark(hospital.run, task=["warm"], teacher=False, rounds=1, seconds=0.001)
    assert profile.engine(WARM).scores == ()


def test_a_slower_teacher_gives_a_ratio_above_one(hospital: Hospital) -> None:
    hospital.engine("teacher", np.eye(3)[:, [0, 1, 0, 1, 2]], sleep=0.05)
    profile = benchmark(hospital.run, task=["warm"], rounds=3, seconds=0.001, iterations=1)
    (found,) = profile.comparisons
    assert (found.engine, found.teacher) == (WARM, TEACHER)
    assert [ratio.batch for ratio in found.latency] == [1, 4]
    # The median of three rounds: one round that the machine spoils changes nothing.
    assert all(ratio.ratio.value > 1 for ratio in found.latency)
    assert all(ratio.verdict == "too few rounds" for ratio in found.latency)
    assert any("too few" in note for note in profile.notes)


def test_engines_are_chosen_by_department_task_and_teacher(hospital: Hospital) -> None:
    quick = {"rounds": 1, "seconds": 0.001, "iterations": 1}
    day = benchmark(hospital.run, department=["day"], **quick)
    assert [engine.engine for engine in day.engines] == [WARM, TEACHER]
    cold = benchmark(hospital.run, task=["cold"], target=["trial"], teacher=False, **quick)
    assert [engine.engine for engine in cold.engines] == [COLD]
    assert cold.comparisons == ()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"department": ["dya"]}, "did you mean 'day'"),
        ({"task": ["cool"]}, "did you mean 'cold'"),
        ({"target": ["trail"]}, "did you mean 'trial'"),
        ({"threads": 4096}, "use at most"),
        ({"rounds": 0}, "rounds: Input should be greater"),
    ],
)
def test_wrong_names_and_values(hospital: Hospital, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        benchmark(hospital.run, **asked)
    assert said in str(caught.value)
    assert not (hospital.run / "profile" / PROFILE).exists()


def test_without_engines_it_says_how_to_export(hospital: Hospital) -> None:
    shutil.rmtree(hospital.run / "export" / "night")
    with pytest.raises(
        ArtifactError, match="no expert has been exported for --task cold"
    ) as caught:
        benchmark(hospital.run, task=["cold"])
    assert f"lorkd export {hospital.run} --task cold" in (caught.value.fix or "")


def test_without_the_teacher_it_says_how_to_export_it(hospital: Hospital) -> None:
    shutil.rmtree(hospital.run / "export" / "teacher")
    with pytest.raises(ArtifactError, match="foundation model has not been exported") as caught:
        benchmark(hospital.run)
    assert "--teacher" in (caught.value.fix or "")
    assert "--no-teacher" in (caught.value.fix or "")


def test_an_engine_of_another_bundle_or_changed_is_refused(hospital: Hospital) -> None:
    record = hospital.run / "export" / WARM / "artifact.json"
    original = record.read_text()
    raw = json.loads(original)
    record.write_bytes(document_bytes(raw | {"bundle_sha256": "2" * 64}))
    with pytest.raises(ArtifactError, match="another bundle"):
        benchmark(hospital.run)
    record.write_text(original)
    with (hospital.run / "export" / WARM / "engine.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ArtifactError, match="has changed since"):
        benchmark(hospital.run)


def test_an_engine_that_dies_leaves_the_profile_before_it(hospital: Hospital) -> None:
    benchmark(hospital.run, task=["warm"], teacher=False, rounds=1, seconds=0.001, iterations=1)
    before = (hospital.run / "profile" / PROFILE).read_bytes()
    hospital.engine("cold", np.eye(3), dies_at=3)
    with pytest.raises(WorkerError, match="night/cold/trial-fp32"):
        benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    assert (hospital.run / "profile" / PROFILE).read_bytes() == before


def test_engines_that_were_not_proven_are_named(hospital: Hospital) -> None:
    bundle = load_bundle(hospital.run)
    assert select_engines(hospital.run, bundle, EngineFilter())[1] == []
    hospital.engine("warm", np.eye(3)[:, :2], parity="not run here")
    hospital.engine("cold", np.eye(3), parity="failed")
    failed, unknown = select_engines(hospital.run, bundle, EngineFilter())[1]
    assert unknown.startswith("was not verified") and f": {WARM} (run `lorkd verify`" in unknown
    assert failed.startswith("failed verification") and f": {COLD} (run `lorkd verify`" in failed
    notes = benchmark(hospital.run, task=["warm"], teacher=False, rounds=1, seconds=0.001).notes
    assert unknown in notes


def test_engines_that_fail_only_beside_others_leave_the_times(hospital: Hospital) -> None:
    # As on a small board: what was measured alone stays, and isn't measured again by --resume.
    hospital.engine("warm", np.eye(3)[:, :2], most=4)  # images; they are scored in 32s
    hospital.engine("cold", np.eye(3), alone=True)
    profile = benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    assert [engine.engine for engine in profile.engines] == [WARM, COLD, TEACHER]
    assert profile.together == () and profile.engine(WARM).scores == ()
    assert profile.engine(COLD).scores[0].accuracy.value == 1.0
    (beside,) = [note for note in profile.notes if "all 2 experts of trial fp32" in note]
    assert "was not measured" in beside
    (scoring,) = [note for note in profile.notes if "no accuracy" in note]
    assert "of warm: an engine failed" in scoring
    _names_no_machine(profile.model_dump_json(), hospital)
    assert "of warm: an engine failed" in report(hospital.run).markdown.read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"{}", "no digest"),
        (document_bytes({"schema_version": 99}), "schema 99"),
        (document_bytes({"schema_version": 2, "name": 3}), "not valid at created"),
    ],
)
def test_a_profile_that_cannot_be_read(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / PROFILE).write_bytes(content)
    with pytest.raises(LorkdError, match=said):
        read_profile(tmp_path / PROFILE)


def _names_no_machine(text: str, hospital: Hospital) -> None:
    values = [value for value in _values(json.loads(text)) if isinstance(value, str)]
    assert not [value for value in values if value.startswith("/") or socket.gethostname() == value]
    assert str(hospital.run.parent) not in text and str(Path.home()) not in text


def _values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _values(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in _values(part)]
    return [value]

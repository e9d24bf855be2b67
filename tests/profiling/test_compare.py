"""What changed from one benchmark to another: found where there is something, silent where not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy import cli, compare
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.profiling.profile import (
    ANSWERS,
    PROFILE,
    Profile,
    answers_name,
    labels_name,
    read_profile,
)
from lorkd_deploy.profiling.resampling import spread
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import read_tensors, sha256_file, write_tensors
from tests.reporting.run_folder import FINDINGS, TASKS, build_run

EXPERT = "breast/ultrasound/onnx-fp32"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("compare") / "run", tasks=TASKS[:2])


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "other"))


def rewrite(run: Path, profile: Profile) -> None:
    (run / "profile" / PROFILE).write_bytes(document_bytes(profile.model_dump(mode="json")))


def slowed(profile: Profile, engine: str, factor: float) -> Profile:
    """The profile with one engine's rounds slower by `factor`."""
    return rounds_times(
        profile,
        engine,
        {"round_p50": factor, "round_p90": factor, "round_p99": factor}
        | {"round_throughput": 1 / factor},
    )


def rounds_times(profile: Profile, engine: str, factors: dict[str, float]) -> Profile:
    """The profile with some of one engine's figures by round multiplied."""
    engines = []
    for entry in profile.engines:
        if entry.engine == engine:
            timings = tuple(
                timing.model_copy(
                    update={
                        field: tuple(value * factor for value in getattr(timing, field))
                        for field, factor in factors.items()
                    }
                )
                for timing in entry.timings
            )
            entry = entry.model_copy(update={"timings": timings})  # noqa: PLW2901
        engines.append(entry)
    return profile.model_copy(update={"engines": tuple(engines)})


def test_the_same_run_shows_no_change(run: Path) -> None:
    found = compare(run, run / "profile" / PROFILE)
    assert found.beyond_noise == ()
    metrics = {entry.metric for entry in found.changes if entry.engine == EXPERT}
    assert metrics >= {"p50_ms", "ratio_vs_teacher", "peak_mib", "size_bytes"}
    assert metrics >= {"load_ms", "process_to_first_answer_ms", "end_to_end_ms"}
    assert metrics >= {"ultrasound accuracy", "ultrasound calibration_error"}
    assert any("same rounds" in note for note in found.notes)


def test_a_slower_engine_is_found_and_nothing_else(run: Path, other: Path) -> None:
    rewrite(other, slowed(read_profile(other / "profile" / PROFILE), EXPERT, 1.2))
    found = compare(run, other)
    assert {(c.engine, c.metric, c.verdict) for c in found.beyond_noise} == {
        (EXPERT, "ratio_vs_teacher", "worse"),
        *(
            (EXPERT, f"{metric}{place}", "worse")
            for metric in ("p50_ms", "p90_ms", "p99_ms", "images_per_s")
            for place in ("", " at batch 8")
        ),
    }
    change = found.beyond_noise[0]
    assert change.change.value == pytest.approx(1.2)
    assert change.change.low < 1.2 < change.change.high
    back = compare(other, run)
    assert {c.verdict for c in back.beyond_noise} == {"better"}


@pytest.mark.parametrize(
    ("changed_by", "metric", "verdict"),
    [
        (("round_p99", 1.5), "p99_ms", "worse"),
        (("round_p90", 0.7), "p90_ms", "better"),
        (("round_throughput", 0.8), "images_per_s", "worse"),
        (("round_throughput", 1.3), "images_per_s", "better"),
    ],
)
def test_a_change_of_the_tail_or_of_throughput_alone_is_found(
    run: Path, other: Path, changed_by: tuple[str, float], metric: str, verdict: str
) -> None:
    field, factor = changed_by
    changed = rounds_times(read_profile(other / "profile" / PROFILE), EXPERT, {field: factor})
    rewrite(other, changed)
    found = compare(run, other).beyond_noise
    assert [(c.metric, c.verdict) for c in found] == [
        (metric, verdict),
        (f"{metric} at batch 8", verdict),
    ]
    assert found[0].change.value == pytest.approx(factor)


def test_a_slower_start_is_found(run: Path, other: Path) -> None:
    profile = read_profile(other / "profile" / PROFILE)
    engines = []
    for engine in profile.engines:
        cold = engine.cold_start
        if engine.engine == EXPERT:
            load = cold.load.model_copy(
                update={"rounds": tuple(value * 1.5 for value in cold.load.rounds)}
            )
            cold = cold.model_copy(update={"load": load})
        engines.append(engine.model_copy(update={"cold_start": cold}))
    rewrite(other, profile.model_copy(update={"engines": tuple(engines)}))
    found = compare(run, other).beyond_noise
    assert [(c.engine, c.metric, c.verdict) for c in found] == [(EXPERT, "load_ms", "worse")]


def test_a_change_within_the_margin_is_noise(run: Path, other: Path) -> None:
    rewrite(other, slowed(read_profile(other / "profile" / PROFILE), EXPERT, 1.01))
    assert compare(run, other).beyond_noise == ()


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.01, "no change shown"), (0.99, "no change shown"), (1.05, "worse"), (0.9, "better")],
)
def test_a_size_changes_beyond_the_margin_only(
    run: Path, other: Path, factor: float, verdict: str
) -> None:
    profile = read_profile(other / "profile" / PROFILE)
    engines = [
        engine.model_copy(update={"bytes": round(engine.bytes * factor)})
        for engine in profile.engines
    ]
    rewrite(other, profile.model_copy(update={"engines": tuple(engines)}))
    sizes = [entry for entry in compare(run, other).changes if entry.metric == "size_bytes"]
    assert [entry.verdict for entry in sizes] == [verdict] * len(engines)


def test_no_ratio_is_made_of_what_is_not_above_zero(run: Path, other: Path) -> None:
    profile = read_profile(other / "profile" / PROFILE)
    idle = spread([-0.2, 0.1, 0.2, 0.3, 0.4])  # the idle machine took more in the first round
    engines = []
    for engine in profile.engines:
        memory = engine.memory.model_copy(update={"loaded": spread([0.0] * 5)})
        engines.append(engine.model_copy(update={"joules": idle, "memory": memory}))
    rewrite(other, profile.model_copy(update={"engines": tuple(engines)}))
    found = compare(other, other)
    assert not {"joules", "loaded_mib"} & {entry.metric for entry in found.changes}
    assert any(note.startswith("joules and loaded_mib aren't compared") for note in found.notes)


def test_answers_are_compared_image_by_image(run: Path, other: Path) -> None:
    file = other / "profile" / ANSWERS
    answers = read_tensors(file)
    name = answers_name("ultrasound", EXPERT)
    answers[name] = np.ascontiguousarray(answers[name][:, ::-1])  # now mostly wrong
    write_tensors(file, answers)
    profile = read_profile(other / "profile" / PROFILE)
    rewrite(other, profile.model_copy(update={"answers_sha256": sha256_file(file)}))
    found = compare(run, other).beyond_noise
    worse = {change.metric for change in found if change.verdict == "worse"}
    assert {"ultrasound accuracy", "ultrasound auc", "ultrasound sensitivity"} <= worse
    assert {change.engine for change in found} == {EXPERT}


def test_findings_are_compared_as_such(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=(FINDINGS,))
    other = Path(shutil.copytree(run, tmp_path / "other"))
    file = other / "profile" / ANSWERS
    answers = read_tensors(file)
    name = answers_name("film", "lungs/film/onnx-fp32")
    right = (answers[name] >= 0.5) == answers[labels_name("film")]
    answers[name][:, 2] = 1 - answers[name][:, 2]  # the last finding is now mostly wrong
    write_tensors(file, answers)
    profile = read_profile(other / "profile" / PROFILE)
    rewrite(other, profile.model_copy(update={"answers_sha256": sha256_file(file)}))
    found = {change.metric: change for change in compare(run, other).beyond_noise}
    assert found.keys() >= {"film accuracy", "film auc", "film sensitivity"}
    assert {change.verdict for change in found.values()} == {"worse"}
    lost = (1 - 2 * right[:, 2].mean()) / 3  # of every answer, as MedMNIST counts them
    assert found["film accuracy"].change.value == pytest.approx(lost)


def test_what_else_differs_is_said(run: Path, other: Path) -> None:
    profile = read_profile(other / "profile" / PROFILE)
    machine = profile.environment.model_copy(
        update={"cpu": "Other CPU", "packages": {"numpy": "2.2.6", "onnxruntime": "1.33.0"}}
    )
    kept = tuple(engine for engine in profile.engines if engine.engine != EXPERT)
    rewrite(other, profile.model_copy(update={"environment": machine, "engines": kept}))
    notes = " | ".join(compare(run, other).notes)
    assert "cpu differs: Fixture CPU @ 2.50GHz, then Other CPU" in notes
    assert "onnxruntime differs: 1.32.0, then 1.33.0" in notes
    assert f"only in the first run: {EXPERT}" in notes
    assert "5 rounds give wide intervals" in notes


def test_runs_that_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    unmeasured = build_run(tmp_path / "unmeasured", profile=False, tasks=TASKS[:1])
    with pytest.raises(LorkdError, match="has not been measured") as caught:
        compare(run, unmeasured)
    assert caught.value.fix == f"`lorkd benchmark {unmeasured}`"
    elsewhere = build_run(tmp_path / "elsewhere", tasks=TASKS[2:3], teacher=False)
    with pytest.raises(LorkdError, match="no engine of the same name"):
        compare(run, elsewhere)


@pytest.mark.thorough
def test_the_command(run: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(other, slowed(read_profile(other / "profile" / PROFILE), EXPERT, 0.5))
    assert cli.main(["compare", str(run), str(other)]) == 0
    shown = capsys.readouterr().out
    assert "ratio_vs_teacher" in shown and "better" in shown and "size_bytes" not in shown
    assert cli.main(["compare", str(run), str(run)]) == 0
    assert "nothing changed beyond noise" in capsys.readouterr().out
    assert cli.main(["compare", str(run), str(other), "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert {c["metric"] for c in changes if c["verdict"] == "better"} >= {"p50_ms"}

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
    read_profile,
)
from lorkd_deploy.storage import canonical_json, read_tensors, sha256_file, write_tensors
from tests.reporting.run_folder import TASKS, build_run

EXPERT = "breast/ultrasound/onnx-fp32"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("compare") / "run", tasks=TASKS[:2])


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "other"))


def rewrite(run: Path, profile: Profile) -> None:
    (run / "profile" / PROFILE).write_bytes(canonical_json(profile.model_dump(mode="json")))


def slowed(profile: Profile, engine: str, factor: float) -> Profile:
    """The profile with one engine's rounds slower by `factor`."""
    engines = []
    for entry in profile.engines:
        if entry.engine == engine:
            timings = tuple(
                timing.model_copy(
                    update={"round_p50": tuple(value * factor for value in timing.round_p50)}
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
        (EXPERT, "p50_ms", "worse"),
        (EXPERT, "p50_ms at batch 8", "worse"),
        (EXPERT, "ratio_vs_teacher", "worse"),
    }
    change = found.beyond_noise[0]
    assert change.change.value == pytest.approx(1.2)
    assert change.change.low < 1.2 < change.change.high
    back = compare(other, run)
    assert {c.verdict for c in back.beyond_noise} == {"better"}


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

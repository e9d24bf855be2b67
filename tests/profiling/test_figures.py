"""A figure's row: the names that assertions know, and how each is read from a profile."""

from __future__ import annotations

import pytest

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import FIGURES, OF_ANSWERS, OF_CALLS, SIZE, measured
from lorkd_deploy.profiling.profile import PROFILE, Difference, Profile, Score, read_profile
from tests.reporting.run_folder import TASKS, build_run

EXPERT = "breast/ultrasound/onnx-fp32"
# What somebody's pipeline may assert today.
ASSERTED = [
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "p99_9_ms",
    "mean_ms",
    "images_per_s",
    "load_ms",
    "start_ms",
    "end_to_end_ms",
    "uncached_start_ms",
    "joules",
    "loaded_mib",
    "gpu_mib",
    "peak_mib",
    "size_mib",
    "accuracy",
    "auc",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "calibration_error",
    "accuracy_drop",
    "auc_drop",
    "ratio_vs_teacher",
    "memory_vs_teacher",
    "size_vs_teacher",
]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    run = build_run(tmp_path_factory.mktemp("figures") / "run", tasks=TASKS[:2])
    return read_profile(run / "profile" / PROFILE)


def test_the_names_that_assertions_know_stay() -> None:
    assert set(ASSERTED) <= FIGURES.keys()
    assert all(figure.key == key for key, figure in FIGURES.items())


def test_each_is_read_in_its_unit(profile: Profile) -> None:
    expert = profile.engine(EXPERT)
    of = measured(expert, profile)
    value = {key: figure.value(of) for key, figure in FIGURES.items()}
    assert of.score and of.difference and of.comparison and of.ratio
    assert value["p50_ms"] == expert.latency.p50.value
    assert value["p99_9_ms"] == expert.latency.p99_9
    assert value["start_ms"] == expert.cold_start.process_to_first_answer.median
    assert value["size_mib"] == expert.bytes / 2**20
    assert value["accuracy"] == 100 * of.score.accuracy.value
    assert of.score.auc and value["auc"] == of.score.auc.value
    assert value["accuracy_drop"] == -100 * of.difference.accuracy.value
    assert value["ratio_vs_teacher"] == of.ratio.ratio.value
    assert value["size_vs_teacher"] == of.comparison.size
    assert value["gpu_mib"] is None and value["joules"] is None  # not measured in this profile


def test_a_teacher_stands_beside_nothing_and_has_a_score_a_task(profile: Profile) -> None:
    teacher = next(engine for engine in profile.engines if engine.kind == "teacher")
    of = measured(teacher, profile)
    assert (of.teacher, of.comparison, of.difference, of.score) == (None,) * 4
    assert FIGURES["ratio_vs_teacher"].value(of) is None
    one = measured(teacher, profile, "xray")
    assert one.score is not None and one.score.task == "xray"


def test_figures_of_the_calls_follow_the_batch_size(profile: Profile) -> None:
    of = measured(profile.engine(EXPERT), profile)
    larger = of.engine.timings[1]
    assert larger.batch > of.timing.batch
    for figure in OF_CALLS:
        assert figure.value(of.at(larger)) != figure.value(of)
    assert FIGURES["p90_ms"].rounds(of.at(larger)) == larger.round_p90


def test_rounds_are_those_of_the_profile(profile: Profile) -> None:
    of = measured(profile.engine(EXPERT), profile)
    assert FIGURES["load_ms"].rounds(of) == of.engine.cold_start.load.rounds
    assert not SIZE.rounds(of) and not FIGURES["joules"].rounds(of)
    assert of.teacher is not None
    slow, fast = of.teacher.latency.round_p50, of.timing.round_p50
    assert FIGURES["ratio_vs_teacher"].rounds(of) == [
        a / b for a, b in zip(slow, fast, strict=True)
    ]


def test_a_figure_of_the_answers_is_a_field_of_score_and_difference() -> None:
    for figure in OF_ANSWERS:
        for schema in (Score, Difference):
            assert Interval.__name__ in str(schema.model_fields[figure.key].annotation)
        assert figure.of(None) is None

"""What the profile says of its own rounds: every bound beyond which one counts as disturbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy import benchmark
from lorkd_deploy.deploy.artifact import find_artifacts
from lorkd_deploy.profiling.conditions import Conditions
from lorkd_deploy.profiling.notes import notes_of
from lorkd_deploy.profiling.planning.selection import is_teacher
from lorkd_deploy.profiling.profile import PROFILE, read_profile
from lorkd_deploy.reporting.sections import method
from tests.profiling.conftest import Hospital
from tests.reporting.run_folder import TASKS, build_run

BOUNDS = (
    "more than 12 % of the engine's CPUs",
    "a CPU limit stopped it for more than 3 % of the time",
    "a fixed piece of work took 25 % longer than in the median of the benchmark",
    "a CPU slowed itself down for heat",
    "the GPU was slowed",
)


def test_a_disturbed_round_is_told_with_every_bound(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    profile = read_profile(run / "profile" / PROFILE)
    watched = {"repeats": 3, "most_others": 0.12, "most_throttled": 0.03, "most_slower": 0.25}
    protocol = profile.protocol.model_copy(update=watched)
    hot = Conditions(
        others=0, throttled=0, mhz=None, celsius=96, disturbed=True, attempts=4, slowdowns=2
    )
    states = (hot, hot.model_copy(update={"disturbed": False, "attempts": 1, "slowdowns": 0}))
    engine = profile.engines[1].model_copy(update={"conditions": states})
    found = list(notes_of((), (engine,), protocol, profile.environment, 0))
    (note,) = [text for text in found if "were repeated" in text]
    assert "of 2 engine rounds 1 were repeated" in note and "and 1 of those kept" in note
    assert all(text in protocol.bounds for text in BOUNDS)
    assert "a CPU slowed itself down for heat in 1 of 2 engine rounds" in found
    once = protocol.model_copy(update={"repeats": 0})
    found = list(notes_of((), (engine,), once, profile.environment, 0))
    assert "1 of 2 engine rounds were disturbed, and none was repeated" in found


def test_what_an_interval_of_few_rounds_covers_is_said(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    profile = read_profile(run / "profile" / PROFILE)
    assert profile.protocol.rounds == 5
    few, many = (
        profile.model_copy(
            update={"protocol": profile.protocol.model_copy(update={"rounds": rounds})}
        )
        for rounds in (4, 10)
    )
    said = {p.protocol.rounds: " ".join(method.protocol(p)) for p in (few, profile, many)}
    assert "to the highest, 94 % with five rounds), of accuracy by" in said[5]
    assert "88 % with four rounds" in said[4] and "to the highest" not in said[10]
    note = next(notes_of((), (), few.protocol, few.environment, 0))
    assert "4 rounds are too few" in note and "95 %" not in note


def test_how_long_the_stages_are_measured_is_said(tmp_path: Path) -> None:
    profile = read_profile(build_run(tmp_path / "run", tasks=TASKS[:1]) / "profile" / PROFILE)
    protocol = profile.protocol.model_copy(update={"stage_image": 512})
    said = " ".join(method.protocol(profile.model_copy(update={"protocol": protocol})))
    assert "at least 25 passes and 0.75 s per round, the first left out" in said


@pytest.mark.thorough
def test_which_experts_have_no_teacher_of_their_kind_is_one_note(hospital: Hospital) -> None:
    for name, weight in (("warm", np.eye(3)[:, :2]), ("cold", np.eye(3)), ("teacher", np.eye(3))):
        hospital.engine(name, weight)
    *experts, teacher = sorted(find_artifacts(hospital.run), key=is_teacher)
    smaller = [expert.model_copy(update={"precision": "int8"}) for expert in experts]
    profile = benchmark(hospital.run, rounds=1, seconds=0.001, iterations=1)
    engines, rest = [*experts, *smaller, teacher], (profile.protocol, profile.environment, 0)
    (note,) = [text for text in notes_of(engines, (), *rest) if "compared with" in text]
    assert note == (
        f"compared with {teacher.name}, as there is no closer one: "
        f"{', '.join(expert.name for expert in smaller)}"
    )

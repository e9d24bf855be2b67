"""What `lorkd benchmark` shows on the terminal: the brief figures, in the units of `--assert`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorkd_deploy.cli.shared.benchmarked import show
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.profiling.figures import FIGURES, OF_ANSWERS, measured
from lorkd_deploy.profiling.profile import PROFILE, read_profile
from tests.reporting.run_folder import TASKS, build_run

EXPERT = "breast/ultrasound/onnx-fp32"


def test_every_brief_figure_is_a_column_and_answers_are_in_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    profile = read_profile(run / "profile" / PROFILE)
    show(Output(as_json=False, quiet=False), profile)
    shown = capsys.readouterr().out
    brief = [figure for figure in FIGURES.values() if figure.brief]
    assert len(brief) == 8
    for figure in (*brief, *OF_ANSWERS):
        assert f"{figure.title} {figure.unit}".strip() in shown
    engines, beside, decisions = (
        next(line for line in shown.split(title)[1].splitlines() if "breast/ultra" in line).split()
        for title in ("Batch 1", "Beside the teacher", "Decisions and calibration")
    )
    of = measured(profile.engine(EXPERT), profile)
    value = {key: figure.value(of) for key, figure in FIGURES.items()}
    assert engines[1] == f"{value['p50_ms']:.4g}" and engines[-2:] == [
        f"{value['accuracy']:.4g}",
        f"{value['auc']:.4g}",
    ]
    assert f"{value['ratio_vs_teacher']:.4g}" in beside and "faster" in beside
    assert f"{-value['accuracy_drop']:.4g}" in beside  # expert minus teacher, in points
    assert decisions[1] == "ultrasound" and f"{value['sensitivity']:.4g}" in decisions

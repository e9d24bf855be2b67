"""`lorkd demo` as a newcomer runs it: the whole way on the embedded default."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorkd_deploy import load_bundle
from lorkd_deploy.profiling.profile import PROFILE, read_profile

pytest.importorskip("torch", reason="the demo trains, which needs torch")

TASKS = {"tissue", "xray", "cells", "fundus"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The demo's run, and what `--json` said of it."""
    out = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "lorkd_deploy", "demo", "--out", str(out), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return out, json.loads(done.stdout)


def test_it_names_a_report_with_every_department(demo: tuple[Path, dict[str, object]]) -> None:
    out, said = demo
    page = Path(str(said["report"]))
    assert page == out / "report.html"
    text = page.read_text(encoding="utf-8")
    for department in load_bundle(out).manifest.departments:
        assert department in text
    assert said["engines"] == said["verified"] == len(TASKS) + 1


def test_teacher_and_experts_have_learnt_what_a_network_has_to_learn(
    demo: tuple[Path, dict[str, object]],
) -> None:
    metrics = {t.name: t.metrics for t in load_bundle(demo[0]).manifest.tasks}
    assert set(metrics) == TASKS
    for task, scores in metrics.items():
        assert scores["expert"]["accuracy"] > 0.9, f"{task}: {scores}"
        assert scores["teacher"]["auc"] > 0.9, f"{task}: {scores}"


def test_the_engines_score_what_the_torch_model_scored(
    demo: tuple[Path, dict[str, object]],
) -> None:
    profile = read_profile(demo[0] / "profile" / PROFILE)
    known = {t.name: t.metrics["expert"]["accuracy"] for t in load_bundle(demo[0]).manifest.tasks}
    measured = {
        score.task: score.accuracy.value
        for engine in profile.engines
        if engine.kind == "expert"
        for score in engine.scores
    }
    assert measured == pytest.approx(known)

"""Assertions: what they may say, what holds, and what a benchmark with them says and exits with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorkd_deploy import benchmark, cli
from lorkd_deploy.errors import UsageError
from lorkd_deploy.profiling import benchmark as benchmark_module
from lorkd_deploy.profiling.figures import FIGURES
from lorkd_deploy.profiling.gates import Gate, parse_gates

Hospital = Any  # the fixture's class, in conftest.py


def test_an_assertion_is_metric_relation_number() -> None:
    found = parse_gates(["p90_ms<8", " accuracy_drop <= -0.5", "ratio_vs_teacher>=1e1"])
    assert [(g.metric, g.relation, g.bound) for g in found] == [
        ("p90_ms", "<", 8),
        ("accuracy_drop", "<=", -0.5),
        ("ratio_vs_teacher", ">=", 10),
    ]


@pytest.mark.parametrize("text", ["p90_ms", "p90_ms=8", "p90_ms<eight", "<8", "p90_ms<8 ms", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        parse_gates([text])


def test_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="names no metric") as caught:
        parse_gates(["p95_ms<8"])
    assert all(metric in (caught.value.fix or "") for metric in FIGURES)


def test_what_was_not_measured_does_not_hold() -> None:
    gate = Gate("auc>0", "auc", ">", 0)
    assert (gate.holds(None), gate.holds(0.0), gate.holds(0.1)) == (False, False, True)


def test_a_benchmark_with_assertions(
    hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", str(hospital.run), "--task", "warm", "--seconds", "0.001", "--json"]
    arguments += ["--iterations", "1", "--rounds", "1"]
    asked = ["accuracy>=100", "accuracy_drop<-99", "size_mib<1", "p50_ms>=0", "p50_ms<0"]
    for text in asked:
        arguments += ["--assert", text]
    assert cli.main(arguments) == 3
    shown = capsys.readouterr()
    profile = json.loads(shown.out)
    assert [entry["text"] for entry in profile["assertions"]] == asked
    assert [entry["passed"] for entry in profile["assertions"]] == [True] * 4 + [False]
    assert {entry["engine"] for entry in profile["assertions"]} == {"day/warm/trial-fp32"}
    assert "day/warm/trial-fp32: p50_ms<0 does not hold" in shown.err
    assert profile["assertions"][1]["value"] == pytest.approx(-100)


def test_what_is_to_decide_something_takes_ten_rounds(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert benchmark_module.ROUNDS == 10
    monkeypatch.setattr(benchmark_module, "ROUNDS", 3)  # which takes less time
    quick: dict[str, Any] = {"seconds": 0.001, "iterations": 1, "teacher": False}
    profile = benchmark(hospital.run, task=["warm"], assertions=["ratio_vs_teacher>0"], **quick)
    assert profile.protocol.rounds == 3
    (entry,) = profile.assertions
    assert (entry.value, entry.passed) == (None, False)  # without the teacher there is no ratio


def test_a_wrong_assertion_is_told_before_anything_is_measured(hospital: Hospital) -> None:
    with pytest.raises(UsageError):
        benchmark(hospital.run, assertions=["speed>1"])
    assert not (hospital.run / "profile").exists()

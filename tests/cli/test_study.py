"""`lorkd study` as a user calls it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_recipe import tiny_recipe, write_recipe

from lorkd_deploy import cli

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def test_a_study_without_a_teacher_in_one_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tiny_recipe()["train"] | {"epochs": 1}
    recipe = write_recipe(tmp_path / "tiny.yaml", train=short, transfer={"kind": "none"})
    asked = ["study", str(recipe), "--out", str(tmp_path / "s"), "--methods", "mtl,experts"]
    asked += ["--seeds", "2", "--workers", "2"]
    assert cli.main([*asked, "--quiet"]) == 0
    assert (tmp_path / "s" / "study.html").exists()
    assert not (tmp_path / "s" / "foundation").exists()
    assert capsys.readouterr().out == ""
    assert cli.main([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["variants"] == ["mtl", "experts"]
    assert result["seeds"] == [3, 4]
    assert {"better", "worse", "not shown"} >= {
        found["verdict"] for found in result["comparison"]["differences"]
    }
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "experts minus each other method" in said
    assert "In mean AUC over all tasks" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--methods", "mtl-dk"], "no method is called"),
        (["--scheduler", "tcp://10.1.2.3:8786"], "only its users can reach"),
    ],
)
def test_what_is_wrong_is_a_fault_of_the_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert cli.main(["study", "demo", "--out", str(tmp_path / "s"), *given]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()

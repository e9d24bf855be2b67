"""examples/: the notebook and both scripts run, on networks that are small."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy import export, predict, verify
from tests.deploy.made_run import make_run
from tests.readme import ROOT

EXAMPLES = ROOT / "examples"
SMALL = [
    "teacher.architecture=tests.tiny_backbone:backbone",
    "student.architecture=tests.tiny_backbone:backbone",
    "experts.rank=4",
    "preprocess.size=32",
    "train.epochs=1",
    "teacher.train.epochs=1",
    "parity.inputs=4",
    "parity.test_images=8",
]


def script(name: str) -> ModuleType:
    """An example as a module; `main` runs it."""
    module = ModuleType(name)
    exec((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), module.__dict__)
    return module


def test_an_engine_answers_the_same_without_this_package(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path / "data")
    export(run, "onnx", task=["lung"])
    picture = tmp_path / "scan.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(picture)
    said = script("engine_without_us").main(
        str(run / "export" / "ward" / "lung" / "onnx-fp32"), str(picture)
    )
    (ours,) = predict(run, "lung", [picture])
    assert said == pytest.approx(ours.probabilities, abs=1e-5)
    body = (EXAMPLES / "engine_without_us.py").read_text(encoding="utf-8")
    assert "lorkd_deploy" not in body


def test_experts_train_in_a_loop_of_ones_own() -> None:
    pytest.importorskip("torch", reason="training needs torch")
    scores = script("own_loop").main(steps=4)  # it compares each plain network with its expert
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    from lorkd_deploy.training.proposal.pace import Pace

    speed = Pace(teacher=0.0004, student=0.0001)  # without measuring, which has its own test
    monkeypatch.setattr("lorkd_deploy.training.init.measured", lambda *_: speed)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "own_department.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "CHANGES" in cells[0]
    names: dict[str, object] = {}
    for cell in cells:
        exec(cell, names)
        names["CHANGES"] = SMALL
    shown = capsys.readouterr().out
    assert shown.count("passed") == 2  # the engine and the teacher's
    assert "FAILED" not in shown
    assert "patient" not in shown
    delivered = verify("delivered")
    assert [one.passed for one in delivered] == [True]
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # nobody's machine in it

"""A target that someone else installs goes the whole way, with no edit anywhere in this project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.predict import predict
from tests.trial_target import RUNTIME, install_target


def lorkd(*arguments: object) -> Any:
    """What the command line answers in a process of its own, which has no torch imported."""
    command = [sys.executable, "-m", "lorkd_deploy", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_from_export_to_prediction(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_target(tmp_path / "site", monkeypatch, "trial", RUNTIME)
    scan = tmp_path / "scan.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 30), np.uint8)).save(scan)
    export(run, task=["eye"])
    expected = predict(run, "eye", [scan])[0].probabilities

    of_eye = ("--target", "trial", "--task", "eye")
    (artifact,) = lorkd("export", run, *of_eye, "--sample", "python")
    assert (artifact["target"], artifact["files"][0]["name"]) == ("trial", "engine.trial")
    assert artifact["parity"]["status"] == "passed"
    assert [link["after"] for link in artifact["parity"]["links"]] == ["fused ONNX", "engine"]
    found = {v["engine"]: v for v in lorkd("verify", run)}["clinic/eye/trial-fp32"]
    assert (found["passed"], found["onnx_not_here"]) == (True, None)
    (answer,) = lorkd("predict", run, *of_eye, scan)
    assert answer["probabilities"] == pytest.approx(expected, abs=2e-6)

    program = Path(artifact["folder"]) / "sample-python" / "classify.py"
    said = subprocess.run(
        [sys.executable, "-I", program, scan], capture_output=True, text=True, check=True
    ).stdout
    printed = {line.split("\t")[1]: float(line.split("\t")[2]) for line in said.splitlines()}
    assert printed == pytest.approx(expected, abs=2e-6)
    assert (program.parent / "requirements.txt").read_text().endswith("lorkd-trial==1.0\n")

"""A folder of inputs that others reported, each with its `run.sh`, whose last line is `rc N`.

`LORKD_CASES` names the folder. Each kind has a test of its own beside the room that it concerns.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("LORKD_CASES")
WORKS = ""
OUTCOMES = {
    "batch-statistics": "depends on the images beside it",
    "checkpoint-densenet-old-names": "the nearest name it has is",
    "checkpoint-lfs-pointer": "Git LFS pointer",
    "checkpoint-net-key": WORKS,
    "checkpoint-sparse": WORKS,
    "checkpoint-torchscript": "TorchScript program",
    "checkpointing": WORKS,
    "checkpointing-timm": WORKS,
    "double-student": WORKS,
    "exif-jpeg": WORKS,
    "exif-png": WORKS,
    "folder-formats": WORKS,
    "folder-patients": WORKS,
    "frozen-half-missing": "the checkpoint lacks|it has .* of the .* weights",
    "half-student": WORKS,
    "int8-weight-norm": WORKS,
    "late-len-batch": WORKS,
    "late-max-pool": "ONNX has nothing for torch's adaptive_max_pool2d",
    "late-registered-twice": WORKS,
    "late-unused-buffer": WORKS,
    "late-unused-norm": WORKS,
    "latin1-class": "UTF-8",
    "latin1-file": "UTF-8",
    "nan-checkpoint": "not finite",
    "nan-student": "not finite",
    "no-home": WORKS,
    "old-weight-norm-extract": WORKS,
    "scalar-parameter": WORKS,
    "stdout-latin1": WORKS,
    "view-flatten-student": WORKS,
    "view-flatten-teacher": WORKS,
}


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="LORKD_CASES names no folder of cases")
@pytest.mark.parametrize("name", OUTCOMES)
def test_a_reported_case_works_or_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    lorkd = f"{sys.executable} -m lorkd_deploy"
    ran = subprocess.run(
        ["bash", str(Path(FOLDER or "") / name / "run.sh")],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        env=os.environ | {"LORKD": lorkd, "PYTHON": sys.executable, "WORK": str(tmp_path)},
    )
    said = ran.stdout + ran.stderr
    assert "Traceback" not in said, said
    code = re.findall(r"^rc (\d+)$", ran.stdout, re.MULTILINE)[-1]
    if OUTCOMES[name]:
        assert code != "0" and re.search(OUTCOMES[name], said), said
    else:
        assert code == "0", said

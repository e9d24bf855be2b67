"""DICOM files through real engines, and what of their headers is found in what is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy.cli import main
from lorkd_deploy.deploy.artifact import EngineTask
from lorkd_deploy.deploy.predict import predict
from lorkd_deploy.dicom.rules import DicomRules
from lorkd_deploy.errors import ImageError, UsageError
from tests.deploy.made_run import PREPROCESS, true_logits
from tests.dicom.files import PATIENT, dataset, real_file, saved

PLANTED = (PATIENT.split("^", maxsplit=1)[0], "PLANTED", "Plantedref", "19501231", "20260102")
RAMP = np.arange(4096).reshape(64, 64)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two CT images, one below a folder and without an ending, and what is none."""
    made = dataset(RAMP, WindowCenter="2048", WindowWidth="4096")
    saved(made, tmp_path / "scans" / "a.dcm")
    saved(made, tmp_path / "scans" / "series" / "IM0001")
    (tmp_path / "scans" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    return tmp_path / "scans"


def test_probabilities_of_dicom_files(exported: Path, scans: Path) -> None:
    found = predict(exported, "eye", [scans])
    assert [Path(one.file).name for one in found] == ["a.dcm", "IM0001"]
    eight = np.floor(np.clip(((RAMP - 2047.5) / 4095 + 0.5) * 255, 0, 255) + 0.5).astype(np.uint8)
    logits = true_logits(exported, "eye", PREPROCESS([eight]))[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    for one in found:
        assert list(one.probabilities.values()) == pytest.approx(expected, abs=1e-5)
        assert one.dicom is not None
        assert (one.dicom.modality, one.frame) == ("CT", 1)


def test_nothing_else_of_the_header_is_in_any_output(
    exported: Path,
    scans: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    arguments = [str(exported), "--task", "eye", str(scans), "--csv", str(out / "a.csv")]
    arguments += ["--save-input", str(out / "a.npy")]
    assert main(["predict", *arguments]) == 0
    assert main(["predict", *arguments, "--json"]) == 0
    assert main(["predict", *arguments, "--dicom", "modality=[MR]"]) == 1
    assert main(["predict", *arguments, "--dicom", "frame=9"]) == 1
    said = capsys.readouterr()
    assert "the modality is CT, this task answers MR" in said.err
    assert "any; write data.dicom.modality" in said.err
    written = b"".join(file.read_bytes() for file in sorted(out.iterdir()))
    for text in (said.out, said.err, caplog.text, written.decode("latin-1")):
        assert text
        assert not [word for word in PLANTED if word.lower() in text.lower()]


def test_json_has_what_may_be_recorded(
    exported: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(exported), "--task", "eye", str(scans / "a.dcm"), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert set(one["dicom"]) == {
        "sop_class_uid",
        "sop_instance_uid",
        "modality",
        "photometric",
        "rows",
        "columns",
    }


def test_rules_given_here_replace_the_recipes(exported: Path, tmp_path: Path) -> None:
    file = saved(dataset(RAMP), tmp_path / "b.dcm")
    with pytest.raises(ImageError, match="no window, and values of 12 bits") as caught:
        predict(exported, "eye", [file])
    assert caught.value.where == str(file)
    predict(exported, "eye", [file], dicom={"window": "minmax"})
    with pytest.raises(UsageError, match="--dicom window"):
        predict(exported, "eye", [file], dicom={"window": "wide"})
    with pytest.raises(UsageError, match="--dicom colour"):
        predict(exported, "eye", [file], dicom={"colour": 1})


def test_the_recipes_rules_travel_with_the_engine() -> None:
    rules = DicomRules(modality=("CR",), window=(1.0, 2.0))
    described = EngineTask(name="a", kind="multiclass", classes=("x", "y"), start=0, stop=2)
    task = described.model_copy(update={"dicom": rules})
    assert EngineTask.model_validate(task.model_dump(mode="json")) == task
    assert rules.sha256 != DicomRules().sha256


def test_a_real_chest_image_through_onnx(exported: Path) -> None:
    (answer,) = predict(exported, "lung", [real_file("RG1_J2KI")])
    assert answer.dicom is not None
    assert (answer.dicom.modality, answer.dicom.rows) == ("CR", 1955)
    assert sum(answer.probabilities.values()) == pytest.approx(1)

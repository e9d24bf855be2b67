"""SR and FHIR, checked by other people's tools, from a packed department."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.cli import main
from lorkd_deploy.clinic.reports import write_reports
from lorkd_deploy.deploy.predict import predict
from lorkd_deploy.errors import ImageError
from tests.dicom.files import PATIENT, STUDY, dataset, real_file, saved

RAMP = np.arange(4096).reshape(64, 64)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    made = dataset(RAMP, WindowCenter="2048", WindowWidth="4096")
    return saved(made, tmp_path / "scan.dcm")


def valid(report: Path) -> None:
    """No error by David Clunie's dciodvfy."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    said = subprocess.run(["dciodvfy", str(report)], capture_output=True, text=True, check=False)
    text = said.stdout + said.stderr
    assert said.returncode == 0, text
    assert "Error" not in text
    assert "ComprehensiveSR" in text


def contents(item: Any) -> list[Any]:
    """All content items of a report, whatever their depth."""
    found = []
    for child in item.get("ContentSequence") or []:
        found += [child, *contents(child)]
    return found


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("task", ["eye", "findings"])
def test_a_report_in_sr(
    department: Path, scan: Path, tmp_path: Path, target: str, task: str
) -> None:
    pydicom = pytest.importorskip("pydicom")
    predictions = predict(department, task, [scan], target=target)
    (file,) = write_reports(department, predictions, target=target, sr=tmp_path / "sr")
    report, source = pydicom.dcmread(file), pydicom.dcmread(scan)
    for same in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber"):
        assert report[same].value == source[same].value
    assert report.Modality == "SR"
    assert report.SeriesInstanceUID != source.SeriesInstanceUID
    items = contents(report)
    numbers = [i for i in items if i.ValueType == "NUM"]
    percents = [float(i.MeasuredValueSequence[0].NumericValue) for i in numbers]
    expected = [100 * p for p in predictions[0].probabilities.values()]
    assert percents == pytest.approx(expected, rel=1e-5)
    named = [
        i.ConceptCodeSequence[0].CodeMeaning
        for i in items
        if i.ValueType == "CODE" and i.ConceptNameCodeSequence[0].CodeValue == "121071"
    ]
    assert named == list(predictions[0].probabilities)
    present = [
        i.ConceptCodeSequence[0].CodeMeaning == "Present"
        for i in items
        if i.ValueType == "CODE" and i.ConceptNameCodeSequence[0].CodeValue == "705057003"
    ]
    labels = predictions[0].label.split(", ")
    assert present == [name in labels for name in predictions[0].probabilities]
    texts = " ".join(str(i.TextValue) for i in items if i.ValueType == "TEXT")
    assert f"lorkd-deploy clinic/{task}/{target}-fp32" in texts
    assert "engine sha256" in texts
    (image,) = {
        i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in items if i.ValueType == "IMAGE"
    }
    assert image == source.SOPInstanceUID
    valid(file)


def test_a_bundle_in_fhir(department: Path, scan: Path, tmp_path: Path) -> None:
    bundle_module = pytest.importorskip("fhir.resources.R4B.bundle")
    predictions = predict(department, "eye", [scan])
    (file,) = write_reports(department, predictions, fhir=tmp_path / "fhir")
    text = file.read_text(encoding="utf-8")
    bundle_module.Bundle.model_validate_json(text)
    entries = json.loads(text)["entry"]
    urls = {entry["fullUrl"] for entry in entries}
    by_type: dict[str, list[Any]] = {}
    for entry in entries:
        by_type.setdefault(entry["resource"]["resourceType"], []).append(entry["resource"])
    assert {kind: len(found) for kind, found in by_type.items()} == {
        "DiagnosticReport": 1,
        "Observation": 4,
        "Patient": 1,
        "ImagingStudy": 1,
        "Device": 1,
    }
    references = [part.split('"')[3] for part in text.split("{") if '"reference"' in part]
    assert len(references) > 10
    assert set(references) <= urls
    (patient,) = by_type["Patient"]
    assert patient["name"][0]["family"] == PATIENT.split("^", maxsplit=1)[0]
    assert patient["birthDate"] == "1950-12-31"
    assert by_type["ImagingStudy"][0]["identifier"][0]["value"] == f"urn:oid:{STUDY}"
    values = [one["valueQuantity"]["value"] for one in by_type["Observation"][1:]]
    expected = [100 * p for p in predictions[0].probabilities.values()]
    assert values == pytest.approx(expected, rel=1e-5)
    assert by_type["DiagnosticReport"][0]["status"] == "preliminary"


def test_the_same_image_and_engine_give_the_same_report_again(
    department: Path, scan: Path, tmp_path: Path
) -> None:
    both = [tmp_path / "sr", tmp_path / "fhir"]
    for _ in range(2):
        predictions = predict(department, "eye", [scan])
        write_reports(department, predictions, sr=both[0], fhir=both[1])
    assert [len(list(folder.iterdir())) for folder in both] == [1, 1]
    write_reports(department, predict(department, "findings", [scan]), sr=both[0])
    assert len(list(both[0].iterdir())) == 2


def test_an_answer_that_is_none_is_reported_as_such(
    department: Path, scan: Path, tmp_path: Path
) -> None:
    pydicom = pytest.importorskip("pydicom")
    (one,) = predict(department, "eye", [scan])
    outside = one.model_copy(update={"outcome": "outside", "label": "outside", "probabilities": {}})
    for file in write_reports(department, [outside], sr=tmp_path / "a", fhir=tmp_path / "b"):
        if file.suffix == ".json":
            assert '"valueString": "outside"' in file.read_text(encoding="utf-8")
            continue
        items = contents(pydicom.dcmread(file))
        assert not [i for i in items if i.ValueType == "NUM"]
        meanings = [i.ConceptCodeSequence[0].CodeMeaning for i in items if i.ValueType == "CODE"]
        assert {"outside", "Present"} <= set(meanings)
        valid(file)


def test_a_png_has_no_patient_to_report_of(department: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.npy"
    np.save(image, (RAMP % 256).astype(np.uint8))
    predictions = predict(department, "eye", [image])
    with pytest.raises(ImageError, match="this is none"):
        write_reports(department, predictions, sr=tmp_path / "sr")
    assert not (tmp_path / "sr").exists()


@pytest.mark.parametrize("name", ["693_UNCR", "RG3_J2KR", "US1_J2KR", "vlut_04"])
def test_reports_on_real_files(department: Path, tmp_path: Path, name: str) -> None:
    predictions = predict(department, "eye", [real_file(name)])
    for file in write_reports(department, predictions, sr=tmp_path / "a", fhir=tmp_path / "b"):
        if file.suffix == ".dcm":
            valid(file)


def test_by_the_command(
    department: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--sr", str(tmp_path / "sr"), "--fhir", str(tmp_path / "fhir")]
    assert main(["predict", str(department), "--task", "eye", str(scan), *where]) == 0
    assert "wrote 2 reports" in capsys.readouterr().out
    assert len(list((tmp_path / "sr").glob("*.dcm"))) == 1
    assert len(list((tmp_path / "fhir").glob("*.json"))) == 1

"""The ML-BOM of a department: valid by CycloneDX 1.6's schema, its hashes those of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorkd_deploy.cli import main
from lorkd_deploy.deploy.artifact import find_artifacts
from lorkd_deploy.errors import BundleError, UsageError
from lorkd_deploy.reporting.bom import bom
from lorkd_deploy.reporting.report import report
from lorkd_deploy.storage import sha256_file
from tests.deploy.made_run import make_run
from tests.reporting.run_folder import TASKS, build_run

pytest.importorskip("cyclonedx", reason="the extra `sign` is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("bom") / "run")


def valid(document: str) -> dict[str, Any]:
    """The document, after the library's own check against the schema, strict one."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    pytest.importorskip("jsonschema", reason="cyclonedx-python-lib[json-validation] is missing")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None
    found: dict[str, Any] = json.loads(document)
    return found


def test_every_department_has_one_that_the_schema_takes(run: Path) -> None:
    files = bom(run)
    assert [file.name for file in files] == [f"{task[0]}.cdx.json" for task in TASKS]
    for file, task in zip(files, TASKS, strict=True):
        document = valid(file.read_text(encoding="utf-8"))
        assert document["specVersion"] == "1.6"
        assert document["metadata"]["component"]["name"] == task[0]
        models = {c["name"]: c for c in document["components"] if "modelCard" in c}
        assert list(models) == [task[1]]
        assert not [name for _, name, *_ in TASKS if name != task[1] and name in str(models)]


def test_the_hashes_are_those_of_the_files(run: Path) -> None:
    (file,) = bom(run, department=["breast"])
    listed = {
        one["name"]: one["hashes"][0]["content"]
        for one in valid(file.read_text(encoding="utf-8"))["components"]
        if one["type"] == "file"
    }
    recorded = {
        f"export/{engine.name}/{file.name}": file.sha256
        for engine in find_artifacts(run)
        for file in engine.files
        if engine.department == "breast"
    }
    weights = ("base", "experts/ultrasound")
    files = [f"bundle/{name}.safetensors" for name in weights] + ["bundle/template.onnx"]
    assert recorded and listed == recorded | {name: sha256_file(run / name) for name in files}


def test_the_model_card_says_what_was_measured_and_on_what(run: Path) -> None:
    (file,) = bom(run, department=["blood"])
    document = valid(file.read_text(encoding="utf-8"))
    by_ref = {component["bom-ref"]: component for component in document["components"]}
    card = by_ref["task:cells"]["modelCard"]
    (data,) = card["modelParameters"]["datasets"]
    assert by_ref[data["ref"]]["name"] == "cellsmnist"
    metrics = {m["type"]: m for m in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["accuracy"]["value"] == "0.9380" and "test split" in metrics["accuracy"]["slice"]
    low, high = metrics["accuracy"]["confidenceInterval"].values()
    assert float(low) < 0.938 < float(high)
    considered = card["considerations"]
    assert considered["useCases"][0].startswith("Not a medical device.")
    assert any("Below the foundation model" in one for one in considered["technicalLimitations"])
    needs = {one["ref"]: one.get("dependsOn", []) for one in document["dependencies"]}
    assert data["ref"] in needs["task:cells"] and "task:cells" in needs["department"]
    packages = {c["purl"] for c in document["components"] if "purl" in c}
    assert packages and all(purl in needs["task:cells"] for purl in packages)


def test_a_name_is_text_and_not_markdown(tmp_path: Path) -> None:
    department, _, *rest = TASKS[0]
    run = build_run(tmp_path / "run", tasks=((department, "ultra_sound", *rest),))
    (file,) = bom(run)
    (card,) = [c["modelCard"] for c in valid(file.read_text())["components"] if "modelCard" in c]
    assert "the data below (ultra_sound), on" in card["considerations"]["useCases"][1]
    (card,) = report(run).model_cards
    assert "the data below (ultra\\_sound), on" in card.read_text()


def test_the_command_and_what_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run without engines or a profile too, as it is right after the training."""
    run, out = make_run(tmp_path / "run", tmp_path / "data"), tmp_path / "out"
    words = ["bom", str(run), "--department", "clinic", "--out", str(out), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == [str(out / "clinic.cdx.json")]
    document = valid((out / "clinic.cdx.json").read_text(encoding="utf-8"))
    cards = [one["modelCard"] for one in document["components"] if "modelCard" in one]
    assert len(cards) == 2
    (first, _) = cards[0]["quantitativeAnalysis"]["performanceMetrics"]
    assert first == {"type": "accuracy", "value": "0.5000", "slice": "test split, before export"}
    with pytest.raises(UsageError, match="no department is called 'ward-x'"):
        bom(run, department=["ward-x"])
    base = run / "bundle" / "base.safetensors"
    base.write_bytes(base.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="changed"):
        bom(run)

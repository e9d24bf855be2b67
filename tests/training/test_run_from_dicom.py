"""From DICOM files in a recipe to an engine's answer about one; the rules go with every bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_backbone
import torch
from safetensors.torch import save_file
from tiny_recipe import write_recipe

from lorkd_deploy import decompose, export, extract, load_bundle, pack, predict, write_reports
from lorkd_deploy.deploy.artifact import find_artifacts
from lorkd_deploy.dicom.rules import DicomRules
from lorkd_deploy.errors import ImageError
from lorkd_deploy.storage import read_tensors
from tests.dicom.files import PATIENT, dataset, saved

RULES = {"modality": ["CT"], "window": [40, 400]}
OTHER = {"modality": ["MR"], "window": "minmax"}
SHORT = {"epochs": 8, "batch_size": 16, "lr": 0.01, "checkpoint_minutes": 0}


def scan(file: Path, bright: bool, seed: int, modality: str = "CT") -> Path:
    """Noise around 0 or around 150 HU in 16 × 16 px: easily told apart, in that window alone."""
    noise = np.random.default_rng(seed).normal(150 if bright else 0, 40, (16, 16))
    made = dataset((noise + 1024).astype(int), RescaleSlope="1", RescaleIntercept="-1024")
    made.PatientID, made.Modality = f"PLANTED-{seed}", modality
    return saved(made, file)


def department(name: str, folder: Path, rules: dict[str, Any]) -> dict[str, Any]:
    data = {"source": "dicom", "path": str(folder), "dicom": rules}
    return {"name": name, "tasks": [{"name": f"{name}-task", "data": data}]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `run` of the recipe `recipe.yaml`, from 60 files in `scans`."""
    folder = tmp_path_factory.mktemp("from-dicom")
    for seed in range(60):
        scan(folder / "scans" / ("dark", "bright")[seed % 2] / f"{seed}.dcm", seed % 2 == 1, seed)
    recipe = write_recipe(
        folder / "recipe.yaml",
        departments=[department("chest", folder / "scans", RULES)],
        transfer={"kind": "none"},
        train=SHORT,
    )
    decompose(recipe, folder / "run")
    return folder


def test_from_dicom_files_to_an_answered_one_and_its_report(trained: Path, tmp_path: Path) -> None:
    run = trained / "run"
    export(run, "onnx")
    (engine,) = find_artifacts(run)
    assert {one.on for one in engine.parity.compared} == {"inputs", "images"}
    bundle = load_bundle(run)
    task = bundle.task("chest-task")
    assert task.dicom == DicomRules.model_validate(RULES)
    assert task.data["rules_sha256"] == task.dicom.sha256 and task.classes == ("bright", "dark")
    pack(run, "chest", tmp_path / "chest")
    files = [scan(tmp_path / f"{kind}.dcm", kind, 100 + kind) for kind in (False, True)]
    answers = predict(tmp_path / "chest", "chest-task", files)
    assert [one.label for one in answers] == ["dark", "bright"]
    with pytest.raises(ImageError, match="the modality is MR, this task answers CT"):
        predict(run, "chest-task", [scan(tmp_path / "mr.dcm", True, 3, "MR")])
    written = write_reports(tmp_path / "chest", answers, sr=tmp_path / "sr")
    assert len(written) == 2
    planted = ("PLANTED", PATIENT.split("^", maxsplit=1)[0])
    for file in (file for file in run.rglob("*") if file.is_file()):
        assert not [word for word in planted if word.encode() in file.read_bytes()], file


def test_a_grown_department_has_rules_of_its_own(trained: Path, tmp_path: Path) -> None:
    for seed in range(40):
        kind = ("dark", "bright")[seed % 2]
        scan(tmp_path / "heads" / kind / f"{seed}", seed % 2 == 1, 500 + seed, "MR")
    both = [
        department("chest", trained / "scans", RULES),
        department("head", tmp_path / "heads", OTHER),
    ]
    recipe = write_recipe(
        tmp_path / "both.yaml", departments=both, transfer={"kind": "none"}, train=SHORT
    )
    decompose(recipe, tmp_path / "grown", from_run=trained / "run", add_department=["head"])
    bundle = load_bundle(tmp_path / "grown")
    assert bundle.task("chest-task") == load_bundle(trained / "run").task("chest-task")
    assert bundle.task("head-task").dicom == DicomRules.model_validate(OTHER)


def test_an_extracted_expert_has_the_recipes_rules(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tiny_backbone.backbone().state_dict()
    tuned = {name: value + 0.1 if value.ndim > 1 else value for name, value in base.items()}
    tuned |= {"fc.weight": torch.randn(2, 16), "fc.bias": torch.randn(2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    models = {"chest-task": tmp_path / "tuned.safetensors"}
    extract(trained / "recipe.yaml", tmp_path / "base.safetensors", models, tmp_path / "run")
    bundle = load_bundle(tmp_path / "run")
    assert bundle.task("chest-task").dicom == DicomRules.model_validate(RULES)
    head = read_tensors(bundle.path / "experts" / "chest-task.safetensors")["head:weight"]
    assert np.array_equal(head, tuned["fc.weight"].numpy())

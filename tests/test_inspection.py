from __future__ import annotations

from pathlib import Path

import pytest

from lorkd_deploy.deploy.export import export
from lorkd_deploy.errors import ArtifactError, BundleError
from lorkd_deploy.inspection import Inspection, inspect
from lorkd_deploy.storage import sha256_file
from tests.deploy.made_run import DEPARTMENTS, make_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORKD_DATA", str(tmp_path / "data"))
    return make_run(tmp_path / "run", tmp_path / "data")


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_a_bundle(run: Path) -> None:
    found = inspect(run / "bundle")
    assert found.kind == "bundle"
    bundle = found.bundle
    assert bundle is not None
    assert bundle.departments == DEPARTMENTS
    assert [(t.rank, t.alpha, t.metrics["expert"]["auc"]) for t in bundle.tasks] == [
        (2, 5.0, 0.5)
    ] * 4
    assert bundle.sha256 == sha256_file(run / "bundle" / "manifest.json")
    assert set(bundle.bytes) == {"manifest", "base", "experts", "parity", "template", "total"}
    assert bundle.bytes["total"] == size_of(run / "bundle")
    assert bundle.bytes["experts"] == size_of(run / "bundle" / "experts")
    assert bundle.files["base.safetensors"] == sha256_file(run / "bundle" / "base.safetensors")
    assert bundle.versions == {"lorkd-deploy": "0.1.0"}


def test_a_run_and_an_engine(run: Path) -> None:
    artifacts = export(run, task=["eye"])
    found = inspect(run)
    assert (found.kind, len(found.engines)) == ("run", 1)
    assert found.bundle is not None and found.bundle.kind == "experts"
    assert found.teacher is not None and found.teacher.kind == "teacher"
    engine = inspect(artifacts[0].folder)
    assert (engine.kind, engine.engines) == ("engine", found.engines)
    assert engine.engines[0].name == "clinic/eye/onnx-fp32"
    assert engine.engines[0].bytes == (artifacts[0].folder / "model.onnx").stat().st_size
    assert engine.engines[0].record.parity.status == "passed"
    assert Inspection.model_validate_json(found.model_dump_json()).bundle == found.bundle


def test_damage_is_found(run: Path) -> None:
    folder = export(run, task=["eye"])[0].folder
    (folder / "model.onnx").write_bytes(b"other")
    for path in (folder, run):
        with pytest.raises(ArtifactError, match=r"model\.onnx has changed"):
            inspect(path)
    (run / "bundle" / "template.onnx").unlink()
    with pytest.raises(BundleError, match=r"template\.onnx is missing"):
        inspect(run)


def test_nothing_to_inspect(tmp_path: Path, run: Path) -> None:
    with pytest.raises(BundleError, match="no run and no bundle"):
        inspect(tmp_path)
    (run / "bundle" / "manifest.json").unlink()
    (run / "teacher" / "manifest.json").unlink()
    with pytest.raises(BundleError, match="holds nothing yet"):
        inspect(run)

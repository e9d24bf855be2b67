"""The links of the chain: the trained model, the fused one, its precision, the engine."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy import cli
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.data import open_data
from lorkd_deploy.deploy import build as build_module
from lorkd_deploy.deploy.artifact import Artifact, open_engine, read_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.proof import parity as parity_module
from lorkd_deploy.deploy.proof.parity import Link, compare
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import ArtifactError, GateError
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.precisions.table import precision_of
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.runtime import Probe, exporter
from tests.deploy.made_run import PREPROCESS, ROWS, make_run, true_logits

EXACT, HALF = 1e-4, 1e-2


def steps(artifact: Artifact) -> list[tuple[str, str]]:
    return [(link.before, link.after) for link in artifact.parity.links]


def worst(link: Link) -> float:
    return max(entry.max_abs or 0.0 for entry in link.compared)


def images_of(run: Path, task: str) -> tuple[Any, Any]:
    """Network input and labels of the task's parity images, without the product's own way."""
    bundle = load_bundle(run)
    recipe = parse_recipe(bundle.manifest.recipe, where=run)
    test = open_data({t.name: t.data for t in recipe.tasks}[task]).test
    return PREPROCESS(test.images[row] for row in ROWS), test.labels[ROWS]


def test_a_fp32_model_is_its_own_chain(run: Path) -> None:
    (artifact,) = export(run, task=["eye"])
    assert artifact.parity.links == ()
    assert artifact.parity.links_not_here is None


def test_the_links_of_fp16_lie_where_they_arise(run: Path) -> None:
    (artifact,) = export(run, precision="fp16", task=["eye"])
    fused, half = artifact.parity.links
    assert steps(artifact) == [("unfused torch", "fused ONNX"), ("fused ONNX", "engine")]
    assert worst(fused) < EXACT < worst(half) < HALF
    for exact, coarse in zip(fused.compared, half.compared, strict=True):
        assert exact.tolerance < coarse.tolerance
    assert [(e.on, e.rows) for e in half.compared] == [("inputs", 8), ("images", 5)]
    assert read_artifact(artifact.folder) == artifact
    (verdict,) = verify(run)
    assert verdict.parity == artifact.parity


def test_openvino_has_the_model_that_it_was_given_in_between(run: Path) -> None:
    pytest.importorskip("openvino", reason="the target's runtime is not installed")
    (artifact,) = export(run, "openvino", task=["eye"])
    assert steps(artifact) == [("unfused torch", "fused ONNX"), ("fused ONNX", "engine")]
    assert all(worst(link) < EXACT for link in artifact.parity.links)


@pytest.mark.slow
def test_verify_has_every_link_of_int8_or_says_which_is_missing(run: Path, data: Path) -> None:
    pytest.importorskip("openvino", reason="the target's runtime is not installed")
    if not find_spec("nncf"):
        pytest.skip("int8 needs NNCF, not installed here")
    (artifact,) = export(run, "openvino", precision="int8", task=["eye"])
    assert steps(artifact) == [
        ("unfused torch", "fused ONNX"),
        ("fused ONNX", "int8 ONNX"),
        ("int8 ONNX", "engine"),
    ]
    (verdict,) = verify(run)
    assert verdict.parity == artifact.parity
    assert verdict.onnx_not_here is None
    (data / "eye.npz").unlink()
    (verdict,) = verify(run)
    assert verdict.passed and verdict.parity is not None
    assert [link.after for link in verdict.parity.links] == ["fused ONNX", "engine"]
    assert "the int8 ONNX model: " in str(verdict.parity.links_not_here)
    assert "eye.npz" in str(verdict.onnx_not_here)


def test_a_fused_model_that_is_wrong_is_told_apart_from_its_target(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Within what fp16 may differ, and far outside of what fusing may.
    def faulty(bundle: Bundle, engine: str, **options: Any) -> bytes:
        tensors = {name: value.copy() for name, value in bundle.fuse(engine).items()}
        tensors["head.bias"][0] += 2e-3
        return onnx_model(bundle, engine, tensors=tensors, **options)

    monkeypatch.setattr(build_module, "onnx_model", faulty)
    with pytest.raises(GateError, match="the fused model itself, before any target: eye, 8 gen"):
        export(run, precision="fp16", task=["eye"])


def test_without_onnx_runtime_the_links_are_said_to_be_missing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="the target's runtime is not installed")
    absent = Probe(False, False, None, reason="onnxruntime is not installed", fix="pip install")
    monkeypatch.setattr(exporter("onnx"), "probe", lambda: absent)
    (artifact,) = export(run, "openvino", task=["eye"])
    assert artifact.parity.status == "passed"
    assert artifact.parity.links == ()
    assert "onnxruntime is not installed" in str(artifact.parity.links_not_here)


def test_accuracy_and_auc_beside_the_trained_model(run: Path) -> None:
    (artifact,) = export(run, precision="fp16", task=["eye"])
    inputs, images = artifact.parity.compared
    assert (inputs.accuracy, inputs.auc) == (None, None)
    x, labels = images_of(run, "eye")
    with open_engine(artifact) as runner:
        sides = [metrics.score(labels, true_logits(run, "eye", x), "multiclass")]
        sides.append(metrics.score(labels, runner(x), "multiclass"))
    for name, change in (("accuracy", images.accuracy), ("auc", images.auc)):
        assert change is not None
        assert (change.before, change.after) == pytest.approx((sides[0][name], sides[1][name]))
        assert change.difference == pytest.approx(sides[1][name] - sides[0][name])
        assert change.low <= change.difference <= change.high


def test_an_interval_holds_what_flipped() -> None:
    bundle_task = parity_module.TaskEntry(
        name="t", department="d", classes=("a", "b"), kind="multiclass", data={}
    )
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 100)
    before = np.stack([1.0 - labels, labels], axis=1).astype(np.float32)
    after = before.copy()
    after[:10] = after[:10, ::-1]  # ten right answers become wrong ones
    found = compare(bundle_task, "images", before, after, precision_of("int8").tolerance, labels)
    change = found.accuracy
    assert change is not None and found.auc is not None
    assert (change.before, change.after) == (1.0, 0.9)
    assert change.difference == pytest.approx(-0.1)
    assert -0.17 < change.low < -0.1 < change.high < -0.04
    assert found.auc.difference < 0


def test_labels_shipped_with_the_images_need_no_data(tmp_path: Path, data: Path) -> None:
    run = make_run(tmp_path / "shipped", data, images="bundle")
    (data / "eye.npz").unlink()
    (artifact,) = export(run, task=["eye"])
    assert artifact.parity.compared[1].accuracy is not None


def test_a_record_of_before_the_digest_says_what_to_do(run: Path) -> None:
    (artifact,) = export(run, precision="fp16", task=["eye"])
    file = artifact.folder / "artifact.json"
    record = json.loads(file.read_text())
    del record["digest"]
    file.write_text(json.dumps(record | {"schema_version": 2}))
    with pytest.raises(ArtifactError, match="no digest of itself: an older lorkd") as caught:
        read_artifact(artifact.folder)
    assert "lorkd export" in str(caught.value.fix)


def test_the_chain_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, precision="fp16", task=["eye"])
    for command in ("verify", "inspect"):
        assert cli.main([command, str(run)]) == 0
        shown = capsys.readouterr().out
        for part in ("Chain of proof", "unfused torch", "fused ONNX", "points"):
            assert part in shown

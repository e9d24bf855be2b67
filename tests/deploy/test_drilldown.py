"""`lorkd verify --drill-down` names the node that is at fault, whatever the target."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lorkd_deploy import cli
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.deploy.drilldown import Drilled, drill_down, first_difference
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.graphs.nodes import OUTPUT, Cuttable, layer_of
from lorkd_deploy.deploy.proof.reference import Reference
from lorkd_deploy.deploy.verify import Verification, verify
from lorkd_deploy.errors import RuntimeUnavailableError
from lorkd_deploy.runtime import Probe, exporter
from tests import tiny_bundle
from tests.deploy.made_run import rewrite_record

# The tiny network's nodes have no names: each is called by the tensor that it makes.
PLACES = [
    ("conv1.weight", "x1", "Conv", "layer conv1"),
    ("conv2.bias", "x3", "Conv", "layer conv2"),
    ("p.running_mean", "x0", "BatchNormalization", "layer pre"),
    ("val_1", "output", "Gemm", "layer head"),
]


def damage(model: Path, name: str) -> None:
    """Make the largest value of one weight three times as large, with hashes that fit."""
    parsed = onnx.load(model)
    (weight,) = (i for i in parsed.graph.initializer if i.name == name)
    values = onnx.numpy_helper.to_array(weight).copy()
    flat = values.reshape(-1)
    flat[np.abs(flat).argmax()] *= 3
    weight.raw_data = values.tobytes()
    model.write_bytes(parsed.SerializeToString())
    rewrite_record(model.parent)


def verified(run: Path) -> tuple[Verification, Drilled]:
    (verdict,) = verify(run, drill_down=True)
    assert verdict.drilled is not None
    return verdict, verdict.drilled


@pytest.mark.parametrize(("weight", "node", "operator", "layer"), PLACES)
def test_one_weight_off_inside(
    run: Path, weight: str, node: str, operator: str, layer: str
) -> None:
    (artifact,) = export(run, task=["heart"])
    damage(artifact.folder / "model.onnx", weight)
    verdict, drilled = verified(run)
    assert not verdict.passed
    assert (drilled.node, drilled.operator, drilled.layer) == (node, operator, layer)
    assert drilled.difference > drilled.tolerance
    assert not drilled.rebuilt
    assert drilled.models <= 7  # of 8 nodes: it bisects


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_that_is_right(run: Path, precision: str) -> None:
    export(run, precision=precision, task=["heart"])
    verdict, drilled = verified(run)
    assert verdict.passed
    assert drilled.node is None
    assert 0 <= drilled.difference <= drilled.tolerance
    assert str(drilled).startswith("no node differs: ")
    assert drilled.models == 1


def test_half_precision_is_cut_too(run: Path) -> None:
    (artifact,) = export(run, precision="fp16", task=["heart"])
    damage(artifact.folder / "model.onnx", "conv2.weight")
    assert verified(run)[1].node == "x3"


@pytest.mark.skipif(not find_spec("nncf"), reason="int8 needs NNCF, not installed here")
def test_int8_has_the_same_tensors(run: Path) -> None:
    (artifact,) = export(run, precision="int8", task=["heart"])
    model = artifact.folder / "model.onnx"
    parsed = onnx.load(model)
    (bias,) = (i for i in parsed.graph.initializer if i.name == "head.bias")
    bias.raw_data = (onnx.numpy_helper.to_array(bias) + 50).tobytes()
    model.write_bytes(parsed.SerializeToString())
    rewrite_record(artifact.folder)
    assert verified(run)[1].layer == "layer head"


def test_a_target_that_computes_wrongly(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime whose Relu forgets to clip: found by models that are built anew for it."""
    pytest.importorskip("openvino", reason="the target's runtime is not installed")
    (artifact,) = export(run, "openvino", task=["heart"])
    target = exporter("openvino")
    real = target.export

    def faulty(onnx_path: Path, folder: Path, spec: Any) -> Any:
        model = onnx.load(onnx_path)
        for node in model.graph.node:
            if node.output[0] == "x4":
                node.op_type = "Identity"
        onnx.save(model, onnx_path)
        return real(onnx_path, folder, spec)

    monkeypatch.setattr(target, "export", faulty)
    drilled = _drilled(run, artifact)
    assert (drilled.node, drilled.operator, drilled.layer) == ("x4", "Relu", "after conv2")
    assert drilled.rebuilt
    monkeypatch.setattr(target, "export", real)
    weights = bytearray((artifact.folder / "model.bin").read_bytes())
    weights[3] ^= 0x40
    (artifact.folder / "model.bin").write_bytes(bytes(weights))
    rewrite_record(artifact.folder)
    verdict, drilled = verified(run)
    assert not verdict.passed
    assert drilled.node is None
    assert "no node of a fresh build differs" in str(drilled)


def test_nothing_is_kept_of_models_that_are_built_anew(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the target's runtime is not installed")
    kept = tmp_path / "compiled"
    (artifact,) = export(run, "openvino", options={"cache": str(kept)}, task=["heart"])
    assert str(kept) not in (artifact.folder / "artifact.json").read_text()
    before = sorted(kept.iterdir())
    assert before
    assert verified(run)[0].passed
    assert sorted(kept.iterdir()) == before


def _drilled(run: Path, artifact: Artifact) -> Drilled:
    return drill_down(artifact, Reference(load_bundle(run)))


def test_a_fault_behind_two_branches() -> None:
    """One branch differs, the other, which stands later in the order, doesn't."""
    tensors = ["a", "left", "left2", "right", "right2", "sum"]
    nodes = [
        helper.make_node("Relu", ["input"], ["a"]),
        helper.make_node("Relu", ["a"], ["left"]),
        helper.make_node("Relu", ["left"], ["left2"]),
        helper.make_node("Relu", ["a"], ["right"]),
        helper.make_node("Relu", ["right"], ["right2"]),
        helper.make_node("Add", ["left2", "right2"], ["sum"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("input", "sum")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    cut = Cuttable(model.SerializeToString())
    assert cut.tensors == tensors
    for fault, seen in (
        ("left", {"left", "left2", "sum"}),
        ("right2", {"right2", "sum"}),
        ("sum", {"sum"}),
        ("a", set(tensors)),
    ):
        assert first_difference(tensors, cut, seen.__contains__) == fault


def test_a_cut_model_gives_the_inner_tensor(run: Path) -> None:
    (artifact,) = export(run, task=["heart"])
    cut = Cuttable((artifact.folder / "model.onnx").read_bytes())
    assert cut.tensors == [f"x{n}" for n in range(7)] + ["output"]
    tiny_bundle.checked(cut.up_to("x3"))
    graph = onnx.load_from_string(cut.up_to("x3")).graph
    assert [node.op_type for node in graph.node][-1] == "Flatten"
    assert {i.name for i in graph.initializer} >= {"conv1.weight", "conv2.bias"}
    assert "head.bias" not in {i.name for i in graph.initializer}
    assert [value.name for value in graph.output] == [OUTPUT]


def test_the_layer_of_a_node_without_weights(run: Path) -> None:
    (artifact,) = export(run, task=["heart"])
    graph = onnx.load(artifact.folder / "model.onnx").graph
    found = {node.output[0]: layer_of(graph, node) for node in graph.node}
    assert found["x2"] == "after conv1"
    assert found["x6"] == "after conv2"
    alone = helper.make_node("Det", ["input"], ["y"])
    assert layer_of(graph, alone) is None


def test_without_onnx_runtime(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the target's runtime is not installed")
    export(run, "openvino", task=["heart"])
    absent = Probe(False, False, None, reason="onnxruntime is not installed", fix="pip install")
    monkeypatch.setattr(exporter("onnx"), "probe", lambda: absent)
    (verdict,) = verify(run, drill_down=True)
    assert not verdict.passed
    assert "onnxruntime is not installed" in verdict.reasons[0]
    with pytest.raises(RuntimeUnavailableError):
        _drilled(run, export(run, "openvino", task=["heart"])[0])


def test_the_command_names_the_node(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (artifact,) = export(run, task=["heart"])
    assert cli.main(["verify", str(run), "--drill-down"]) == 0
    assert "ward/heart/onnx-fp32: no node differs" in capsys.readouterr().out
    damage(artifact.folder / "model.onnx", "conv2.weight")
    assert cli.main(["verify", str(run), "--drill-down", "--quiet"]) == 3
    shown = capsys.readouterr().err
    assert "the first node that differs is Conv 'x3', layer conv2: " in shown

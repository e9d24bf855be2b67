from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from lorkd_deploy._version import __version__
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.errors import BundleError, UsageError
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import sha256_bytes, sha256_file
from tests.tiny_bundle import SIZE, checked, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(make_bundle(tmp_path / "bundle"))


def replace_template(bundle: Bundle, change: Any) -> Bundle:
    """The same bundle with another graph, its hash recorded, as a faulty export would give."""
    model = onnx.load_from_string(bundle.template())
    change(model.graph)
    file = bundle.path / "template.onnx"
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    entry = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    manifest["files"]["template.onnx"] = entry
    (bundle.path / "manifest.json").write_bytes(document_bytes(manifest))
    return load_bundle(bundle.path)


def logits(data: bytes, images: Any) -> Any:
    return ReferenceEvaluator(onnx.load_from_string(data)).run(None, {"input": images})[0]


@pytest.mark.parametrize(
    ("kind", "engine"), [("experts", "lung"), ("experts", "eye"), ("teacher", "teacher")]
)
def test_the_filled_graph_gives_the_logits_of_the_unfused_network(
    tmp_path: Path, kind: str, engine: str
) -> None:
    bundle = load_bundle(
        make_bundle(tmp_path / "b", kind=kind, norm="per_task" if kind == "experts" else "shared")
    )
    images = bundle.manifest.preprocess.normalise(parity_inputs(8, SIZE, 3))
    expected = bundle.logits(engine)["inputs"]
    assert expected.shape == (8, {"lung": 2, "eye": 3, "teacher": 5}[engine])
    np.testing.assert_allclose(
        logits(onnx_model(bundle, engine), images), expected, rtol=1e-5, atol=1e-5
    )


def test_equal_bundles_give_equal_bytes_in_any_order(tmp_path: Path, bundle: Bundle) -> None:
    lung, eye, again = (onnx_model(bundle, t) for t in ("lung", "eye", "lung"))
    assert lung == again != eye
    other = load_bundle(make_bundle(tmp_path / "other"))
    assert onnx_model(other, "eye") == eye


def test_the_engine_says_what_it_is(bundle: Bundle) -> None:
    model = checked(onnx_model(bundle, "eye"))
    props = {p.key: p.value for p in model.metadata_props}
    assert json.loads(props["lorkd.tasks"]) == [
        {
            "name": "eye",
            "department": "ward",
            "kind": "multiclass",
            "classes": ["class0", "class1", "class2"],
        }
    ]
    assert json.loads(props["lorkd.preprocess"])["size"] == SIZE
    assert props["lorkd.preprocess_sha256"] == bundle.manifest.preprocess_sha256
    assert props["lorkd.bundle_sha256"] == sha256_bytes(
        (bundle.path / "manifest.json").read_bytes()
    )
    assert props["lorkd.engine"] == "eye"
    assert (model.producer_name, model.producer_version) == ("lorkd-deploy", __version__)
    output = model.graph.output[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in output.dim] == ["batch", 3]
    head = {i.name: tuple(i.dims) for i in model.graph.initializer}
    assert (head["val_1"], head["head.bias"]) == ((5, 3), (3,))


def test_unknown_engine(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no engine is called 'teacher'"):
        onnx_model(bundle, "teacher")


def test_a_weight_left_unbound_too_many_or_misshapen_is_named(bundle: Bundle) -> None:
    fused = bundle.fuse("eye")
    short = {k: v for k, v in fused.items() if k != "conv2.weight"}
    for tensors, fault in (
        (short, r"without a weight: conv2\.weight"),
        (fused | {"conv9.weight": fused["conv2.weight"]}, r"not in the graph: conv9\.weight"),
        (fused | {"conv2.weight": fused["conv2.weight"][:, :3]}, r"\(5, 3, 1, 1\).*\(5, 4, 1, 1\)"),
        (fused | {"conv2.bias": fused["conv2.bias"].astype(np.float64)}, "float64"),
        (fused | {"val_1": fused["val_1"].T}, r"val_1 .*\(3, 5\).*\(5, 3\)"),
        (bundle.fuse("lung"), r"val_1 .*\(5, 2\).*\(5, 3\)"),
    ):
        with pytest.raises(BundleError, match=fault):
            onnx_model(bundle, "eye", tensors=tensors)


def test_a_template_that_is_not_the_manifests(bundle: Bundle) -> None:
    def add(graph: Any) -> None:
        graph.initializer.add(name="stray.weight", data_type=1, dims=[5])

    def rename(graph: Any) -> None:
        next(i for i in graph.initializer if i.name == "conv1.bias").name = "conv1.b"

    with pytest.raises(BundleError, match=r"without a weight: stray\.weight"):
        onnx_model(replace_template(bundle, add), "eye")
    with pytest.raises(BundleError, match=r"not in the graph: conv1\.bias"):
        onnx_model(replace_template(bundle, rename), "eye")


def test_a_graph_that_is_no_valid_onnx(bundle: Bundle) -> None:
    def break_node(graph: Any) -> None:
        graph.node[1].input[0] = "nowhere"

    with pytest.raises(BundleError, match="not valid ONNX"):
        onnx_model(replace_template(bundle, break_node), "eye")


def test_giving_tensors_is_the_same_as_fusing(bundle: Bundle) -> None:
    assert onnx_model(bundle, "eye", tensors=bundle.fuse("eye")) == onnx_model(bundle, "eye")


def test_a_weight_that_is_computed_from_others_is_computed_once(bundle: Bundle) -> None:
    """As weight norm does: v · g / ‖v‖, and a table that is read by an index."""

    def change(graph: Any) -> None:
        conv = next(node for node in graph.node if "conv1.weight" in node.input)
        conv.input[1] = "weight"
        node = onnx.helper.make_node
        fixed = {"two": np.float32([2]), "axes": np.array([1, 2, 3]), "order": np.arange(4)}
        graph.initializer.extend(
            onnx.numpy_helper.from_array(value, name) for name, value in fixed.items()
        )
        added = [
            node("ReduceL2", ["conv1.weight", "axes"], ["norm"]),
            node("Div", ["two", "norm"], ["gain"]),
            node("Mul", ["conv1.weight", "gain"], ["unordered"]),
            node("Gather", ["unordered", "order"], ["weight"]),
        ]
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend(added + rest)

    before = onnx.load_from_string(onnx_model(bundle, "eye")).graph
    fused = bundle.fuse("eye")
    weight = fused["conv1.weight"]
    weight = weight * (2 / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True)))
    expected = onnx_model(bundle, "eye", tensors=fused | {"conv1.weight": weight})
    model = onnx_model(replace_template(bundle, change), "eye")
    graph = onnx.load_from_string(model).graph
    assert [node.op_type for node in graph.node] == [node.op_type for node in before.node]
    assert len(graph.initializer) == len(before.initializer), "what it was computed from is gone"
    images = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    np.testing.assert_allclose(logits(model, images), logits(expected, images), atol=1e-6)


def test_a_type_that_onnx_has_not_is_a_damaged_graph(bundle: Bundle) -> None:
    """The checker raises none of its own errors for it."""

    def change(graph: Any) -> None:
        graph.initializer[-1].data_type = 33

    with pytest.raises(BundleError, match="not valid ONNX: Invalid tensor data type 33"):
        onnx_model(replace_template(bundle, change), "lung")


@pytest.mark.parametrize(
    ("operator", "inputs", "said"),
    [("Elu", [], "TypeError"), ("Flatten", ["conv1.weight", "x"], "."), ("Nothing", None, ".")],
)
def test_a_weight_that_can_not_be_computed_is_a_damaged_graph(
    bundle: Bundle, operator: str, inputs: list[str] | None, said: str
) -> None:
    """onnx's reference raises TypeError, KeyError and others, by the operator."""

    def change(graph: Any) -> None:
        conv = next(node for node in graph.node if "conv1.weight" in node.input)
        conv.input[1] = "weight"
        read = ["conv1.weight"] if inputs is None else inputs
        made = [
            onnx.helper.make_node("Relu", ["conv1.weight"], ["x"]),
            onnx.helper.make_node(operator, read, ["y"]),
            onnx.helper.make_node("Mul", ["x", "y"], ["weight"]),
        ]
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend(made + rest)

    changed = replace_template(bundle, change)
    with pytest.raises(
        BundleError, match=rf"weight can't be computed from its others: {said}"
    ) as raised:
        onnx_model(changed, "eye")
    assert raised.value.where == str(changed.path)
    assert raised.value.fix

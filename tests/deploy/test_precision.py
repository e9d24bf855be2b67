from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.data import open_data
from lorkd_deploy.deploy.artifact import Artifact, open_engine
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.graphs.source_model import calibration_images
from lorkd_deploy.errors import DataError, GateError, ModelError, RuntimeUnavailableError
from lorkd_deploy.precisions import passes as precision
from lorkd_deploy.precisions.passes import float16, int8
from lorkd_deploy.precisions.table import PRECISIONS, Tolerance
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.runtime import EngineSpec, Int8, RunOptions, exporter
from lorkd_deploy.storage import sha256_bytes, sha256_file
from tests.deploy.made_run import PREPROCESS, true_logits

needs_nncf = pytest.mark.skipif(not find_spec("nncf"), reason="int8 needs NNCF, not installed here")
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
PROGRAM = (
    "import sys; from lorkd_deploy.deploy.export import export; "
    "export(sys.argv[1], sys.argv[4], precision=sys.argv[3], task=['eye'], out=sys.argv[2]); "
    "assert not {'torch', 'nncf'} & set(sys.modules); "
    "assert sys.argv[4] == 'openvino' or 'openvino_telemetry' not in sys.modules"
)


@pytest.fixture
def model(run: Path) -> bytes:
    """The fused float32 model of one expert."""
    return onnx_model(load_bundle(run), "eye")


def fresh(run: Path, out: Path, precision: str, target: str = "onnx") -> Path:
    """Folder of the engine that a fresh process makes."""
    command = [sys.executable, "-c", PROGRAM, run, out, precision, target]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    return out / "clinic" / "eye" / f"{target}-{precision}"


def differences(run: Path, artifact: Artifact) -> Any:
    """|logits − the unfused network's| for random input, over the largest logit."""
    x = np.random.default_rng(3).normal(size=(6, 3, 16, 16)).astype(np.float32)
    expected = true_logits(run, "eye", x)
    with open_engine(artifact) as runner:
        return np.abs(runner(x) - expected).max() / np.abs(expected).max()


def test_float16_has_half_weights_and_float32_ends(model: bytes) -> None:
    graph = onnx.load_from_string(float16(model)).graph
    assert {i.data_type for i in graph.initializer} == {HALF}
    ends = [*graph.input, *graph.output]
    assert [value.type.tensor_type.elem_type for value in ends] == [FLOAT, FLOAT]
    assert float16(model) == float16(model)


def test_a_weight_beyond_float16_is_told(model: bytes) -> None:
    parsed = onnx.load_from_string(model)
    parsed.graph.initializer[-1].raw_data = np.full(3, 7e4, np.float32).tobytes()
    with pytest.raises(ModelError, match=r"head\.bias.*7e\+04, 65504") as caught:
        float16(parsed.SerializeToString())
    assert str(caught.value.fix).endswith(": fp32")


def test_the_target_says_what_to_use_beside_float16(
    run: Path, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = onnx.load_from_string(model)
    parsed.graph.initializer[-1].raw_data = np.full(3, 7e4, np.float32).tobytes()
    large = parsed.SerializeToString()
    monkeypatch.setattr("lorkd_deploy.deploy.build.onnx_model", lambda *_, **__: large)
    with pytest.raises(ModelError) as caught:
        export(run, precision="fp16", task=["eye"])
    assert str(caught.value.fix).endswith(": fp32, int8")


def test_fp16_is_proven_and_reproducible(run: Path, tmp_path: Path) -> None:
    (artifact,) = export(run, precision="fp16", task=["eye"])
    assert artifact.name == "clinic/eye/onnx-fp16"
    assert (artifact.precision, artifact.facts["precision"]) == ("fp16", "fp16")
    assert artifact.parity.status == "passed"
    assert artifact.parity.max_abs is not None and artifact.parity.max_abs > 1e-4
    assert 1e-5 < differences(run, artifact) < 5e-3
    found = sha256_file(artifact.folder / "model.onnx")
    assert (
        artifact.onnx_sha256
        == found
        == sha256_file(fresh(run, tmp_path / "out", "fp16") / "model.onnx")
    )


@needs_nncf
def test_int8_is_proven_and_reproducible(run: Path, tmp_path: Path) -> None:
    (artifact,) = export(run, precision="int8", task=["eye"])
    assert artifact.facts["precision"] == "int8"
    assert artifact.parity.status == "passed"
    graph = onnx.load(artifact.folder / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("DequantizeLinear") >= 6 and "QuantizeLinear" in kinds
    assert onnx.TensorProto.INT8 in {i.data_type for i in graph.initializer}
    assert 1e-4 < differences(run, artifact) < 0.3
    content = (artifact.folder / "model.onnx").read_bytes()
    assert str(tmp_path).encode() not in content and b"lorkd-int8-" not in content
    assert content == (fresh(run, tmp_path / "out", "int8") / "model.onnx").read_bytes()


@pytest.fixture(scope="session")
def depthwise() -> tuple[bytes, Any]:
    """A network with a depthwise convolution behind a ReLU, and inputs float32 (8, 3, 16, 16).

    Its channels are of very different size: what NNCF gives a scale a channel for.
    """
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 3, 3, 3), "w2": (6, 1, 3, 3), "w3": (4, 6, 1, 1), "w4": (4, 3)}
    weights = {name: rng.normal(0, 0.5, s).astype(np.float32) for name, s in shapes.items()}
    weights["w1"] *= np.logspace(-2, 0, 6, dtype=np.float32)[:, None, None, None]
    nodes = [
        onnx.helper.make_node("Conv", ["input", "w1"], ["x1"], pads=[1] * 4),
        onnx.helper.make_node("Relu", ["x1"], ["x2"]),
        onnx.helper.make_node("Conv", ["x2", "w2"], ["x3"], pads=[1] * 4, group=6),
        onnx.helper.make_node("Relu", ["x3"], ["x4"]),
        onnx.helper.make_node("Conv", ["x4", "w3"], ["x5"]),
        onnx.helper.make_node("GlobalAveragePool", ["x5"], ["x6"]),
        onnx.helper.make_node("Flatten", ["x6"], ["x7"]),
        onnx.helper.make_node("MatMul", ["x7", "w4"], ["output"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "depthwise",
        [onnx.helper.make_tensor_value_info("input", FLOAT, ["batch", 3, 16, 16])],
        [onnx.helper.make_tensor_value_info("output", FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    images = rng.normal(size=(8, 3, 16, 16)).astype(np.float32)
    return model.SerializeToString(), images


def quantised_by(model: bytes) -> list[tuple[str, Any, Any]]:
    """(tensor, scale, zero point) of every activation that is quantised."""
    graph = onnx.load_from_string(model).graph
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    found = [node.input for node in graph.node if node.op_type == "QuantizeLinear"]
    return [(tensor, values[scale], values[zero]) for tensor, scale, zero in found]


def zero_points(model: bytes) -> set[str]:
    """dtypes of the activations' zero points."""
    return {str(zero.dtype) for _, _, zero in quantised_by(model)}


@pytest.fixture(scope="session")
def by_form(depthwise: tuple[bytes, Any]) -> dict[str, bytes]:
    """The network in int8, in each form that a target can need."""
    model, images = depthwise
    return {form: int8(model, lambda: images, form=form) for form in get_args(Int8)}


@needs_nncf
def test_int8_has_the_form_that_the_target_takes(by_form: dict[str, bytes]) -> None:
    """TensorRT reads UINT8 as INT8, half of its range, with no more than a warning."""
    shapes = {form: [s.shape for _, s, _ in quantised_by(m)] for form, m in by_form.items()}
    assert (6,) in shapes["any"]
    assert set(shapes["tensor"]) == set(shapes["signed"]) == {()}
    assert {form: zero_points(m) for form, m in by_form.items()} == {
        "any": {"int8", "uint8"},
        "tensor": {"int8", "uint8"},
        "signed": {"int8"},
    }
    graph = onnx.load_from_string(by_form["signed"]).graph
    assert onnx.TensorProto.UINT8 not in {entry.data_type for entry in graph.initializer}
    assert not any(zero.any() for _, _, zero in quantised_by(by_form["signed"]))


@needs_nncf
def test_each_form_of_int8_computes_the_same(
    depthwise: tuple[bytes, Any], by_form: dict[str, bytes]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="not installed here")
    model, images = depthwise

    def logits(model: bytes) -> Any:
        options = onnxruntime.SessionOptions()
        # Node by node: the fused integer kernels overflow on CPUs without VNNI.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return session.run(None, {"input": images})[0]

    exact = logits(model)
    for quantised in by_form.values():
        assert np.abs(logits(quantised) - exact).max() < 0.08 * np.abs(exact).max()


@needs_nncf
def test_onnx_runtime_takes_its_form(
    depthwise: tuple[bytes, Any], by_form: dict[str, bytes], tmp_path: Path
) -> None:
    target = exporter("onnx")
    if not target.probe().can_run:
        pytest.skip("onnxruntime is not installed")
    (tmp_path / "model.onnx").write_bytes(by_form[target.probe().int8])
    with target.open(tmp_path, ["model.onnx"], RunOptions()) as runner:
        assert np.isfinite(runner(depthwise[1])).all()


@needs_nncf
def test_tensorrt_for_rtx_builds_its_form(by_form: dict[str, bytes], tmp_path: Path) -> None:
    target = exporter("trt-rtx")
    if not target.probe().can_build:
        pytest.skip("trt-rtx is not installed")
    (tmp_path / "m.onnx").write_bytes(by_form[target.probe().int8])
    spec = EngineSpec("int8", {"compute_capabilities": ["SM86"], "max_batch": 2})
    made = target.export(tmp_path / "m.onnx", tmp_path, spec)
    assert (tmp_path / made.files[0]).stat().st_size > 10_000
    assert "UINT8" not in (tmp_path / "build.log").read_text()


@needs_nncf
def test_int8_of_openvino_is_reproducible(run: Path, tmp_path: Path) -> None:
    if not exporter("openvino").probe().can_build:
        pytest.skip("openvino is not installed")
    # OpenVINO numbers unnamed nodes through a whole process, so both are fresh ones.
    one, other = (fresh(run, tmp_path / name, "int8", "openvino") for name in ("one", "other"))
    for name in ("model.xml", "model.bin"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@needs_nncf
@pytest.mark.parametrize("target", ["openvino", "trt-rtx"])
def test_int8_of_other_targets(run: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exporter(target).probe().can_build:
        pytest.skip(f"{target} is not installed")
    seen = []

    def watched(model: bytes, calibration: Any, **form: Any) -> bytes:
        seen.append(int8(model, calibration, **form))
        return seen[0]

    monkeypatch.setattr("lorkd_deploy.precisions.table.int8", watched)
    (artifact,) = export(run, target, precision="int8", task=["eye"])
    assert artifact.onnx_sha256 == sha256_bytes(seen[0])
    assert ("uint8" in zero_points(seen[0])) == (target == "openvino")
    assert artifact.facts["precision"] == "int8"
    if exporter(target).probe().can_run:
        assert artifact.parity.status == "passed"
        assert 1e-4 < differences(run, artifact) < 0.3
    else:
        assert artifact.parity.status == "not run here"


def test_calibration_takes_training_images_by_seed(run: Path) -> None:
    bundle = load_bundle(run)
    recipe = parse_recipe(bundle.manifest.recipe, where=run)
    spec = {task.name: task.data for task in recipe.tasks}["eye"]
    train = PREPROCESS(open_data(spec).train.images[row] for row in range(10))

    def rows(images: Any) -> list[int]:
        return [next(i for i in range(10) if np.array_equal(train[i], one)) for one in images]

    chosen = []
    for seed in (0, 0, 1):
        content = bundle.manifest.recipe | {"calibration": {"images": 4, "seed": seed}}
        bundle.manifest.recipe.update(content)
        chosen.append(rows(calibration_images(bundle, "eye")))
    assert chosen[0] == chosen[1] == sorted(set(chosen[0]))
    assert chosen[0] != chosen[2]
    assert len(chosen[0]) == 4


def test_the_teacher_is_calibrated_on_every_task(run: Path) -> None:
    bundle = load_bundle(run / "teacher")
    bundle.manifest.recipe["calibration"] = {"images": 7}
    assert calibration_images(bundle, "teacher").shape == (8, 3, 16, 16)  # 2 of each of 4


def test_training_images_that_are_not_here(run: Path, data: Path) -> None:
    if not find_spec("nncf"):
        pytest.skip("int8 needs NNCF, not installed here")
    (data / "eye.npz").unlink()
    with pytest.raises(DataError, match=r"eye\.npz"):
        export(run, precision="int8", task=["eye"])
    assert not list((run / "export").rglob("*.onnx"))


@needs_nncf
@pytest.mark.parametrize(("count", "message"), [(0, "has no image"), (2, "not finite")])
def test_a_set_that_can_not_calibrate(model: bytes, count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        int8(model, lambda: np.full((count, 3, 16, 16), np.nan, np.float32))


def test_without_nncf(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda _: None)
    with pytest.raises(RuntimeUnavailableError, match="needs NNCF") as caught:
        export(run, precision="int8", task=["eye"])
    assert "lorkd-deploy[int8]" in str(caught.value.fix)


def test_a_coarse_engine_is_not_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = replace(PRECISIONS["fp16"], tolerance=Tolerance(1e-9, 0.0, 1e-9))
    monkeypatch.setitem(PRECISIONS, "fp16", exact)
    with pytest.raises(GateError, match="tolerance") as caught:
        export(run, precision="fp16", task=["eye"])
    assert "choose another --precision" in str(caught.value.fix)
    assert not list((run / "export").glob("*/*/onnx-fp16"))

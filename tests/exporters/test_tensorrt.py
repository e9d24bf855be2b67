"""TensorRT for RTX builds real engines here; what needs a GPU is not run, and says so."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from lorkd_exporters import _tensorrt
from lorkd_exporters._cuda import gpus
from onnx import helper

from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.precisions.passes import float16
from lorkd_deploy.runtime import EngineSpec, exporter, targets
from tests.exporters.conftest import BUILDABLE

rtx = exporter("trt-rtx")
builds = pytest.mark.skipif(
    "trt-rtx" not in BUILDABLE, reason="TensorRT for RTX is a wheel for x86-64 only"
)
SMALL = {"compute_capabilities": ["SM86"], "max_batch": 2}


def test_targets_are_the_public_modules() -> None:
    assert {"onnx", "openvino", "trt", "trt-rtx"} <= set(targets())
    assert not [name for name in targets() if name.startswith(("_", "-"))]
    assert exporter("tensorrt") is exporter("trt")


@builds
@pytest.mark.parametrize("precision", ["fp32", "fp16"])  # int8: tests/deploy/test_precision.py
def test_an_engine_is_built_without_a_gpu(source: Path, tmp_path: Path, precision: str) -> None:
    options = SMALL | {"opt_batch": 2, "workspace": 64, "level": 1}
    fused = (source / "fused.onnx").read_bytes()
    model = tmp_path / "given.onnx"
    model.write_bytes(fused if precision == "fp32" else float16(fused))
    made = rtx.export(model, tmp_path, EngineSpec(precision, options))
    assert made.files[:2] == ("model.engine", "build.log")
    assert (tmp_path / "model.engine").stat().st_size > 10_000
    assert made.facts["runtime"] == "tensorrt_rtx"
    assert made.facts["precision"] == precision
    assert made.facts["options"] == options | {"min_batch": 1, "tf32": False}
    log = (tmp_path / "build.log").read_text()
    assert "INFO" in log and "VERBOSE" not in log
    assert str(tmp_path) not in log and str(source) not in log


@builds
def test_the_capabilities_are_those_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx

    config = tensorrt_rtx.IBuilderConfig
    real, seen = config.set_compute_capability, []

    def watched(self: Any, capability: Any, index: int) -> Any:
        seen.append((capability.name, index, self.num_compute_capabilities))
        return real(self, capability, index)

    monkeypatch.setattr(config, "set_compute_capability", watched)
    options = SMALL | {"compute_capabilities": ["SM120", "SM86"]}
    rtx.export(source / "fused.onnx", tmp_path, EngineSpec("fp32", options))
    assert seen == [("SM120", 0, 2), ("SM86", 1, 2)]


@builds
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_batch": 4, "max_batch": 2}, "min_batch 4, opt_batch 1, max_batch 2 are not in"),
        ({"opt_batch": 64}, "not in ascending order"),
        ({"compute_capabilities": ["SM90"]}, "compute_capabilities"),
        ({"compute_capabilities": []}, "compute_capabilities"),
        ({"level": 6}, "level"),
        ({"max_batch": "many"}, "max_batch"),
        ({"dla": 0}, "no option dla"),
    ],
)
def test_options_that_can_not_be(
    source: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        rtx.export(source / "fused.onnx", tmp_path, EngineSpec("fp32", options))
    assert "max_batch: largest batch that it takes at once (default 32)" in str(caught.value.fix)
    assert list(tmp_path.iterdir()) == []


@builds
def test_an_operator_that_tensorrt_lacks(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 3]) for n in "ab"]
    node = helper.make_node("Det", ["a"], ["b"], name="stem")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ArtifactError, match=r"Det.*in the model: Det 'stem'"):
        rtx.export(tmp_path / "m.onnx", out, EngineSpec("fp32", SMALL))
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("8.6.1", "8.6.1 is too old: 10.3"),
        ("11.3.0", "11.3.0 is blocked: it can drop the bias"),
        ("10.3.0", "no GPU"),
    ],
)
def test_tensorrt_that_can_not_build_here(
    version: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpus():
        pytest.skip("there is a GPU here")
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    probe = exporter("trt").probe()
    assert (probe.can_build, probe.can_run, probe.version) == (False, False, version)
    assert reason in str(probe.reason)
    assert probe.fix


def test_options_of_tensorrt(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="min_batch 4") as caught:
        spec = EngineSpec("fp32", {"min_batch": 4, "max_batch": 2})
        exporter("trt").export(source / "fused.onnx", tmp_path, spec)
    for name in ("max_batch", "workspace", "version_compatible"):
        assert f"{name}: " in str(caught.value.fix)


@builds
def test_tensorrt_for_rtx_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx, "__version__", "1.0.0.21")
    probe = rtx.probe()
    assert (probe.can_build, probe.can_run) == (False, False)
    assert probe.reason == "TensorRT for RTX 1.0.0.21 is too old: 1.7 is needed"


def test_an_engine_of_another_gpu_or_version(tmp_path: Path) -> None:
    """What the library says is passed on, with what to do: there is no GPU here to ask it."""

    class Logger:
        INFO, ERROR = 3, 1

        def __init__(self) -> None: ...

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> None:
            severity = type("Severity", (int,), {"name": "ERROR"})(1)
            self.logger.log(severity, f"built for SM {data.decode()},  this GPU is SM 89")

    trt = SimpleNamespace(__name__="tensorrt", ILogger=Logger, Runtime=Runtime)
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"86")
    with pytest.raises(ArtifactError, match="can't load the engine: built for SM 86, this") as e:
        _tensorrt._loaded(trt, engine)
    assert "run `lorkd export` on this device" in str(e.value.fix)

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError, UsageError
from lorkd_deploy.runtime import EngineSpec, RunOptions, exporter
from tests.exporters.conftest import build

target = exporter("onnx")


def test_the_engine_is_the_fused_model(source: Path, tmp_path: Path) -> None:
    built = build(source, "onnx", tmp_path)
    assert built.files == ("model.onnx",)
    assert (tmp_path / "model.onnx").read_bytes() == (source / "fused.onnx").read_bytes()


def test_the_provider_and_the_threads_are_pinned(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(source, "onnx", tmp_path)
    seen: dict[str, Any] = {}
    real = onnxruntime.InferenceSession

    def watched(path: str, options: Any, providers: list[Any], **kwargs: Any) -> Any:
        seen.update(intra=options.intra_op_num_threads, inter=options.inter_op_num_threads)
        seen.update(providers=[name for name, _ in providers], **kwargs)
        return real(path, options, providers=providers, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    with target.open(tmp_path, built.files, RunOptions(threads=3)) as runner:
        assert runner.facts == {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": "CPUExecutionProvider",
            "precision": "fp32",
            "threads": 3,
        }
    assert seen == {
        "intra": 3,
        "inter": 1,
        "providers": ["CPUExecutionProvider"],
        "enable_fallback": 0,
    }


def test_a_model_with_other_inputs_is_no_engine(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, 3]) for n in "ab"]
    node = helper.make_node("Identity", ["a"], ["b"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"no engine.*tensor\(double\)"):
        target.open(tmp_path, ["m.onnx"], RunOptions())


def test_input_of_another_type(source: Path, tmp_path: Path) -> None:
    built = build(source, "onnx", tmp_path)
    with (
        target.open(tmp_path, built.files, RunOptions()) as runner,
        pytest.raises(ArtifactError, match="float64"),
    ):
        runner(np.zeros((1, 3, 16, 16)))  # type: ignore[arg-type]


def test_where_the_runtime_is_missing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(source, "onnx", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    probe = target.probe()
    assert (probe.can_build, probe.can_run, probe.reason) == (
        False,
        False,
        "onnxruntime is not installed",
    )
    with pytest.raises(RuntimeUnavailableError, match="not installed") as caught:
        target.open(tmp_path, built.files, RunOptions())
    assert "lorkd-deploy[onnx]" in str(caught.value.fix)
    with pytest.raises(RuntimeUnavailableError, match="not installed"):
        target.export(source / "fused.onnx", tmp_path, EngineSpec())


class Elsewhere:
    """An ONNX Runtime with other execution providers than are here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, real: list[str] | None = None) -> None:
        self.asked: list[Any] = []
        self.kept: dict[str, Any] = {}
        self._real = real
        self._session = onnxruntime.InferenceSession
        here = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: here)
        monkeypatch.setattr(onnxruntime, "InferenceSession", self._open)

    def _open(self, path: str, options: Any, providers: list[Any], **kwargs: Any) -> Any:
        self.asked, self.kept = providers, kwargs
        entry = "session.disable_cpu_ep_fallback"
        try:
            self.kept["no_cpu"] = options.get_session_config_entry(entry)
        except RuntimeError:  # it is not set
            self.kept["no_cpu"] = "0"
        names = [name for name, _ in providers]
        real = self._real or [*names, "CPUExecutionProvider"]
        session = self._session(path, providers=["CPUExecutionProvider"])
        session.get_providers = lambda: real
        part = type("Part", (), {"ep_name": real[0], "get_nodes": lambda _: [1, 2]})()
        session.get_provider_graph_assignment_info = lambda: [part, part]
        return session


def test_providers_travel_with_the_engine_and_what_runs_is_recorded(
    source: Path, tmp_path: Path, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Elsewhere(monkeypatch)
    made = target.export(
        source / "fused.onnx", tmp_path, EngineSpec("fp32", {"providers": ["tensorrt", "CUDA"]})
    )
    assert made.files == ("model.onnx", "providers.json")
    assert made.facts == {"options": {"providers": ["TensorRT", "CUDA"]}}
    with target.open(tmp_path, made.files, RunOptions()) as runner:
        assert runner.facts["provider"] == "TensorrtExecutionProvider"
        assert runner.facts["nodes"] == {"TensorrtExecutionProvider": 4}
        assert runner(batch).shape == (5, 3)
    # fp32 is not TF32, and nothing falls back to the CPU, neither a node nor the whole session.
    assert elsewhere.asked == [
        ("TensorrtExecutionProvider", {}),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
    ]
    assert elsewhere.kept == {"enable_fallback": 0, "no_cpu": "1"}
    with target.open(tmp_path, made.files, RunOptions(1, {"providers": ["CPU"]})):
        assert elsewhere.asked == [("CPUExecutionProvider", {})]
        assert elsewhere.kept["no_cpu"] == "0"


def test_the_cpu_helps_only_where_it_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Elsewhere(monkeypatch)
    files = build(source, "onnx", tmp_path).files
    target.open(tmp_path, files, RunOptions(1, {"providers": ["CUDA", "CPU"]})).close()
    assert elsewhere.kept["no_cpu"] == "0"


def test_a_provider_that_silently_did_not_load(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Elsewhere(monkeypatch, real=["CPUExecutionProvider"])
    files = build(source, "onnx", tmp_path).files
    with pytest.raises(RuntimeUnavailableError, match="would run it on CPUExecutionProvider, CUDA"):
        target.open(tmp_path, files, RunOptions(1, {"providers": ["CUDA"]}))


def test_a_provider_that_is_not_here(source: Path, tmp_path: Path) -> None:
    for name in ("CUDA", "OpenVINO"):
        spec = EngineSpec("fp32", {"providers": [name]})
        with pytest.raises(RuntimeUnavailableError, match=f"no execution provider {name}") as e:
            target.export(source / "fused.onnx", tmp_path, spec)
        assert str(e.value.fix).startswith("it has: CPU; ")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="ROCm is none of CPU, CUDA, TensorRT, OpenVINO"):
        target.export(source / "fused.onnx", tmp_path, EngineSpec("fp32", {"providers": ["ROCm"]}))


def test_an_operator_that_onnx_runtime_lacks(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in "ab"]
    weight = helper.make_tensor("stem.conv.weight", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("Mul", ["a", "stem.conv.weight"], ["x"]),
        helper.make_node("Whirl", ["x"], ["b"], name="node_7", domain="elsewhere"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"Whirl 'node_7', after stem\.conv\)"):
        target.open(tmp_path, ["m.onnx"], RunOptions())


def test_a_runtime_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    probe = target.probe()
    assert (probe.can_build, probe.can_run, probe.version) == (False, False, "1.9.0")
    assert probe.reason == "onnxruntime 1.9.0 is too old: 1.23 is needed"
    assert "lorkd-deploy[onnx]" in str(probe.fix)

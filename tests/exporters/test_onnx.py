from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError
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

    def watched(path: str, options: Any, providers: list[str]) -> Any:
        seen.update(intra=options.intra_op_num_threads, inter=options.inter_op_num_threads)
        seen.update(providers=providers)
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    with target.open(tmp_path, built.files, RunOptions(threads=3)) as runner:
        assert runner.facts == {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": "CPUExecutionProvider",
            "precision": "fp32",
            "threads": 3,
        }
    assert seen == {"intra": 3, "inter": 1, "providers": ["CPUExecutionProvider"]}


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
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(builtins, "__import__", without)
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

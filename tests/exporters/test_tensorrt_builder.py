"""`trt` over a stand-in of TensorRT: what is asked of the builder, and what is written."""

from __future__ import annotations

import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from lorkd_exporters import _tensorrt
from lorkd_exporters._nodes import with_nodes
from onnx import helper

from lorkd_deploy import cli
from lorkd_deploy.deploy.artifact import read_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import ArtifactError
from lorkd_deploy.runtime import EngineFiles, EngineSpec, RunOptions, exporter
from tests.deploy.made_run import make_run
from tests.exporters import fake_tensorrt, fake_tensorrt_builder

pytest.importorskip("onnxruntime", reason="it stands in for the GPU")
last_build = fake_tensorrt_builder.last_build


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> fake_tensorrt.Driver:
    """A GPU and TensorRT 10.3 that `import tensorrt` finds."""
    last_build.clear()
    return fake_tensorrt.installed(monkeypatch)


def built(model: Path, folder: Path, precision: str = "fp32", **options: Any) -> EngineFiles:
    folder.mkdir(exist_ok=True)
    return exporter("trt").export(model, folder, EngineSpec(precision, options))


def test_the_stand_in_has_no_call_that_tensorrt_lacks() -> None:
    """TensorRT for RTX, which is a real wheel, has the same classes."""
    real = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is for x86-64 only")
    names = {"Engine": "ICudaEngine", "Context": "IExecutionContext", "Config": "IBuilderConfig"}
    names |= {"Network": "INetworkDefinition", "Profile": "IOptimizationProfile"}
    names |= {"Tensor": "ITensor", "Inspector": "EngineInspector"}
    own = {"memory_left"}
    compared = 0
    for module in (fake_tensorrt, fake_tensorrt_builder):
        for name, kind in inspect.getmembers(module, inspect.isclass):
            stand_for = getattr(real, names.get(name, name), None)
            if stand_for is None or name == "TensorIOMode":
                continue
            known = set(dir(stand_for)) | set(getattr(stand_for, "__members__", ()))
            used = {n for n in dir(kind) if not n.startswith("_")} - set(dir(int)) - own
            assert used <= known | {"name", "value"}, name
            compared += 1
    assert compared >= 14


def test_an_engine_with_its_log_and_layers(
    source: Path, tmp_path: Path, driver: fake_tensorrt.Driver
) -> None:
    made = built(source / "fused.onnx", tmp_path / "out")
    assert made.files == ("model.engine", "build.log", "layers.json")
    assert last_build == {
        "flags": set(),  # no TF32 in what is called fp32
        "pools": {},
        "level": 3,
        "profile": [1, 1, 32],
    }
    log = (tmp_path / "out" / "build.log").read_text()
    assert "INFO: [GpuLayer] x1\n" in log and "VERBOSE" not in log
    layers = json.loads((tmp_path / "out" / "layers.json").read_text())["Layers"]
    assert ("x1", "Conv") in {(layer["Name"], layer["LayerType"]) for layer in layers}
    assert {k: made.facts[k] for k in ("runtime", "version", "precision")} == {
        "runtime": "tensorrt",
        "version": "10.3.0",
        "precision": "fp32",
    }


def test_where_its_time_goes(
    source: Path, tmp_path: Path, driver: fake_tensorrt.Driver, batch: Any
) -> None:
    made = built(source / "fused.onnx", tmp_path / "out")
    module: Any = exporter("trt")
    found = module.layers(tmp_path / "out", made.files, RunOptions(1), batch[:1], 3)
    assert ("x1", "Conv", "fp32") in {(one.name, one.kind, one.precision) for one in found}
    assert [layer.ms for layer in found] == [0.25 * (k + 1) for k in range(len(found))]
    assert not driver.alive  # the engine that was asked is closed


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"workspace": 64}, {"pools": {"WORKSPACE": 64 * 2**20}}),
        ({"level": 5}, {"level": 5}),
        ({"tf32": True}, {"flags": {"TF32"}}),
        ({"min_batch": 2, "opt_batch": 3, "max_batch": 4}, {"profile": [2, 3, 4]}),
    ],
)
def test_what_the_builder_is_asked(
    source: Path,
    tmp_path: Path,
    driver: fake_tensorrt.Driver,
    options: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    made = built(source / "fused.onnx", tmp_path / "out", **options)
    assert last_build | asked == last_build
    assert made.facts["options"] | options == made.facts["options"]


def test_a_version_compatible_engine_says_so_in_its_name(
    source: Path, tmp_path: Path, driver: fake_tensorrt.Driver, batch: Any
) -> None:
    made = built(source / "fused.onnx", tmp_path / "out", version_compatible=True)
    assert last_build["flags"] == {"VERSION_COMPATIBLE"}
    assert made.files[0] == _tensorrt.COMPATIBLE
    with exporter("trt").open(tmp_path / "out", made.files, RunOptions()) as runner:
        assert runner(batch).shape == (5, 3)


def test_what_can_not_be_built(
    source: Path,
    tmp_path: Path,
    driver: fake_tensorrt.Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake_tensorrt_builder, "FAULT", "no tactic for Gemm")
    with pytest.raises(ArtifactError, match=r"no tactic for Gemm.*Gemm 'output', layer head"):
        built(source / "fused.onnx", tmp_path / "out")
    model = onnx.load(source / "fused.onnx")
    model.graph.node.append(helper.make_node("Det", ["x0"], ["y"], name="stem"))
    onnx.save(model, tmp_path / "det.onnx")
    with pytest.raises(ArtifactError, match=r"take this model: Det stem: no importer.*'stem'"):
        built(tmp_path / "det.onnx", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_node_is_known_by_its_name_first_then_by_its_operator(
    source: Path, tmp_path: Path
) -> None:
    model = onnx.load(source / "fused.onnx")
    model.graph.node[3].name = "second"
    onnx.save(model, tmp_path / "named.onnx")
    second = "Conv 'second', layer conv2"
    said = with_nodes("no tactic for Conv (second)", tmp_path / "named.onnx")
    assert said == f"no tactic for Conv (second) (in the model: {second})"
    said = with_nodes("no tactic for Conv", tmp_path / "named.onnx")
    assert said == f"no tactic for Conv (in the model: Conv 'x1', layer conv1; {second})"


def test_export_and_verify_by_command(
    tmp_path: Path,
    driver: fake_tensorrt.Driver,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", tmp_path / "data")
    monkeypatch.setenv("LORKD_DATA", str(tmp_path / "data"))
    command = ["export", str(run), "--target", "tensorrt", "--department", "clinic", "--quiet"]
    options = ["--option", "max_batch=4"]
    assert cli.main([*command, "--precision", "fp16", *options]) == 0
    artifact = read_artifact(run / "export" / "clinic" / "eye" / "trt-fp16")
    assert artifact.parity.status == "passed"
    assert artifact.facts["precision"] == "fp16" and artifact.facts["provider"] == "Fake"
    assert artifact.file_names == ("model.engine", "build.log", "layers.json")
    assert last_build["profile"] == [1, 1, 4]
    assert str(tmp_path) not in (artifact.folder / "artifact.json").read_text()
    assert cli.main(["verify", str(run), "--drill-down"]) == 0
    assert "clinic/eye/trt-fp16: no node of a fresh build differs" in capsys.readouterr().out
    assert not driver.alive
    engine = artifact.folder / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    assert cli.main(["verify", str(run), "--quiet"]) == 3
    assert "model.engine has changed since it was exported" in capsys.readouterr().err


@pytest.mark.skipif(not find_spec("nncf"), reason="int8 needs NNCF, not installed here")
@pytest.mark.slow
def test_int8_has_no_tensor_that_tensorrt_would_misread(
    tmp_path: Path, driver: fake_tensorrt.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", tmp_path / "data")
    monkeypatch.setenv("LORKD_DATA", str(tmp_path / "data"))
    (artifact,) = export(run, "trt", precision="int8", task=["eye"])
    assert artifact.parity.status == "passed"
    assert "UINT8" not in (artifact.folder / "build.log").read_text()
    seen = []
    real = fake_tensorrt_builder.OnnxParser.parse

    def noted(self: Any, model: bytes) -> bool:
        types = {entry.data_type for entry in onnx.load_from_string(model).graph.initializer}
        seen.append(onnx.TensorProto.UINT8 in types)
        return real(self, model)

    monkeypatch.setattr(fake_tensorrt_builder.OnnxParser, "parse", noted)
    (verdict,) = verify(run, drill_down=True)
    assert verdict.passed, verdict.reasons
    assert verdict.drilled is not None and verdict.drilled.node is None
    assert seen and not any(seen)  # the models that drilling down built anew

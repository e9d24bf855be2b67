from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from lorkd_deploy.deploy.artifact import Artifact, EngineFile
from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError, UsageError
from lorkd_deploy.profiling.worker.process import EngineProcess
from lorkd_deploy.runtime import EngineSpec, RunOptions, exporter
from lorkd_deploy.storage import sha256_file
from tests import tiny_bundle
from tests.exporters.conftest import build

openvino = pytest.importorskip("openvino", reason="the target's runtime is not installed")
target = exporter("openvino")
ABILITIES = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
bf16 = pytest.mark.skipif("BF16" not in ABILITIES, reason="this CPU has no bf16")


def made(source: Path, folder: Path, spec: EngineSpec) -> tuple[str, ...]:
    return target.export(source / "fused.onnx", folder, spec).files


def test_fp32_is_not_the_cpus_silent_bf16(source: Path, tmp_path: Path, batch: Any) -> None:
    built = build(source, "openvino", tmp_path)
    with target.open(tmp_path, built.files, RunOptions(threads=2)) as runner:
        assert runner.facts == {
            "runtime": "openvino",
            "version": openvino.__version__.partition("-")[0],
            "provider": "CPU",
            "precision": "fp32",
            "inference_precision": "f32",
            "threads": 2,
        }
        expected = built.expected(batch)
        assert np.abs(runner(batch) - expected).max() < 2e-6 * np.abs(expected).max()


def test_opening_asks_the_device_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = made(source, tmp_path, EngineSpec("fp32"))
    answers: list[Any] = []
    probe = target.probe

    def asked() -> Any:
        answers.append(probe())
        return answers[-1]

    monkeypatch.setattr(target, "probe", asked)
    target.open(tmp_path, files, RunOptions()).close()
    assert len(answers) == 1


@bf16
def test_bf16_is_what_is_asked_for(source: Path, tmp_path: Path, batch: Any) -> None:
    files = made(source, tmp_path, EngineSpec("bf16"))
    with target.open(tmp_path, files, RunOptions()) as runner:
        assert (runner.facts["precision"], runner.facts["inference_precision"]) == ("bf16", "bf16")
        found = runner(batch)
    built = build(source, "openvino", tmp_path)
    difference = np.abs(found - built.expected(batch)).max() / np.abs(built.expected(batch)).max()
    assert 1e-4 < difference < 5e-2


def test_where_the_cpu_lacks_bf16(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = openvino.Core.get_property

    def without(core: Any, device: str, name: str, *args: Any) -> Any:
        value = real(core, device, name, *args)
        return [v for v in value if v != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else value

    monkeypatch.setattr(openvino.Core, "get_property", without)
    assert "bf16" not in target.probe().precisions
    with pytest.raises(RuntimeUnavailableError, match="can't do bf16 on the CPU") as caught:
        made(source, tmp_path, EngineSpec("bf16"))
    assert "fp32" in str(caught.value.fix)
    assert list(tmp_path.iterdir()) == []


@bf16
def test_arithmetic_that_the_device_would_replace_is_refused(source: Path, tmp_path: Path) -> None:
    files = made(source, tmp_path, EngineSpec("fp32"))
    text = (tmp_path / "model.xml").read_text()
    # A CPU without f16 takes bf16 for it and says nothing.
    asked = text.replace('<inference_precision value="f32"', '<inference_precision value="f16"')
    assert asked != text
    (tmp_path / "model.xml").write_text(asked)
    if "FP16" in ABILITIES:
        pytest.skip("this CPU has f16")
    with pytest.raises(RuntimeUnavailableError, match=r"would compute in bf16.* asks for f16"):
        target.open(tmp_path, files, RunOptions())


def test_weights_are_halved_only_when_asked(source: Path, tmp_path: Path, batch: Any) -> None:
    sizes = {}
    for precision in ("fp32", "fp16"):
        folder = tmp_path / precision
        folder.mkdir()
        files = made(source, folder, EngineSpec(precision))
        sizes[precision] = (folder / "model.bin").stat().st_size
        with target.open(folder, files, RunOptions()) as runner:
            assert runner.facts["precision"] == precision
            assert runner(batch).dtype == np.float32
    weights = sum(np.prod(shape) for shape in tiny_bundle.SHAPES.values())
    assert sizes["fp32"] > 4 * weights > sizes["fp16"] > 2 * weights


def test_a_device_that_is_not_here(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="no NPU9") as caught:
        made(source, tmp_path, EngineSpec("fp32", {"device": "NPU9"}))
    assert "CPU" in str(caught.value.fix)
    with pytest.raises(UsageError, match="openvino has no option devise") as wrong:
        made(source, tmp_path, EngineSpec("fp32", {"devise": "CPU"}))
    assert "device: CPU, GPU or NPU" in str(wrong.value.fix)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_disk_that_is_full(name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/dev/full")  # the file that takes nothing
    with pytest.raises(ArtifactError, match="can't write the engine") as caught:
        target.export(source / "fused.onnx", tmp_path, EngineSpec())
    assert "free space" in str(caught.value)


def test_an_operator_that_openvino_lacks(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3]) for n in "ab"]
    node = helper.make_node("Whirl", ["a"], ["b"], name="stem", domain="elsewhere")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"elsewhere\.Whirl \(in the model: Whirl 'stem'\)"):
        target.export(tmp_path / "m.onnx", tmp_path, EngineSpec())


def test_an_operator_is_named_with_its_layer(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3]) for n in "ab"]
    weight = helper.make_tensor("stem.conv.weight", onnx.TensorProto.FLOAT, [1], [2.0])
    node = helper.make_node("Whirl", ["a", "stem.conv.weight"], ["b"], domain="elsewhere")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"\(in the model: Whirl 'b', layer stem\.conv\)"):
        target.export(tmp_path / "m.onnx", tmp_path, EngineSpec())


def test_an_operator_that_the_device_lacks_is_named_when_it_is_opened(tmp_path: Path) -> None:
    """Of a shape whose length depends on the data nobody knows the rank, and the CPU needs it."""
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("a", [1, 3]), ("b", None))
    ]
    given = {
        "stem.conv.weight": helper.make_tensor("stem.conv.weight", 1, [6], [2.0] * 6),
        "flat": helper.make_tensor("flat", onnx.TensorProto.INT64, [1], [-1]),
    }
    nodes = [
        helper.make_node("NonZero", ["a"], ["where"], name="where"),
        helper.make_node("Reshape", ["where", "flat"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["stem.conv.weight", "shape"], ["b"], name="stem"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], list(given.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    files = target.export(tmp_path / "m.onnx", tmp_path, EngineSpec()).files
    with pytest.raises(ArtifactError, match=r"compile.*Reshape 'b', layer stem\.conv\)"):
        target.open(tmp_path, files, RunOptions())


def test_a_runtime_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "__version__", "2024.6.0-17404-abc")
    probe = target.probe()
    assert (probe.can_build, probe.can_run) == (False, False)
    assert probe.reason == "openvino 2024.6.0 is too old: 2026.4 is needed"


@pytest.mark.parametrize("said_at", ["export", "open"])
def test_compiled_models_are_kept_where_asked(
    source: Path, tmp_path: Path, batch: Any, said_at: str
) -> None:
    engine, elsewhere = tmp_path / "engine", tmp_path / "elsewhere"
    engine.mkdir()
    options = {"cache": "compiled"} if said_at == "export" else {}
    made = target.export(source / "fused.onnx", engine, EngineSpec("fp32", options))
    assert made.facts["options"] == {"device": "CPU"}
    opened = {} if said_at == "export" else {"cache": str(elsewhere)}
    answers = []
    for loaded in (False, True):
        with target.open(engine, made.files, RunOptions(1, opened)) as runner:
            assert runner.facts["from_cache"] is loaded
            assert runner.facts["inference_precision"] == "f32"
            answers.append(runner(batch))
    np.testing.assert_array_equal(*answers)
    kept = engine / "compiled" if said_at == "export" else elsewhere
    assert list(kept.iterdir())
    assert str(tmp_path) not in (engine / "model.xml").read_text()


def test_a_start_that_reads_everything_again_reads_the_compiled_model_too(
    source: Path, tmp_path: Path
) -> None:
    files = made(source, tmp_path, EngineSpec("fp32", {"cache": "compiled"}))
    artifact = Artifact.model_construct(
        engine="warm",
        department="ward",
        target="openvino",
        precision="fp32",
        files=tuple(EngineFile(name=name, sha256="", bytes=0) for name in files),
        folder=tmp_path,
    )
    with EngineProcess(artifact, 1, None) as process:
        process.open()
        read = process.ask("files")[0]["files"]
    compiled = list((tmp_path / "compiled").rglob("*.blob"))
    assert compiled and {str(file) for file in compiled} <= set(read)


def test_input_of_another_type(source: Path, tmp_path: Path) -> None:
    files = made(source, tmp_path, EngineSpec())
    with (
        target.open(tmp_path, files, RunOptions()) as runner,
        pytest.raises(ArtifactError, match="float64"),
    ):
        runner(np.zeros((1, 3, 16, 16)))  # type: ignore[arg-type]


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fresh_processes_give_the_same_weights(
    source: Path, tmp_path: Path, precision: str
) -> None:
    program = (
        "import sys; from pathlib import Path; from lorkd_exporters import openvino; "
        "from lorkd_deploy.runtime import EngineSpec; "
        "openvino.export(Path(sys.argv[1]), Path(sys.argv[2]), EngineSpec(sys.argv[3])); "
        "assert 'torch' not in sys.modules"
    )
    hashes = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        command = [sys.executable, "-c", program, source / "fused.onnx", folder, precision]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
        hashes.add(sha256_file(folder / "model.bin"))
        assert str(tmp_path) not in (folder / "model.xml").read_text()
    assert len(hashes) == 1

"""The model repository, read as the server reads it: by its own schema, and by its backends."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import Artifact, check_files, read_artifact, write_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.programs import triton
from lorkd_deploy.deploy.programs.samples import write_sample
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.runtime import exporter
from lorkd_deploy.storage import write_atomic
from tests.deploy.made_run import OF_TASK, PREPROCESS, TASKS, classes_of, true_logits

BUILD = Path(__file__).parents[3] / "build"
CLIENT, MEMBER = "tritonclient==2.73.0", "tritonclient/grpc/model_config_pb2.py"
SHA256 = "64e3885222b207ff2c655925444c60c8ecad8ea1008e2c9337db6be7bb608e9d"
SERVED = [t for t in ("onnx", "openvino") if exporter(t).probe().can_run]


@pytest.fixture(scope="session")
def model_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The server's `ModelConfig` message, from one file of NVIDIA's client.

    The client itself wants older protobuf and ml-dtypes than everything else here, so its wheel is
    not installed. protobuf 7 reads what was generated for 6.
    """
    file = BUILD / CLIENT / "model_config_pb2.py"
    if not file.is_file():
        wheels = tmp_path_factory.mktemp("wheels")
        fetch = ["download", "--no-deps", "--retries", "1", "--timeout", "10"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *fetch, "--dest", str(wheels), CLIENT],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"{CLIENT}, which has Triton's schema, can't be had: {done.stderr[-200:]}")
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            write_atomic(file, wheel.read(MEMBER))
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(model_config: Any, text: str) -> Any:
    """A `config.pbtxt` as the server reads it: an unknown or misspelt field is an error."""
    from google.protobuf import text_format

    return text_format.Parse(text, model_config.ModelConfig())


def served(model: Path, config: Any, images: Any) -> Any:
    """Logits of the model, found and run by what its configuration says and nothing else."""
    file = model / "1" / config.default_model_filename
    (given,), (wanted,) = config.input, config.output
    if config.platform == "onnxruntime_onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        shapes = session.get_inputs()[0].shape, session.get_outputs()[0].shape
        assert [shape[1:] for shape in shapes] == [list(given.dims), list(wanted.dims)]
        return session.run([wanted.name], {given.name: images})[0]
    import openvino

    network = openvino.Core().read_model(file)
    shapes = network.input(given.name).partial_shape, network.output(wanted.name).partial_shape
    lengths = [[-1 if d.is_dynamic else d.get_length() for d in shape] for shape in shapes]
    assert lengths == [list(given.dims), list(wanted.dims)]
    # The configuration says that its backend can't be told: a CPU may have faster arithmetic.
    told = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(network, "CPU", told)({given.name: images})[wanted.name]


@pytest.mark.parametrize("target", SERVED)
def test_one_model_a_task_loadable_by_its_configuration_alone(
    run: Path, model_config: Any, target: str
) -> None:
    export(run, target, layout="triton")
    repository = run / "triton"
    assert {f.name for f in repository.iterdir() if f.is_dir()} == set(TASKS)
    images = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    for task, classes in TASKS.items():
        model = repository / task
        config = parsed(model_config, (model / "config.pbtxt").read_text(encoding="utf-8"))
        assert config.name == task
        assert [config.input[0].data_type, config.output[0].data_type] == [
            model_config.TYPE_FP32
        ] * 2
        (group,) = config.instance_group
        assert (group.count, group.kind) == (1, model_config.ModelInstanceGroup.KIND_CPU)
        labels = (model / config.output[0].label_filename).read_text(encoding="utf-8")
        assert labels.splitlines() == list(classes_of(task))
        expected = true_logits(run, task, images)
        assert expected.shape == (5, classes)
        assert np.abs(served(model, config, images) - expected).max() < 1e-4

        proof = read_artifact(model / "1")
        check_files(proof)
        assert (proof.department, proof.engine) == (OF_TASK[task], task)
        assert proof.parity.status == "passed"
        original = read_artifact(run / "export" / proof.name)
        assert original == proof.model_copy(update={"folder": original.folder})
        if target == "onnx":
            assert config.max_batch_size == 32
            assert config.HasField("dynamic_batching")
            assert config.parameters["intra_op_thread_count"].string_value == "1"
        else:  # whose backend would make the batch static
            assert (config.backend, config.max_batch_size) == ("openvino", 0)
            assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize("target", SERVED)
def test_a_model_takes_uint8_images_and_gives_probabilities(
    run: Path, model_config: Any, target: str
) -> None:
    export(run, target, layout="triton", options={"raw": True}, department=["clinic"])
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    for task, kind in (("eye", "multiclass"), ("findings", "multilabel")):
        model = run / "triton" / task
        text = (model / "config.pbtxt").read_text(encoding="utf-8")
        assert "bilinear resize to 16 x 16 px, uint8, channels last\n" in text
        assert "# The output is probabilities; the columns" in text
        config = parsed(model_config, text)
        (given,), (wanted,) = config.input, config.output
        assert (given.name, wanted.name) == ("image", "probabilities")
        assert (given.data_type, wanted.data_type) == (
            model_config.TYPE_UINT8,
            model_config.TYPE_FP32,
        )
        expected = probabilities(true_logits(run, task, PREPROCESS.normalise(images)), kind)
        assert np.abs(served(model, config, images) - expected).max() < 1e-5


def test_the_teacher_is_one_model_whose_labels_say_the_task(run: Path, model_config: Any) -> None:
    export(run, teacher=True, task=["eye"], layout="triton", out=run / "models")
    model = run / "models" / "teacher"
    config = parsed(model_config, (model / "config.pbtxt").read_text(encoding="utf-8"))
    assert list(config.output[0].dims) == [sum(TASKS.values())]
    labels = (model / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels[:3] == ["lung: lung 0", "lung: lung 1", "heart: heart 0"]
    assert len(labels) == sum(TASKS.values())
    assert (run / "export" / "teacher" / "onnx-fp32" / "model.onnx").is_file()


@pytest.fixture
def eye(exported: Path) -> Artifact:
    """An engine's record, to be changed into another target's."""
    return read_artifact(exported / "export" / "clinic" / "eye" / "onnx-fp32")


def changed(artifact: Artifact, target: str, precision: str = "fp32", **options: Any) -> Artifact:
    facts = {"version": "10.3.0", "options": options}
    return artifact.model_copy(
        update={"target": target, "precision": precision, "facts": facts},
    )


def test_a_plan_has_its_own_largest_batch_and_runs_on_the_gpu(
    exported: Path, eye: Artifact, model_config: Any
) -> None:
    graph = load_bundle(exported).manifest.graph
    text = triton.config(changed(eye, "trt", min_batch=1, max_batch=8), graph)
    config = parsed(model_config, text)
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 8)
    assert config.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_GPU
    assert config.HasField("dynamic_batching")
    assert "TensorRT 10.3.0" in text
    with pytest.raises(ArtifactError, match="no fewer than 4"):
        triton.config(changed(eye, "trt", min_batch=4, max_batch=8), graph)


def test_an_engine_of_other_providers_is_neither_served_nor_sampled(
    exported: Path, eye: Artifact
) -> None:
    other = changed(eye, "onnx", providers=["CUDA", "CPU"])
    with pytest.raises(ArtifactError, match="another device than the CPU"):
        triton.config(other, load_bundle(exported).manifest.graph)
    with pytest.raises(ArtifactError, match="this one is for other providers"):
        write_sample(other, "python")


def test_what_the_openvino_backend_can_be_told(
    exported: Path, eye: Artifact, model_config: Any
) -> None:
    graph = load_bundle(exported).manifest.graph
    told = parsed(
        model_config, triton.config(changed(eye, "openvino", "bf16", device="CPU"), graph)
    )
    assert told.parameters["HINT_BF16"].string_value == "YES"
    plain = triton.config(changed(eye, "openvino", device="CPU"), graph)
    assert "HINT_BF16" not in parsed(model_config, plain).parameters
    assert "has bf16 computes in that" in plain
    with pytest.raises(ArtifactError, match="another device than the CPU"):
        triton.config(changed(eye, "openvino", device="GPU"), graph)


@pytest.mark.skipif("openvino" not in SERVED, reason="the target's runtime is not installed")
def test_arithmetic_that_the_server_may_change_is_said_once(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export(run, "openvino", layout="triton", department=["ward"])
    assert caplog.text.count("can't be told to compute in f32") == 1


def test_models_of_others_stay_and_stop_the_export_before_it_builds(run: Path) -> None:
    repository = run / "models"
    foreign = repository / "eye" / "1" / "model.onnx"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("somebody's")
    with pytest.raises(ArtifactError, match="another model called eye: no export of lorkd"):
        export(run, layout="triton", out=repository)
    assert foreign.read_text() == "somebody's"
    assert not (run / "export").exists()

    export(run, task=["lung"], layout="triton", out=repository)
    assert sorted(f.name for f in repository.iterdir() if f.is_dir()) == ["eye", "lung"]
    record = read_artifact(repository / "lung" / "1")
    moved = record.model_copy(update={"department": "elsewhere"})
    write_artifact(moved, repository / "lung" / "1")
    with pytest.raises(ArtifactError, match="that of department elsewhere"):
        export(run, task=["lung"], layout="triton", out=repository)


def test_a_second_export_replaces_the_model_whole(run: Path) -> None:
    export(run, task=["eye"], layout="triton")
    model = run / "triton" / "eye"
    (model / "1" / "left-over").write_text("")
    export(run, task=["eye"], layout="triton")
    assert sorted(f.name for f in (model / "1").iterdir()) == ["artifact.json", "model.onnx"]
    assert not [f for f in model.parent.iterdir() if f.name not in {"eye", ".lock"}]


def test_layouts_and_targets_that_do_not_exist(run: Path) -> None:
    with pytest.raises(UsageError, match="'tritn'") as caught:
        export(run, layout="tritn")
    assert "'triton'" in str(caught.value.fix)
    if exporter("trt-rtx").probe().can_build:
        with pytest.raises(UsageError, match="no backend for trt-rtx") as caught:
            export(run, "trt-rtx", layout="triton")
        assert "onnx, openvino, trt" in str(caught.value.fix)
    assert not (run / "export").exists()

"""Engines that take pictures as they are: to the bit the probabilities of those that don't."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.answers.model_step import ModelStep
from lorkd_deploy.deploy.artifact import open_engine, read_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.graphs.raw import raw_model
from lorkd_deploy.deploy.pack import pack
from lorkd_deploy.deploy.predict import predict
from lorkd_deploy.deploy.proof.parity import ParityError
from lorkd_deploy.deploy.switchboard import Switchboard
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.profiling.mlperf.loadgen import available
from lorkd_deploy.profiling.mlperf.scenarios import benchmark_scenarios
from lorkd_deploy.profiling.worker.process import EngineProcess
from lorkd_deploy.profiling.worker.stages import draw_image
from lorkd_deploy.runtime import exporter
from tests.deploy.made_run import PREPROCESS, TASKS, true_logits
from tests.readme import DOCS, blocks

RAW = {"raw": True}
TARGETS = [t for t in ("onnx", "openvino") if exporter(t).probe().can_run]
pytestmark = pytest.mark.skipif("onnx" not in TARGETS, reason="ONNX Runtime is not installed")


@pytest.fixture
def pictures() -> Any:
    return parity_inputs(5, PREPROCESS.size, 8)


def kind_of(task: str) -> Any:
    return "multilabel" if task == "findings" else "multiclass"


@pytest.mark.parametrize("target", TARGETS)
def test_uint8_in_and_probabilities_out(run: Path, pictures: Any, target: str) -> None:
    artifacts = export(run, target, options=RAW, teacher=True)
    assert [a.engine for a in artifacts] == [*TASKS, "teacher"]
    for artifact in artifacts[:-1]:
        assert (artifact.input_dtype, artifact.output) == ("uint8", "probabilities")
        assert read_artifact(artifact.folder) == artifact
        parity = artifact.parity
        assert parity.status == "passed"
        assert {entry.of for entry in parity.compared} == {"probabilities"}
        assert {entry.on for entry in parity.compared} == {"inputs", "images"}
        assert [link.after for link in parity.links] == ["fused ONNX", "engine"]
        assert {entry.of for entry in parity.links[0].compared} == {"logits"}
        logits = true_logits(run, artifact.engine, PREPROCESS.normalise(pictures))
        with open_engine(artifact) as engine:
            found = engine(pictures)
        assert found.dtype == np.float32
        assert np.abs(found - probabilities(logits, kind_of(artifact.engine))).max() < 1e-5
    assert all(verdict.passed for verdict in verify(run))


def test_the_network_gets_the_same_bits(run: Path, pictures: Any) -> None:
    """The logits are a tensor of the model still; they are compared before any softmax."""
    bundle = load_bundle(run / "bundle")
    plain = onnx_model(bundle, "eye")
    model = onnx.load_from_string(raw_model(plain, bundle, "eye"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("output", 1, ["N", 3]))
    import onnxruntime

    def given(data: bytes, name: str, batch: Any) -> Any:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return session.run(["output"], {name: batch})[0]

    wanted = given(plain, "input", PREPROCESS.normalise(pictures))
    assert given(model.SerializeToString(), "image", pictures).tobytes() == wanted.tobytes()


def test_the_teacher_has_each_task_by_its_own_kind(run: Path, pictures: Any) -> None:
    bundle = load_bundle(run / "teacher")
    model = raw_model(onnx_model(bundle, "teacher"), bundle, "teacher")
    kinds = [n.op_type for n in onnx.load_from_string(model).graph.node[-6:]]
    assert kinds == ["Split", "Softmax", "Softmax", "Softmax", "Sigmoid", "Concat"]
    artifacts = [export(run, options=o, task=["eye"], teacher=True)[-1] for o in (None, RAW)]
    assert artifacts[0].tasks == artifacts[1].tasks


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_coarser_precisions_have_it_too(run: Path, precision: str) -> None:
    if precision == "int8" and find_spec("nncf") is None:
        pytest.skip("NNCF is not installed")
    (artifact,) = export(run, precision=precision, options=RAW, task=["findings"])
    (verdict,) = verify(run)
    assert verdict.passed
    after = [link.after for link in artifact.parity.links]
    assert after == ["fused ONNX", f"{precision} ONNX", "engine"]
    # The same arithmetic: what is between the last two is the sigmoid in float32 alone.
    last = [entry for entry in artifact.parity.links[-1].compared if entry.on == "images"]
    assert last[0].max_abs is not None and last[0].max_abs < 1e-5


def test_an_engine_that_normalises_otherwise_fails_its_proof(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale, shift = PREPROCESS.scale_and_shift
    monkeypatch.setattr(type(PREPROCESS), "scale_and_shift", (scale * np.float32(1.1), shift))
    bundle = load_bundle(run / "bundle")
    wrong = raw_model(onnx_model(bundle, "eye"), bundle, "eye")
    monkeypatch.undo()
    monkeypatch.setattr("lorkd_deploy.deploy.build.raw_model", lambda *_: wrong)
    with pytest.raises(ParityError, match=r"max \|difference\| of probabilities"):
        export(run, options=RAW, task=["eye"])
    assert not list((run / "export").rglob("artifact.json"))


def test_every_command_takes_it_as_any_other(run: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "scan.npy"
    np.save(file, np.load(data / "findings.npz")["test_images"][2])
    answers, given = [], []
    for options in (None, RAW):
        export(run, options=options, task=["findings"])
        saved = tmp_path / "input.npy"
        answers += predict(run, "findings", [file], save_input=saved)
        given.append(np.load(saved))
    assert answers[0].label == answers[1].label
    for before, after in zip(*(list(a.probabilities.values()) for a in answers), strict=True):
        assert abs(before - after) < 1e-6
    assert (given[1].dtype, given[1].shape) == (np.uint8, (1, 16, 16, 3))
    assert (PREPROCESS.normalise(given[1]) == given[0]).all()

    (verdict,) = verify(run, drill_down=True)
    assert verdict.passed
    assert verdict.drilled is not None and verdict.drilled.node is None
    assert verdict.drilled.tensor == "output"  # the logits, which both have
    (packed,) = pack(run, "clinic", tmp_path / "packed").engines
    assert packed.raw
    assert all(part.passed for part in verify(tmp_path / "packed"))
    example = packed.folder / "test_data_set_0" / "input_0.pb"
    assert onnx.TensorProto.FromString(example.read_bytes()).name == "image"


def test_a_model_step_serves_it(run: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 20, 24, 3), np.uint8)
    found = []
    for options in (None, RAW):
        export(run, options=options, task=["eye"], layout="mlserver")
        with ModelStep(run / "mlserver" / "eye" / "engine") as step:
            found.append(step(images))
    assert found[0]["label"].tolist() == found[1]["label"].tolist()
    assert np.abs(found[0]["probabilities"] - found[1]["probabilities"]).max() < 1e-6


def test_the_worker_of_a_benchmark_measures_and_scores_it(
    run: Path, pictures: Any, tmp_path: Path
) -> None:
    (artifact,) = export(run, options=RAW, task=["eye"])
    with EngineProcess(artifact, 1, None) as process:
        process.open()
        process.ask("first", shape=[2, *artifact.input_shape], seed=0)
        found = process.infer(artifact.batch(pictures))
        assert process.layers(artifact, 2, 1)
        scan = tmp_path / "scan.png"
        draw_image(scan, 0)
        asked = {"image": str(scan), "preprocess": PREPROCESS.model_dump(mode="json"), "raw": True}
        asked |= {"kind": "multiclass", "start": 0, "stop": 3, "iterations": 3, "seconds": 0}
        _, times = process.ask("stages", **asked)
        assert len(np.frombuffer(times, np.int64)) == 4 * 2
    with open_engine(artifact) as engine:
        assert (found == engine(pictures)).all()


@pytest.mark.skipif(available() is None, reason="MLCommons LoadGen is not installed")
def test_loadgen_which_asks_with_network_inputs_refuses_it(run: Path) -> None:
    export(run, options=RAW, task=["eye"])
    with pytest.raises(UsageError, match="what takes images is clinic/eye/onnx-fp32"):
        benchmark_scenarios(run, ["single-stream"], teacher=False, quick=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": "auto"}, "raw is for probabilities"),
        ({"options": RAW | {"adapters": True}}, "exclude each other"),
        ({"sample": ["python"]}, "samples preprocess by themselves"),
        ({"options": {"raw": "yes"}}, "valid boolean"),
    ],
)
def test_what_does_not_go_with_it_is_said_before_anything_is_written(
    run: Path, given: Any, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        export(run, **{"options": RAW, **given})
    assert not list((run / "export").rglob("artifact.json"))


def test_a_batch_of_another_type_is_refused(run: Path, pictures: Any) -> None:
    batches = {"uint8": pictures, "float32": PREPROCESS.normalise(pictures)}
    for options, wrong in ((None, "uint8"), (RAW, "float32")):
        export(run, options=options, task=["eye"])
        with (
            Switchboard(run) as board,
            board.department("clinic", task="eye") as engine,
            pytest.raises(ArtifactError, match=f"failed on {wrong}"),
        ):
            engine(batches[wrong])


def test_the_how_to_page_runs_it_without_us(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "how-to" / "use-an-engine.md"
    (body,) = (b.body for b in blocks(page) if b.comment.startswith("python: needs an engine with"))
    (artifact,) = export(run, options=RAW, task=["eye"])
    file = tmp_path / "scan.png"
    Image.fromarray(np.load(data / "eye.npz")["test_images"][0]).save(file)
    monkeypatch.chdir(tmp_path)
    theirs = "runs/small/export/breast-clinic/breast/onnx-fp32"
    names: dict[str, Any] = {}
    exec(body.replace(theirs, str(artifact.folder)), names)
    (answer,) = predict(run, "eye", [file])
    wanted = np.array(list(answer.probabilities.values()))
    assert np.abs(names["probabilities"][0] - wanted).max() < 1e-6

"""The programs beside an engine give the probabilities of `lorkd predict`, run as a user would."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy.deploy.artifact import Artifact, read_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.predict import predict
from lorkd_deploy.deploy.programs.samples import write_sample
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.runtime import exporter, targets
from tests.deploy.made_run import TASKS, classes_of, true_logits

RUNNABLE = [t for t in targets() if exporter(t).probe().can_run]
needs_openvino = pytest.mark.skipif(
    "openvino" not in RUNNABLE, reason="the target's runtime is not installed"
)
ODD = ('a"b\\c??/', "Übel\u2028\t", "{x}%d@SIZE@")  # as class names; each would break some syntax


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A grey image that is not the network's size."""
    pixels = np.random.default_rng(3).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


def printed(*command: object) -> dict[tuple[str, ...], float]:
    """(task, class) → probability, as a program prints them."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.rstrip("\n").split("\n"):
        name, _, value = line.rpartition("\t")
        found[tuple(name.split("\t", 1))] = float(value)
    return found


def functions(artifact: Artifact) -> dict[str, Any]:
    """What the Python program defines."""
    return runpy.run_path(str(write_sample(artifact, "python") / "classify.py"))


@pytest.mark.thorough
@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize("task", ["eye", "findings"])  # softmax and sigmoid
def test_python_answers_as_predict_does(run: Path, scan: Path, target: str, task: str) -> None:
    (artifact,) = export(run, target, task=[task], sample=["python"])
    program = artifact.folder / "sample-python" / "classify.py"
    assert "lorkd_deploy" not in program.read_text(encoding="utf-8")
    (answer,) = predict(run, task, [scan], target=target, save_input=scan.with_name("x.npy"))
    expected = {(task, name): p for name, p in answer.probabilities.items()}
    for given in (scan, scan.with_name("x.npy")):
        assert printed(sys.executable, "-I", program, given) == pytest.approx(expected, abs=2e-6)
    required = (program.with_name("requirements.txt")).read_text(encoding="utf-8").splitlines()
    wheel = {"onnx": "onnxruntime"}.get(target, target)
    assert required[-1] == f"{wheel}=={exporter(target).probe().version}"


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=16),
        Preprocess(size=24, resize_shorter=31, interpolation="bicubic"),
        Preprocess(
            size=16,
            resize_shorter=16,
            interpolation="nearest",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
    ],
)
def test_python_preprocesses_to_the_same_bytes(
    exported: Path, tmp_path: Path, preprocess: Preprocess
) -> None:
    engine = read_artifact(exported / "export" / "clinic" / "eye" / "onnx-fp32")
    network_input = functions(engine.model_copy(update={"preprocess": preprocess}))["network_input"]
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (20, 33), "b.png": (51, 24, 3), "c.jpg": (40, 40, 3)}.items():
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            expected = preprocess([np.asarray(image)])
        assert network_input(tmp_path / name).tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["I;16", "RGBA"])
def test_python_refuses_what_predict_refuses(exported: Path, tmp_path: Path, mode: str) -> None:
    engine = read_artifact(exported / "export" / "clinic" / "eye" / "onnx-fp32")
    Image.new(mode, (30, 30)).save(tmp_path / "scan.png")
    with pytest.raises(SystemExit, match="8 bits a value and no transparency"):
        functions(engine)["network_input"](tmp_path / "scan.png")


def test_a_program_of_several_tasks_with_odd_names(exported: Path, scan: Path) -> None:
    teacher = read_artifact(exported / "export" / "teacher" / "onnx-fp32")
    tasks = tuple(
        t.model_copy(update={"classes": ODD}) if t.name == "eye" else t for t in teacher.tasks
    )
    found = functions(teacher.model_copy(update={"tasks": tasks}))["TASKS"]
    assert [name for name, _, _ in found] == list(TASKS)
    assert [exclusive for _, exclusive, _ in found] == [t != "findings" for t in TASKS]
    assert found[2][2] == list(ODD)
    assert found[0][2] == list(classes_of("lung"))


@needs_openvino
@pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "c++"))), reason="cmake or a C++ compiler is missing"
)
@pytest.mark.slow
def test_cpp_is_built_and_answers_as_predict_does(run: Path, scan: Path, tmp_path: Path) -> None:
    from openvino.utils import get_cmake_path

    (artifact,) = export(run, "openvino", task=["eye"], sample=["cpp"])
    source, saved = artifact.folder / "sample-cpp", tmp_path / "x.npy"
    (answer,) = predict(run, "eye", [scan], target="openvino", save_input=saved)
    # A second task, with names that only a compiler can tell to be well written.
    odd = artifact.tasks[0].model_copy(update={"name": "odd", "kind": "multilabel"})
    both = (*artifact.tasks, odd.model_copy(update={"classes": ODD, "start": 0}))
    write_sample(artifact.model_copy(update={"tasks": both}), "cpp")
    text = (source / "classify.cpp").read_text(encoding="utf-8")
    # … whose logits are the first task's again, which tests the sigmoid.
    text = text.replace("logits += found.size();", "")
    (source / "classify.cpp").write_text(text, encoding="utf-8")

    build = tmp_path / "build"
    configure = ["-S", source, "-B", build, f"-DOpenVINO_DIR={get_cmake_path()}"]
    for step in ([*configure, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"], ["--build", build]):
        done = subprocess.run(
            ["cmake", *map(str, step)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    model = artifact.folder / artifact.file_names[0]
    logits = true_logits(run, "eye", np.load(saved))[0]
    expected = {("eye", name): p for name, p in answer.probabilities.items()}
    expected |= {("odd", n): p for n, p in zip(ODD, 1 / (1 + np.exp(-logits)), strict=True)}
    assert printed(build / "classify", model, saved) == pytest.approx(expected, abs=2e-6)

    np.save(tmp_path / "bad.npy", np.zeros((1, 3, 16, 17), np.float32))
    refused = subprocess.run(
        [build / "classify", model, tmp_path / "bad.npy"], capture_output=True, check=False
    )
    assert refused.returncode == 1
    assert b"is not float32 (N, 3, 16, 16)" in refused.stderr


@pytest.mark.parametrize("status", ["passed", "failed", "not run here"])
def test_a_program_says_where_its_engine_is_not_verified(exported: Path, status: str) -> None:
    engine = read_artifact(exported / "export" / "clinic" / "eye" / "onnx-fp32")
    parity = engine.parity.model_copy(update={"status": status})
    engine = engine.model_copy(update={"parity": parity})
    for language, name, comment in (("python", "classify.py", ""), ("cpp", "classify.cpp", "// ")):
        program = write_sample(engine, language) / name
        first, second, *_ = program.read_text(encoding="utf-8").splitlines()
        assert first.endswith("Not a medical device.")
        said = f"{comment}NOT VERIFIED when this was written (parity: {status}): run `lorkd verify`"
        assert second.startswith(said) == (status != "passed")
    assert functions(engine)["SIZE"] == engine.preprocess.size


@pytest.mark.parametrize("language", ["python", "cpp"])
def test_an_engine_that_takes_no_single_image(exported: Path, language: str) -> None:
    engine = read_artifact(exported / "export" / "clinic" / "eye" / "onnx-fp32")
    engine = engine.model_copy(update={"facts": {"options": {"min_batch": 2}}})
    with pytest.raises(ArtifactError, match="no fewer than 2 images, and the sample") as caught:
        write_sample(engine, language)
    assert "min_batch=1" in str(caught.value.fix)


def test_samples_that_do_not_exist(run: Path) -> None:
    with pytest.raises(UsageError, match="no cpp sample for the target onnx") as caught:
        export(run, sample=["python", "cpp"])
    assert "cpp: openvino" in str(caught.value.fix)
    assert "python: onnx, openvino, trt, trt-rtx" in str(caught.value.fix)
    with pytest.raises(UsageError, match="no sample is called 'pyhton'") as caught:
        export(run, sample=["pyhton"])
    assert "'python'" in str(caught.value.fix)
    assert not (run / "export").exists()

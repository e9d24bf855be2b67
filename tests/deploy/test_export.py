from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lorkd_deploy.bundle import size
from lorkd_deploy.bundle.parity_inputs import known_inputs
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy import build as build_module
from lorkd_deploy.deploy.artifact import Artifact, check_files, find_artifacts, read_artifact
from lorkd_deploy.deploy.example import DATA_SET
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import (
    ArtifactError,
    BundleError,
    GateError,
    LorkdError,
    ModelError,
    RuntimeUnavailableError,
    UsageError,
)
from lorkd_deploy.runtime import exporter
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import exclusive, sha256_file
from tests.deploy.made_run import OF_TASK, TASKS

EXPERTS = ["ward/lung", "ward/heart", "clinic/eye", "clinic/findings"]


def hashes(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones too, but for the lock."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in files}


def wrong(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Export with tensors that `change(bundle, tensors)` has damaged after fusion."""

    def faulty(bundle: Bundle, engine: str, **options: Any) -> bytes:
        tensors = {name: value.copy() for name, value in bundle.fuse(engine).items()}
        return onnx_model(bundle, engine, tensors=change(bundle, tensors) or tensors, **options)

    monkeypatch.setattr(build_module, "onnx_model", faulty)


def test_one_engine_a_task_each_proven(run: Path) -> None:
    artifacts = export(run)
    assert [a.name for a in artifacts] == [f"{name}/onnx-fp32" for name in EXPERTS]
    bundle = load_bundle(run)
    for artifact in artifacts:
        task = artifact.engine
        assert artifact == read_artifact(run / "export" / artifact.name)
        assert artifact.department == OF_TASK[task]
        assert artifact.bundle_sha256 == bundle.sha256
        assert artifact.preprocess_sha256 == bundle.manifest.preprocess_sha256
        assert [(t.name, t.start, t.stop) for t in artifact.tasks] == [(task, 0, TASKS[task])]
        assert artifact.parity.status == "passed"
        assert [(c.on, c.rows) for c in artifact.parity.compared] == [("inputs", 8), ("images", 5)]
        assert artifact.parity.max_abs is not None and 0 < artifact.parity.max_abs < 1e-4
        assert artifact.facts["provider"] == "CPUExecutionProvider"
        model = run / "export" / artifact.name / "model.onnx"
        assert artifact.onnx_sha256 == artifact.files[0].sha256 == sha256_file(model)
        beside = ["artifact.json", "model.onnx", DATA_SET]
        assert sorted(p.name for p in artifact.folder.iterdir()) == beside
    assert find_artifacts(run) == sorted(artifacts, key=lambda a: a.name)


def test_the_teacher_is_one_engine_with_every_task(run: Path) -> None:
    teacher = export(run, teacher=True)[-1]
    assert teacher.name == "teacher/onnx-fp32"
    assert [(t.name, t.start, t.stop) for t in teacher.tasks] == [
        ("lung", 0, 2),
        ("heart", 2, 4),
        ("eye", 4, 7),
        ("findings", 7, 10),
    ]
    assert len(teacher.parity.compared) == 8
    assert teacher.bundle_sha256 == load_bundle(run / "teacher").sha256
    assert teacher == export(run / "teacher", out=run / "elsewhere")[0].model_copy(
        update={"folder": teacher.folder, "build_seconds": teacher.build_seconds}
    )


def test_selection_and_another_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "engines"
    assert [a.engine for a in export(run, department=["clinic"], out=out)] == ["eye", "findings"]
    assert [a.engine for a in export(run, task=["heart"], out=out)] == ["heart"]
    chosen = export(run, department=["clinic", "ward"], task=["eye", "lung"], out=out)
    assert [a.engine for a in chosen] == ["lung", "eye"]
    assert len(find_artifacts(run, out)) == 4
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        ({"department": ["wards"]}, "no department is called 'wards'", "ward"),
        ({"task": ["hart"]}, "no task is called 'hart'", "heart"),
        ({"target": "onx"}, "no target is called 'onx'", "onnx"),
        ({"department": ["ward"], "task": ["eye"]}, "no task of ward is called eye", "name one"),
    ],
)
def test_unknown_names(run: Path, arguments: dict[str, Any], message: str, fix: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        export(run, **arguments)
    assert fix in str(caught.value.fix)
    assert not (run / "export").exists()


def test_an_unsupported_precision_lists_what_there_is(run: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="fp7") as caught:
        export(run, precision="fp7")
    assert "fp32" in str(caught.value.fix)


def test_options_reach_the_target_or_are_listed(run: Path) -> None:
    pytest.importorskip("openvino", reason="the target with options is not installed")
    (artifact,) = export(run, "openvino", options={"device": "CPU"}, task=["eye"])
    assert artifact.name == "clinic/eye/openvino-fp32"
    assert artifact.facts["options"] == {"device": "CPU"}
    assert artifact.facts["inference_precision"] == "f32"
    assert artifact.parity.max_abs is not None and artifact.parity.max_abs < 1e-4
    before = hashes(run / "export")
    with pytest.raises(UsageError, match="no option devise") as caught:
        export(run, "openvino", options={"devise": "CPU"}, task=["eye"])
    assert "device" in str(caught.value.fix)
    assert hashes(run / "export") == before


@pytest.mark.skipif(
    not exporter("trt-rtx").probe().can_build or exporter("trt-rtx").probe().can_run,
    reason="TensorRT for RTX has to be here, and no GPU",
)
def test_what_is_only_built_here_is_not_taken_for_proven(run: Path, tmp_path: Path) -> None:
    options = {"compute_capabilities": ["SM86"]}
    (artifact,) = export(run, "trt-rtx", options=options, task=["eye"])
    assert artifact.name == "clinic/eye/trt-rtx-fp32"
    assert artifact.parity.status == "not run here"
    assert "GPU" in artifact.parity.reasons[0]
    assert artifact.file_names == ("model.engine", "build.log")
    assert artifact.onnx_sha256 == export(run, task=["eye"])[0].onnx_sha256
    verdicts = {v.engine: v for v in verify(run)}
    assert not verdicts[artifact.name].passed
    assert "parity was not run" in verdicts[artifact.name].reasons[0]
    for file in artifact.folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_the_recipe_overrides_the_tolerance(run: Path) -> None:
    manifest = run / "bundle" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["recipe"]["parity"]["tolerance"] = {"fp32": {"logits": 1e-9}}
    manifest.write_bytes(document_bytes(content))
    with pytest.raises(GateError, match=r"tolerance 1e-0[89]|tolerance \d\S*e-0[89]"):
        export(run, task=["eye"])
    content["recipe"]["parity"]["tolerance"] = {"fp32": {"logits": -1}}
    manifest.write_bytes(document_bytes(content))
    with pytest.raises(BundleError, match="parity section"):
        export(run, task=["eye"])


def test_nothing_to_export(tmp_path: Path, run: Path) -> None:
    with pytest.raises(BundleError, match="no run and no bundle"):
        export(tmp_path)
    for file in sorted((run / "teacher").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(BundleError, match="bundle"):
        export(run, teacher=True)
    assert not (run / "export").exists()


@pytest.mark.parametrize("name", ["conv1.weight", "conv2.weight", "val_1", "p.running_mean"])
def test_a_weight_off_by_one_percent_is_found(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # One value alone. Of some channels ReLU passes nothing on: those weights decide nothing.
    def largest_value(_: Bundle, tensors: dict[str, Any]) -> None:
        flat = tensors[name].reshape(-1)
        flat[np.abs(flat).argmax()] *= 1.01

    wrong(monkeypatch, largest_value)
    with pytest.raises(GateError, match=r"8 generated inputs: max \|difference\| .*tolerance"):
        export(run, task=["heart"])
    assert hashes(run / "export") == {}


def test_an_expert_left_unbound_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_delta(bundle: Bundle, tensors: dict[str, Any]) -> dict[str, Any]:
        plain = Bundle(bundle.path, bundle.manifest, bundle.sha256)
        own = dict(bundle.expert("lung"))
        own |= {n: np.zeros_like(v) for n, v in own.items() if n.endswith(".B")}
        monkeypatch.setattr(plain, "expert", lambda _: own)
        return plain.fuse("lung")

    wrong(monkeypatch, without_delta)
    with pytest.raises(GateError, match="lung, 5 test images") as caught:
        export(run, task=["lung"])
    assert caught.value.exit_code == 3
    assert hashes(run / "export") == {}


def test_weights_of_another_department_are_found(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch, lambda bundle, _: bundle.fuse("heart"))
    with pytest.raises(GateError, match="lung"):
        export(run, task=["lung"])
    wrong(monkeypatch, lambda bundle, _: bundle.fuse("findings"))
    with pytest.raises(GateError, match="eye"):
        export(run, task=["eye"])


def test_a_failed_export_leaves_the_good_engine(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run)
    before = hashes(run / "export")

    def not_a_number(_: Bundle, tensors: dict[str, Any]) -> None:
        tensors["head.bias"][0] = np.nan

    wrong(monkeypatch, not_a_number)
    with pytest.raises(GateError, match="not finite"):
        export(run)
    assert hashes(run / "export") == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("moment", ["onnx_model", "write_artifact", "environment"])
def test_stopped_or_out_of_space_leaves_the_state_before(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, moment: str
) -> None:
    export(run, task=["lung"])
    before = hashes(run / "export")

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(build_module, moment, stop)
    expected = LorkdError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        export(run)
    if isinstance(caught.value, LorkdError):
        assert "disk is full" in caught.value.what
        assert "free space" in str(caught.value.fix)
    assert hashes(run / "export") == before


def test_what_a_killed_export_left_is_cleared(run: Path) -> None:
    good = export(run, task=["lung"])[0]
    half = good.folder.with_name(".onnx-fp32.0123abcd.tmp")
    half.mkdir()
    (half / "artifact.json").write_text("{}")
    assert len(find_artifacts(run)) == 1
    # A kill between the two renames: the engine stands aside under its temporary name.
    good.folder.rename(good.folder.with_name(".onnx-fp32.4567abcd.old"))
    export(run, task=["lung"])
    assert [p.name for p in good.folder.parent.iterdir()] == ["onnx-fp32"]


def test_two_exports_into_one_folder(run: Path) -> None:
    with (
        exclusive(run / "export", "export"),
        pytest.raises(LorkdError, match="another process is writing here"),
    ):
        export(run)


@pytest.mark.thorough
def test_fresh_processes_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from lorkd_deploy.deploy.export import export; "
        "export(sys.argv[1], task=['eye'], teacher=True, out=sys.argv[2]); "
        "assert not {'torch', 'torchvision', 'onnxscript'} & set(sys.modules)"
    )
    found = []
    for seed in ("1", "2"):
        out = tmp_path / f"out{seed}"
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", program, run, out], check=True, env=environment)
        found.append({k: v for k, v in hashes(out).items() if k.endswith(".onnx")})
    assert found[0] == found[1]
    assert set(found[0]) == {"clinic/eye/onnx-fp32/model.onnx", "teacher/onnx-fp32/model.onnx"}


def test_nothing_of_this_machine_is_in_an_engine(run: Path, tmp_path: Path) -> None:
    for artifact in export(run, teacher=True):
        model = onnx.load(artifact.folder / "model.onnx")
        props = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(props["lorkd.tasks"])[0]["name"] == artifact.tasks[0].name
        assert props["lorkd.bundle_sha256"] == artifact.bundle_sha256
        assert props["lorkd.preprocess_sha256"] == artifact.preprocess_sha256
        for file in (path for path in artifact.folder.rglob("*") if path.is_file()):
            text = file.read_bytes()
            for place in (tmp_path, Path.home(), Path(build_module.__file__).parent):
                assert str(place).encode() not in text, f"{place} in {file.name}"


def test_an_example_lies_beside_an_onnx_engine_as_the_tools_of_onnx_expect(
    run: Path, data: Path
) -> None:
    import onnxruntime

    shutil.rmtree(data)  # it is of generated inputs: no test image is needed
    (artifact,) = export(run, task=["eye"])
    given, wanted = (
        onnx.load_tensor(artifact.folder / DATA_SET / f"{side}_0.pb")
        for side in ("input", "output")
    )
    session = onnxruntime.InferenceSession(artifact.folder / "model.onnx")
    assert given.name == session.get_inputs()[0].name
    assert wanted.name == session.get_outputs()[0].name
    (found,) = session.run(None, {given.name: onnx.numpy_helper.to_array(given)})
    expected = onnx.numpy_helper.to_array(wanted)
    assert expected.shape == (1, 3)
    assert np.abs(found - expected).max() < 1e-5
    inputs = load_bundle(run).manifest.preprocess.normalise(known_inputs(load_bundle(run)))
    assert np.array_equal(onnx.numpy_helper.to_array(given), inputs[:1])
    assert [entry.name for entry in artifact.example] == [
        f"{DATA_SET}/{side}_0.pb" for side in ("input", "output")
    ]
    (artifact.folder / artifact.example[1].name).write_bytes(b"another answer")
    with pytest.raises(ArtifactError, match=r"output_0\.pb has changed since"):
        check_files(artifact)
    shutil.rmtree(artifact.folder / DATA_SET)  # the engine doesn't need it
    check_files(artifact)


def test_images_that_are_elsewhere_are_said_to_be(run: Path, data: Path) -> None:
    (data / "eye.npz").unlink()
    artifact = export(run, task=["eye"])[0]
    assert artifact.parity.status == "passed"
    assert [c.on for c in artifact.parity.compared] == ["inputs"]
    assert "eye.npz" in artifact.parity.images_not_here["eye"]


def test_record_that_is_damaged_or_newer(run: Path) -> None:
    folder = export(run, task=["eye"])[0].folder
    file = folder / "artifact.json"
    record = json.loads(file.read_text())
    for content, message in (
        (document_bytes(record | {"schema_version": 9}), "schema 9"),
        (document_bytes(record | {"precision": 3}), "not valid at precision"),
        (b"{", "not valid JSON"),
    ):
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match=message):
            read_artifact(folder)
    del record["digest"]
    assert "folder" not in Artifact.model_validate(record).model_dump()


def test_a_network_above_what_onnx_holds_is_refused_before_any_engine(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "LIMIT", 100)  # bytes of weights
    with pytest.raises(ModelError, match="an ONNX file holds 2 at most"):
        export(run, out=tmp_path / "engines")
    assert not (tmp_path / "engines").exists()

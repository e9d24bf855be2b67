from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy import cli
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.answers.classifier import Classifier
from lorkd_deploy.deploy.artifact import read_artifact, write_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.pack import pack
from lorkd_deploy.deploy.proof.parity import Parity
from lorkd_deploy.deploy.verify import Verification, verify
from lorkd_deploy.errors import ArtifactError, BundleError
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.runtime import Closing, Probe, Runner, exporter
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import sha256_bytes
from tests.deploy.made_run import PREPROCESS, make_run, rewrite_record

EYE, LUNG, HEART = (
    Path(f"export/{name}/onnx-fp32") for name in ("clinic/eye", "ward/lung", "ward/heart")
)


def verdicts(run: Path) -> dict[str, Verification]:
    return {verdict.engine: verdict for verdict in verify(run)}


def failed(run: Path) -> dict[str, str]:
    """Engine → why it did not pass, of those that did not."""
    return {n: "; ".join(v.reasons) for n, v in verdicts(run).items() if not v.passed}


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_what_was_exported_passes_again(exported: Path) -> None:
    found = verdicts(exported)
    assert sorted(found) == [
        "clinic/eye/onnx-fp32",
        "clinic/findings/onnx-fp32",
        "teacher/onnx-fp32",
        "ward/heart/onnx-fp32",
        "ward/lung/onnx-fp32",
    ]
    for name, verdict in found.items():
        assert verdict.passed
        assert verdict.reasons == ()
        assert verdict.onnx_not_here is None
        assert verdict.parity == read_artifact(exported / "export" / name).parity


def test_a_run_copied_to_the_device_and_a_bundle_alone(exported: Path, tmp_path: Path) -> None:
    (exported / "run.json").unlink()
    device = shutil.copytree(exported, tmp_path / "device")
    assert failed(device) == {}
    alone = shutil.copytree(exported / "bundle", tmp_path / "alone")
    with pytest.raises(ArtifactError, match="nothing was exported yet") as caught:
        verify(alone)
    assert "lorkd export" in str(caught.value.fix)
    export(alone, department=["clinic"])
    assert len(verdicts(alone)) == 2
    assert failed(alone) == {}
    export(exported / "teacher")
    assert failed(exported / "teacher") == {}


def test_a_pillow_that_resizes_otherwise_is_named(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert {verdict.resampling for verdict in verify(exported)} == {None}
    real = Image.Image.resize

    def otherwise(self: Image.Image, *given: Any) -> Image.Image:
        return real(self, *given).point(lambda value: value ^ 1)

    monkeypatch.setattr(Image.Image, "resize", otherwise)
    for verdict in verify(exported):
        assert "resizes pictures to slightly other pixels" in str(verdict.resampling)
    with Classifier(exported, "eye"):
        assert "pip install pillow==" in caplog.text


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        verify(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: flip_last_byte(run / EYE / "model.onnx"), "model.onnx has changed"),
        (lambda run: (run / EYE / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda run: (run / EYE / "artifact.json").write_text("{"), "not valid JSON"),
        (lambda run: rewrite_record(run / EYE, precision="fp9"), "moved to another's place"),
        (lambda run: rewrite_record(run / EYE, target="no-such"), "moved to another's place"),
        (lambda run: rewrite_record(run / EYE, engine="ear"), "tasks or classes"),
        (lambda run: rewrite_record(run / EYE, bundle_sha256="0" * 64), "another bundle"),
        (lambda run: rewrite_record(run / EYE, onnx_sha256="0" * 64), "against 000000000000…"),
        (lambda run: rewrite_record(run / EYE, preprocess_sha256="0" * 64), "preprocessing"),
    ],
)
def test_a_damaged_engine_fails_and_the_others_pass(
    exported: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(exported)
    assert list(failed(exported)) == ["clinic/eye/onnx-fp32"]
    assert message in failed(exported)["clinic/eye/onnx-fp32"]


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 32},
        {"resize_shorter": 20},
        {"interpolation": "nearest"},
        {"mean": (0, 0, 0)},
        {"std": (1, 1, 1)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_an_engine_of_another_preprocessing(exported: Path, changed: dict[str, Any]) -> None:
    other = Preprocess(**(PREPROCESS.model_dump() | changed))
    rewrite_record(exported / EYE, preprocess=other.model_dump(), preprocess_sha256=other.sha256)
    assert failed(exported) == {"clinic/eye/onnx-fp32": "its preprocessing is not the bundle's"}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images: images[:, ::-1],
        lambda images: 255 * (images * 0.5 + 0.5),
        lambda images: images * 0.5 + 0.5,
    ],
    ids=["BGR", "0 to 255", "0 to 1"],
)
def test_a_channel_order_or_range_that_has_no_field_fails_parity(
    exported: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any], Any]
) -> None:
    assert (PREPROCESS.mean, PREPROCESS.std) == ((0.5,) * 3, (0.5,) * 3)
    real = Preprocess.normalise
    monkeypatch.setattr(
        Preprocess, "normalise", lambda *given: np.ascontiguousarray(wrong(real(*given)))
    )
    reasons = failed(exported)
    assert len(reasons) == 5
    assert all("8 generated inputs: max |difference|" in reason for reason in reasons.values())


def test_the_model_of_another_version_is_made_again(exported: Path) -> None:
    model = onnx_model(load_bundle(exported), "eye", version="0.0.9")
    (exported / EYE / "model.onnx").write_bytes(model)
    known = read_artifact(exported / EYE).environment | {"lorkd-deploy": "0.0.9"}
    rewrite_record(exported / EYE, environment=known, onnx_sha256=sha256_bytes(model))
    verdict = verdicts(exported)["clinic/eye/onnx-fp32"]
    assert (verdict.passed, verdict.onnx_not_here) == (True, None)


@pytest.mark.parametrize("name", ["lorkd-deploy", "numpy", "onnx", "architecture"])
def test_a_model_that_other_makers_may_have_made_is_not_judged(exported: Path, name: str) -> None:
    known = read_artifact(exported / EYE).environment | {name: "elsewhere"}
    rewrite_record(exported / EYE, environment=known, onnx_sha256="0" * 64)
    verdict = verdicts(exported)["clinic/eye/onnx-fp32"]
    assert verdict.passed
    assert f"depend on {name} (elsewhere there, " in str(verdict.onnx_not_here)


def test_the_engines_of_a_part_name_the_whole_bundle(exported: Path, tmp_path: Path) -> None:
    pack(exported, "clinic", tmp_path / "clinic")
    found = verdicts(tmp_path / "clinic")
    assert len(found) == 2
    assert all(verdict.passed and verdict.onnx_not_here is None for verdict in found.values())


def test_a_file_name_that_leaves_the_folder(exported: Path) -> None:
    record = json.loads((exported / EYE / "artifact.json").read_text())
    record["files"][0]["name"] = "../../../secret"
    (exported / EYE / "artifact.json").write_bytes(document_bytes(record))
    assert "leaves its folder" in failed(exported)["clinic/eye/onnx-fp32"]


def test_two_engines_swapped_with_hashes_that_fit(exported: Path) -> None:
    lung, heart = (exported / place / "model.onnx" for place in (LUNG, HEART))
    model = lung.read_bytes()
    lung.write_bytes(heart.read_bytes())
    heart.write_bytes(model)
    for place in (LUNG, HEART):
        rewrite_record(exported / place)
    reasons = failed(exported)
    assert set(reasons) == {"ward/lung/onnx-fp32", "ward/heart/onnx-fp32"}
    assert "lung, 8 generated inputs: max |difference|" in reasons["ward/lung/onnx-fp32"]


def test_two_folders_swapped(exported: Path) -> None:
    aside = exported / "aside"
    (exported / LUNG).rename(aside)
    (exported / EYE).rename(exported / LUNG)
    aside.rename(exported / EYE)
    reasons = failed(exported)
    assert set(reasons) == {"ward/lung/onnx-fp32", "clinic/eye/onnx-fp32"}
    assert "this is the engine clinic/eye/onnx-fp32" in reasons["ward/lung/onnx-fp32"]


def test_an_engine_with_another_class_count(exported: Path) -> None:
    shutil.copyfile(exported / EYE / "model.onnx", exported / LUNG / "model.onnx")
    rewrite_record(exported / LUNG)
    assert "gives logits (8, 3), (8, 2) are needed" in failed(exported)["ward/lung/onnx-fp32"]


def test_an_expert_left_unbound_with_hashes_that_fit(exported: Path) -> None:
    bundle = load_bundle(exported)
    tensors = bundle.fuse("eye")
    tensors["conv1.weight"] = bundle.base["conv1.weight"].copy()  # W0 without its ΔW
    model = onnx_model(bundle, "eye", tensors=tensors)
    (exported / EYE / "model.onnx").write_bytes(model)
    rewrite_record(exported / EYE)
    assert "eye, 5 test images: max |difference|" in failed(exported)["clinic/eye/onnx-fp32"]


def test_a_bundle_that_changed_fails_all_its_engines(exported: Path) -> None:
    flip_last_byte(exported / "bundle" / "base.safetensors")
    reasons = failed(exported)
    assert len(reasons) == 4
    assert "teacher/onnx-fp32" not in reasons
    assert all("base.safetensors has changed" in text for text in reasons.values())
    shutil.rmtree(exported / "teacher")
    assert len(failed(exported)) == 5


def test_engines_of_an_older_decomposition(exported: Path, tmp_path: Path, data: Path) -> None:
    other = make_run(tmp_path / "other", data, images="bundle")
    shutil.rmtree(exported / "bundle")
    shutil.copytree(other / "bundle", exported / "bundle")
    assert set(failed(exported).values()) == {
        "it was exported from another bundle than the one that is here"
    }
    assert len(failed(exported)) == 4


def test_other_images_than_the_reference_had(exported: Path, data: Path) -> None:
    arrays = dict(np.load(data / "eye.npz"))
    arrays["test_images"][4, 0, 0] ^= 1
    np.savez(data / "eye.npz", **arrays)
    reasons = failed(exported)
    assert set(reasons) == {"clinic/eye/onnx-fp32", "teacher/onnx-fp32"}
    assert "image 4 of the test split here is not the one" in reasons["teacher/onnx-fp32"]
    arrays = {name: value[:8] for name, value in arrays.items()}
    np.savez(data / "eye.npz", **arrays)
    assert set(failed(exported)) == {"clinic/eye/onnx-fp32", "teacher/onnx-fp32"}


def test_images_shipped_in_the_bundle_need_no_data(tmp_path: Path, data: Path) -> None:
    run = make_run(tmp_path / "shipped", data, images="bundle")
    shutil.rmtree(data)
    artifact = export(run, task=["findings"])[0]
    assert [(c.on, c.rows) for c in artifact.parity.compared] == [("inputs", 8), ("images", 5)]
    assert failed(run) == {}


def test_without_the_data_it_is_said_and_passes(exported: Path, data: Path) -> None:
    shutil.rmtree(data)
    found = verdicts(exported)
    assert all(verdict.passed for verdict in found.values())
    parity = found["teacher/onnx-fp32"].parity
    assert parity is not None
    assert set(parity.images_not_here) == {"lung", "heart", "eye", "findings"}
    assert [c.on for c in parity.compared] == ["inputs"] * 4


def test_what_to_do_is_said_where_a_runtime_or_device_is_missing(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "onnxruntime", None)
        assert cli.main(["verify", str(exported), "--quiet"]) == 3
    said = capsys.readouterr().err
    assert "onnxruntime is not installed; to do: python -m pip install 'lorkd-deploy[onnx]'" in said
    unable = Probe(True, False, "1.0", ("fp32",), reason="no GPU", fix="verify it on the device")
    monkeypatch.setattr(exporter("onnx"), "probe", lambda: unable)
    assert cli.main(["export", str(exported), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert said.count("not verified: no GPU; to do: verify it on the device") == 1


def test_an_engine_of_another_gpu_says_what_to_do(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object) -> Any:
        raise ArtifactError("it was built for SM 86", fix="run `lorkd export` on this device")

    monkeypatch.setattr(exporter("onnx"), "open", other)
    reasons = set(failed(exported).values())
    assert reasons == {"it was built for SM 86; to do: run `lorkd export` on this device"}


def test_an_engine_that_was_only_built_is_completed_where_it_runs(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven = read_artifact(exported / EYE)
    built = {"options": {"x": 1}}  # what the machine that built it knew
    not_run = Parity(status="not run here", reasons=("x",))
    unproven = proven.model_copy(update={"parity": not_run, "facts": built})
    write_artifact(unproven, exported / EYE)
    with monkeypatch.context() as elsewhere:
        unable = Probe(True, False, "1.0", ("fp32",), reason="no GPU")
        elsewhere.setattr(exporter("onnx"), "probe", lambda: unable)
        assert set(failed(exported).values()) == {"parity was not run: no GPU"}
        assert len(failed(exported)) == 5
        fresh = export(exported, task=["lung"])[0]
        assert fresh.parity == Parity(status="not run here", reasons=("no GPU",))
    assert failed(exported) == {}
    assert read_artifact(exported / EYE).parity == proven.parity
    assert {"provider", "version", "threads"} <= set(proven.facts)
    assert read_artifact(exported / EYE).facts == proven.facts | built
    assert read_artifact(exported / LUNG).parity.status == "passed"


@pytest.mark.parametrize("status", ["passed", "not run here"])
def test_an_engine_that_fails_here_says_so_until_it_passes(
    exported: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    proven = read_artifact(exported / EYE)
    told = proven.parity.model_copy(update={"status": status})
    write_artifact(proven.model_copy(update={"parity": told}), exported / EYE)
    with monkeypatch.context() as device:
        real = exporter("onnx").open
        device.setattr(exporter("onnx"), "open", lambda *given: _Halved(real(*given)))
        assert "eye, 5 test images: max |difference|" in failed(exported)["clinic/eye/onnx-fp32"]
    record = read_artifact(exported / EYE)
    assert record.parity.status == "failed"
    assert record.facts["provider"] == "another device"
    assert failed(exported) == {}
    assert read_artifact(exported / EYE) == proven


class _Halved(Closing):
    """A device that computes other logits."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.facts = runner.facts | {"provider": "another device"}

    def __call__(self, batch: Any) -> Any:
        return self._runner(batch) / 2

    def close(self) -> None:
        self._runner.close()

"""The runner over a fake TensorRT and driver: right logits, buffers freed, faults told."""

from __future__ import annotations

import ctypes
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lorkd_exporters import _tensorrt

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.export import export
from lorkd_deploy.errors import ArtifactError
from lorkd_deploy.runtime import EngineSpec, RunOptions, exporter
from tests import tiny_bundle
from tests.deploy.made_run import classes_of, make_run, true_logits
from tests.exporters import fake_tensorrt

pytest.importorskip("onnxruntime", reason="it stands in for the GPU")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> fake_tensorrt.Driver:
    """A GPU and TensorRT 10.3 that `import tensorrt` finds."""
    return fake_tensorrt.installed(monkeypatch)


@pytest.fixture
def engine(source: Path, tmp_path: Path) -> Path:
    return fake_tensorrt.engine_file((source / "fused.onnx").read_bytes(), tmp_path / "e.engine")


def opened(file: Path) -> Any:
    return exporter("trt").open(file.parent, [file.name], RunOptions(threads=3))


def test_logits_of_any_number_of_images(
    source: Path, engine: Path, driver: fake_tensorrt.Driver, batch: Any
) -> None:
    bundle = load_bundle(source)
    state = tiny_bundle.unfused(bundle.base, bundle.expert("eye"), 2.5)
    with opened(engine) as runner:
        assert runner.facts == {
            "runtime": "tensorrt",
            "version": "10.3.0",
            "provider": "Fake",
            "precision": "fp32",
            "threads": 3,
        }
        for images in (batch, batch[:1], batch[:, ::-1]):  # the last one not contiguous
            expected = tiny_bundle.forward(state, images)
            assert np.abs(runner(images) - expected).max() < 1e-4 * np.abs(expected).max()
        assert len(driver.alive) == 2
        for wrong in (batch.astype(np.float64), batch[:, :, 1:], batch[:0]):
            with pytest.raises(ArtifactError, match="it takes float32"):
                runner(wrong)
    assert not driver.alive
    with pytest.raises(ArtifactError, match="it is closed"):
        runner(batch)
    runner.close()
    assert driver.calls.count("cuDevicePrimaryCtxRelease_v2") == 1


def test_an_engine_of_one_batch_size_answers_for_any_number_of_images(
    source: Path, engine: Path, tmp_path: Path, driver: fake_tensorrt.Driver, batch: Any
) -> None:
    options = {"min_batch": 2, "opt_batch": 2, "max_batch": 2}
    made = exporter("trt").export(source / "fused.onnx", tmp_path, EngineSpec("fp32", options))
    with opened(engine) as any_size, opened(tmp_path / made.files[0]) as pairs:
        for images in (batch, batch[:1]):
            np.testing.assert_allclose(pairs(images), any_size(images), rtol=1e-5, atol=1e-5)


def test_a_version_compatible_engine_is_allowed_its_host_code_by_its_name(
    source: Path, tmp_path: Path, driver: fake_tensorrt.Driver, batch: Any
) -> None:
    model = (source / "fused.onnx").read_bytes()
    named = fake_tensorrt.engine_file(model, tmp_path / _tensorrt.COMPATIBLE, host_code=True)
    with opened(named) as runner:
        assert runner(batch).shape == (5, 3)
    other = fake_tensorrt.engine_file(model, tmp_path / _tensorrt.ENGINE, host_code=True)
    with pytest.raises(ArtifactError, match="can't load the engine") as caught:
        opened(other)
    assert "on this device" in str(caught.value.fix)
    assert not driver.alive


def test_a_gpu_without_memory_for_the_engine(
    engine: Path, driver: fake_tensorrt.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt.Engine, "memory_left", False)
    with pytest.raises(ArtifactError, match="too little memory") as caught:
        opened(engine)
    assert "max_batch" in str(caught.value.fix)
    assert "cuDevicePrimaryCtxRelease_v2" in driver.calls


def test_the_python_sample_of_an_engine(
    tmp_path: Path,
    driver: fake_tensorrt.Driver,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", tmp_path / "data")
    monkeypatch.setenv("LORKD_DATA", str(tmp_path / "data"))
    (made,) = export(run, "trt", task=["eye"], sample=["python"])
    program = made.folder / "sample-python" / "classify.py"

    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", image)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": driver}[name])
    monkeypatch.setattr(sys, "argv", ["classify.py", str(tmp_path / "x.npy")])
    capsys.readouterr()
    runpy.run_path(str(program), run_name="__main__")
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(task, name) for task, name, _ in rows] == [("eye", n) for n in classes_of("eye")]
    exponentials = np.exp(true_logits(run, "eye", image)[0])
    found = [float(value) for _, _, value in rows]
    assert found == pytest.approx(exponentials / exponentials.sum(), abs=2e-6)

    infer = runpy.run_path(str(program))["infer"]
    with pytest.raises(SystemExit, match=r"takes no batch of shape \(33, 3, 16, 16\)"):
        infer(np.repeat(image, 33, axis=0))

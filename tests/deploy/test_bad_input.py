"""What bad input gets, on the way that a user takes: a sentence that says what to do, and never a
half-written engine. What a target refuses by itself is tested with the exporters."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lorkd_deploy.deploy import build as build_module
from lorkd_deploy.deploy.artifact import find_artifacts, open_engine
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import (
    ArtifactError,
    LorkdError,
    RuntimeUnavailableError,
    UsageError,
)
from lorkd_deploy.runtime import exporter
from tests.exporters.conftest import BUILDABLE, RUNNABLE

RUNTIMES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "trt": "tensorrt",
    "trt-rtx": "tensorrt_rtx",
}


def nothing_in(run: Path) -> bool:
    """Whether no engine, whole or half, lies in the run."""
    files = [p for p in (run / "export").rglob("*") if p.is_file() and p.name != ".lock"]
    return not files


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_runtime_that_is_missing_says_how_to_install_it(
    run: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, RUNTIMES[target], None)
    with pytest.raises(RuntimeUnavailableError, match=f"{RUNTIMES[target]} is not installed") as e:
        export(run, target)
    extra = {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}.get(target, target)
    assert f"pip install 'lorkd-deploy[{extra}]'" in str(e.value.fix)
    assert nothing_in(run)


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_runtime_that_is_broken_says_why(
    run: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == RUNTIMES[target]:
                raise ImportError("libsomething.so.4: cannot open shared object file")

    monkeypatch.delitem(sys.modules, RUNTIMES[target], raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(RuntimeUnavailableError, match="is broken: libsomething"):
        export(run, target)


@pytest.mark.parametrize("version", ["8.6.1", "11.3.0"])
def test_a_runtime_that_is_too_old_or_blocked(
    run: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime: Any = ModuleType("tensorrt")
    runtime.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", runtime)
    with pytest.raises(RuntimeUnavailableError, match=version) as caught:
        export(run, "tensorrt")
    assert caught.value.fix
    assert nothing_in(run)


@pytest.mark.skipif("openvino" not in RUNNABLE, reason="OpenVINO is not installed")
def test_a_device_that_is_not_here(run: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="OpenVINO finds no GPU") as caught:
        export(run, "openvino", options={"device": "GPU"}, task=["eye"])
    assert "it finds: CPU" in str(caught.value.fix)
    assert nothing_in(run)


@pytest.mark.skipif("trt-rtx" not in BUILDABLE, reason="TensorRT for RTX is for x86-64 only")
def test_a_batch_profile_in_the_wrong_order(run: Path) -> None:
    with pytest.raises(UsageError, match="min_batch 8, opt_batch 1, max_batch 4"):
        export(run, "trt-rtx", options={"min_batch": 8, "max_batch": 4}, task=["eye"])
    assert nothing_in(run)


@pytest.mark.parametrize("target", RUNNABLE)
def test_a_flipped_byte_in_any_file_of_an_engine(run: Path, target: str) -> None:
    (artifact,) = export(run, target, task=["eye"])
    for entry in artifact.files:
        file = artifact.folder / entry.name
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        file.write_bytes(bytes(damaged))
        with pytest.raises(ArtifactError, match=f"{entry.name} has changed since") as caught:
            open_engine(artifact)
        assert "lorkd export" in str(caught.value.fix)
        (verdict,) = verify(run)
        assert not verdict.passed
        file.write_bytes(whole)
    assert verify(run)[0].passed


def test_two_exports_at_once_one_wins_and_the_other_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, told = threading.Event(), threading.Event()
    real = build_module.onnx_model

    def slow(*args: Any, **options: Any) -> bytes:
        building.set()
        assert told.wait(timeout=60)
        return real(*args, **options)

    monkeypatch.setattr(build_module, "onnx_model", slow)
    first = threading.Thread(target=export, args=(run,), kwargs={"task": ["eye"]})
    first.start()
    try:
        assert building.wait(timeout=60)
        with pytest.raises(LorkdError, match="another process is writing here") as caught:
            export(run, task=["eye"])
        assert "wait until it has ended" in str(caught.value.fix)
    finally:
        told.set()
        first.join(timeout=60)
    assert [artifact.engine for artifact in find_artifacts(run)] == ["eye"]
    assert verify(run)[0].passed


def test_an_unknown_target_and_precision_list_what_there_is(run: Path) -> None:
    with pytest.raises(UsageError, match="no target is called 'coreml'") as caught:
        export(run, "coreml")
    assert all(name in str(caught.value.fix) for name in RUNTIMES)
    with pytest.raises(RuntimeUnavailableError, match="onnx can't do bf16") as refused:
        export(run, precision="bf16")
    assert str(refused.value.fix) == f"it can do: {', '.join(exporter('onnx').probe().precisions)}"

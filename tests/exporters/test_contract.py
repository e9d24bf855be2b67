"""What every target has to do alike; a new exporter is tested here without an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import (
    ArtifactError,
    LorkdError,
    RuntimeUnavailableError,
    UsageError,
)
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.runtime import (
    EngineSpec,
    PythonSample,
    RunOptions,
    exporter,
    require_precision,
    targets,
)
from tests.exporters import fake_tensorrt
from tests.exporters.conftest import BUILDABLE, RUNNABLE, Built, build

STANDS_IN = [] if "trt" in RUNNABLE else ["trt over a stand-in"]


def target_of(param: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The target of a fixture's parameter, with `fake_tensorrt` under it if it says so."""
    target, _, stand_in = param.partition(" ")
    if stand_in:
        pytest.importorskip("onnxruntime", reason="it stands in for the GPU")
        fake_tensorrt.installed(monkeypatch)
    return target


@pytest.fixture(params=BUILDABLE + STANDS_IN)
def built(
    request: pytest.FixtureRequest,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Built:
    """The engine of every target that can build here."""
    return build(source, target_of(request.param, monkeypatch), tmp_path)


@pytest.fixture(params=RUNNABLE + STANDS_IN)
def engine(
    request: pytest.FixtureRequest,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Built:
    """The engine of every target that can run here too."""
    return build(source, target_of(request.param, monkeypatch), tmp_path)


def test_onnx_is_there() -> None:
    assert "onnx" in RUNNABLE


@pytest.mark.parametrize("target", targets())
def test_probe_says_what_to_do_where_it_can_not(target: str) -> None:
    probe = exporter(target).probe()
    if probe.can_build:
        assert probe.version
        assert "fp32" in probe.precisions
        require_precision(target, "fp32", probe)
    if not (probe.can_build and probe.can_run):
        assert probe.reason
        assert probe.fix
    with pytest.raises(LorkdError, match="can't"):
        require_precision(target, "fp7", probe)


@pytest.mark.parametrize("target", [name for name in targets() if name not in RUNNABLE])
def test_what_can_not_run_here_says_so(target: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="can't run here") as caught:
        exporter(target).open(tmp_path, ["model"], RunOptions())
    assert caught.value.fix


@pytest.mark.parametrize("target", targets())
def test_it_says_how_a_program_runs_its_engines(target: str) -> None:
    sample: Any = getattr(exporter(target), "PYTHON_SAMPLE", None)
    assert isinstance(sample, PythonSample)
    assert "def infer(batch):" in sample.infer


def test_files_are_listed_and_nothing_else_is_written(built: Built, source: Path) -> None:
    assert sorted(p.name for p in built.folder.iterdir()) == sorted(built.files)
    assert all((built.folder / name).stat().st_size for name in built.files)
    assert (source / "fused.onnx").exists()


def test_what_it_can_not_build_is_an_error(built: Built, source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LorkdError):
        exporter(built.target).export(source / "fused.onnx", empty, EngineSpec("fp7"))
    with pytest.raises(UsageError, match="no-such-option"):
        spec = EngineSpec("fp32", {"no-such-option": 1})
        exporter(built.target).export(source / "fused.onnx", empty, spec)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 5])
def test_logits_of_any_batch(engine: Built, batch: Any, count: int) -> None:
    with exporter(engine.target).open(engine.folder, engine.files, RunOptions()) as runner:
        logits = runner(batch[:count])
        assert (logits.dtype, logits.shape) == (np.float32, (count, 3))
        expected = engine.expected(batch[:count])
        np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("param", BUILDABLE + STANDS_IN)
def test_a_model_that_takes_images_as_they_are(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, param: str
) -> None:
    target = target_of(param, monkeypatch)
    made = build(source, target, tmp_path, raw=True)
    if not exporter(target).probe().can_run:
        return  # it was built
    preprocess = load_bundle(source).manifest.preprocess
    images = parity_inputs(5, preprocess.size, 2)
    with exporter(target).open(made.folder, made.files, RunOptions()) as runner:
        for batch in (images[:1], images, images[::-1]):
            expected = probabilities(made.expected(preprocess.normalise(batch)), "multiclass")
            found = runner(batch)
            assert (found.dtype, found.shape) == (np.float32, (len(batch), 3))
            assert np.abs(found - expected).max() < 1e-5
        with pytest.raises(ArtifactError, match="failed on float32"):
            runner(images.astype(np.float32))


def test_a_later_call_leaves_earlier_logits(engine: Built, batch: Any) -> None:
    with exporter(engine.target).open(engine.folder, engine.files, RunOptions()) as runner:
        first = runner(batch)
        kept = first.copy()
        runner(batch + 1)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(runner(batch), kept)


def test_a_batch_that_is_a_view(engine: Built, batch: Any) -> None:
    with exporter(engine.target).open(engine.folder, engine.files, RunOptions()) as runner:
        np.testing.assert_array_equal(runner(batch[::-1]), runner(batch[::-1].copy()))


@pytest.mark.parametrize("times", [1, 100])
def test_a_batch_that_can_only_be_read(engine: Built, batch: Any, times: int) -> None:
    # As one is that comes from another process, or from a file; a large one a runner may bind
    # instead of copying it, and then has to keep what is bound until it has answered.
    free = np.tile(batch, (times, 1, 1, 1))
    with exporter(engine.target).open(engine.folder, engine.files, RunOptions()) as runner:
        expected = runner(free)
        for _ in range(6):
            fixed = np.frombuffer(free.tobytes(), np.float32).reshape(free.shape)
            np.testing.assert_array_equal(runner(fixed), expected)


def test_facts_say_what_runs(engine: Built) -> None:
    options = RunOptions(threads=2)
    with exporter(engine.target).open(engine.folder, engine.files, options) as runner:
        assert runner.facts["threads"] == 2
        assert runner.facts["precision"] == "fp32"
        assert runner.facts["version"] == exporter(engine.target).probe().version
        assert {"runtime", "provider"} <= set(runner.facts)


@pytest.mark.parametrize("wrong", [(2, 3, 8, 8), (2, 1, 16, 16), (3, 16, 16)])
def test_input_of_another_shape(engine: Built, wrong: tuple[int, ...]) -> None:
    with (
        exporter(engine.target).open(engine.folder, engine.files, RunOptions()) as runner,
        pytest.raises(ArtifactError),
    ):
        runner(np.zeros(wrong, np.float32))


def test_closed_is_closed(engine: Built, batch: Any) -> None:
    runner = exporter(engine.target).open(engine.folder, engine.files, RunOptions())
    with runner:
        runner(batch)
    runner.close()
    with pytest.raises(ArtifactError):
        runner(batch)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_a_damaged_engine(engine: Built, damage: str) -> None:
    file = engine.folder / engine.files[0]
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes({"empty": b"", "truncated": content[:200], "text": b"hello"}[damage])
    with pytest.raises(ArtifactError) as caught:
        exporter(engine.target).open(engine.folder, engine.files, RunOptions())
    assert caught.value.fix


def test_an_unknown_run_option(engine: Built) -> None:
    with pytest.raises(UsageError, match="no-such-option"):
        options = RunOptions(1, {"no-such-option": 1})
        exporter(engine.target).open(engine.folder, engine.files, options)

"""One engine for several experts: each answer is the asked expert's own, or it isn't given.

TensorRT and the GPU are `fake_tensorrt`, whose engine is ONNX Runtime: what is tested is this
project's side, the documented calls and the gate, not TensorRT's refit.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import ARTIFACT, read_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.parity import ParityError
from lorkd_deploy.deploy.refit import PRECISIONS, SharedEngine, sharing
from lorkd_deploy.deploy.switchboard import Switchboard
from lorkd_deploy.errors import ArtifactError, GateError, UsageError
from lorkd_deploy.precisions.table import precision_of
from lorkd_deploy.runtime import EngineSpec, RunOptions, exporter
from lorkd_deploy.schema import document_bytes
from tests.deploy.made_run import OF_TASK, PREPROCESS, true_logits
from tests.exporters import fake_tensorrt

pytest.importorskip("onnxruntime", reason="it stands in for the GPU")


@pytest.fixture
def batch() -> Any:
    """Network input float32 `(3, 3, S, S)`."""
    size = PREPROCESS.size
    return np.random.default_rng(5).normal(size=(3, 3, size, size)).astype(np.float32)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> fake_tensorrt.Driver:
    """A GPU and TensorRT 10.3 that `import tensorrt` finds."""
    return fake_tensorrt.installed(monkeypatch)


@pytest.fixture
def refittable(run: Path, driver: fake_tensorrt.Driver) -> Path:
    """A run whose engines are of `trt`, built with the option."""
    export(run, "trt", options={"refit": True})
    return run


def board_of(run: Path, **options: Any) -> Switchboard:
    return Switchboard(run, "trt", refit=True, **options)


def near(found: Any, expected: Any, precision: str = "fp32") -> bool:
    allowed = precision_of(precision).tolerance.inputs * max(1, np.abs(expected).max())
    return bool(np.abs(found - expected).max() < allowed)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_experts_of_as_many_classes_share_an_engine(
    run: Path, driver: fake_tensorrt.Driver, batch: Any, precision: str
) -> None:
    export(run, "trt", precision=precision, options={"refit": True})
    assert sharing(load_bundle(run / "bundle"), "heart") == ("lung", "heart")
    first = {}
    with board_of(run, precision=precision) as board:
        for task in ("lung", "heart", "eye", "findings", "heart", "lung", "findings", "eye"):
            with board.department(OF_TASK[task], task) as engine:
                found = engine(batch)
                assert near(found, true_logits(run, task, batch), precision)
                np.testing.assert_array_equal(first.setdefault(task, found), found)
                assert engine.artifact.engine == task
                assert engine.artifact.department == OF_TASK[task]
                assert [part.name for part in engine.artifact.tasks] == [task]
                assert engine.artifact.parity.status == "passed"
                assert engine.facts["refitted"] is True
                assert engine.facts["precision"] == precision
        assert len(driver.alive) == 2 * 2  # two engines, each with input and output
    assert not driver.alive


def test_only_what_experts_touch_is_put_in(
    refittable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: set[str] = set()
    real = fake_tensorrt.Refitter.set_named_weights

    def noted(self: Any, name: str, weights: Any) -> bool:
        put.add(name)
        return real(self, name, weights)

    monkeypatch.setattr(fake_tensorrt.Refitter, "set_named_weights", noted)
    with board_of(refittable) as board, board.department("ward", "heart"):
        pass
    shared = {"p.weight", "p.bias", "p.running_mean", "p.running_var"}
    assert {"conv1.weight", "conv2.weight", "val_1", "head.bias"} <= put
    assert not put & shared


def test_threads_never_get_another_expert(refittable: Path, batch: Any) -> None:
    known = {task: true_logits(refittable, task, batch) for task in OF_TASK}

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(10):
            task = str(rng.choice(list(OF_TASK)))
            with board.department(OF_TASK[task], task) as engine:
                assert near(engine(batch), known[task])
                assert near(engine(batch[:1]), known[task][:1])

    for budget in (512.0, 0.0):
        with board_of(refittable, budget=budget) as board, ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))


def test_a_task_that_is_opened_again_before_it_is_closed_stays_open(
    refittable: Path, driver: fake_tensorrt.Driver, batch: Any
) -> None:
    bundle = load_bundle(refittable / "bundle")
    artifact = read_artifact(refittable / "export" / "ward" / "lung" / "trt-fp32")
    shared = SharedEngine(bundle, ("lung", "heart"), artifact)
    _, first = shared.open("heart", RunOptions())
    _, second = shared.open("heart", RunOptions())
    first.close()
    first.close()  # a second time it does nothing
    assert near(second(batch), true_logits(refittable, "heart", batch))
    second.close()
    assert not driver.alive


def test_a_refit_that_leaves_something_behind_is_found(
    refittable: Path, driver: fake_tensorrt.Driver, monkeypatch: pytest.MonkeyPatch, batch: Any
) -> None:
    """NVIDIA/TensorRT#3628: A → B → A gives a blend."""
    with board_of(refittable) as board:
        monkeypatch.setattr(fake_tensorrt.Refitter, "keeps", "conv2.weight")
        with pytest.raises(ParityError, match="not heart's expert"):
            _used(board, "heart")
        monkeypatch.setattr(fake_tensorrt.Refitter, "keeps", None)
        assert not driver.alive
        assert board.open_engines == ()
        with board.department("ward", "heart") as engine:
            assert near(engine(batch), true_logits(refittable, "heart", batch))


def test_an_engine_that_is_another_after_a_b_a(
    refittable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake_tensorrt.Refitter.refit_cuda_engine
    refits = []

    def worse(self: Any) -> bool:
        refits.append(self)
        if len(refits) == 3:  # A, B, and this is A again
            self.given["head.bias"] = self.given["head.bias"] + np.float32(1e-3)
        return real(self)

    monkeypatch.setattr(fake_tensorrt.Refitter, "refit_cuda_engine", worse)
    with (
        board_of(refittable) as board,
        pytest.raises(GateError, match="lung → heart → lung changed the answers of lung") as caught,
    ):
        _used(board, "heart")
    assert caught.value.exit_code == 3
    assert "without it" in str(caught.value.fix)


@pytest.mark.parametrize(("fault", "value"), [("rejects", "conv1.weight"), ("works", False)])
def test_weights_that_tensorrt_refuses(
    refittable: Path,
    driver: fake_tensorrt.Driver,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    value: Any,
) -> None:
    monkeypatch.setattr(fake_tensorrt.Refitter, fault, value)
    with board_of(refittable) as board, pytest.raises(ArtifactError, match="can't refit") as caught:
        _used(board, "heart")
    assert caught.value.fix
    assert not driver.alive


def test_what_can_not_be_refitted(exported: Path, driver: fake_tensorrt.Driver) -> None:
    with (
        Switchboard(exported, refit=True) as board,
        pytest.raises(UsageError, match="engine of lung was not built to be refitted") as caught,
    ):
        _used(board, "heart")
    assert "--task lung --option refit=true" in str(caught.value.fix)
    record = exported / "export" / "ward" / "lung" / "onnx-fp32" / ARTIFACT
    raw = json.loads(record.read_text())
    raw["facts"]["options"] = {"refit": True}
    record.write_bytes(document_bytes(raw))
    with Switchboard(exported, refit=True) as board, pytest.raises(UsageError, match="no refit"):
        _used(board, "heart")
    with pytest.raises(UsageError, match="int8 can't be refitted"):
        Switchboard(exported, "trt", precision="int8", refit=True)
    with pytest.raises(UsageError, match="int8 engine can't be refitted"):
        exporter("trt").export(exported / "m", exported, EngineSpec("int8", {"refit": True}))


def _used(board: Switchboard, task: str) -> None:
    with board.department(OF_TASK[task], task):
        pass

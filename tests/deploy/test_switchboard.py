"""Switching experts under a budget and under threads: every answer is the asked expert's own."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.deploy import switchboard
from lorkd_deploy.deploy.artifact import Artifact, find_artifacts, read_artifact
from lorkd_deploy.deploy.pack import pack
from lorkd_deploy.deploy.switchboard import MIB, Switchboard
from lorkd_deploy.errors import ArtifactError, GateError, UsageError
from lorkd_deploy.runtime import exporter, targets
from tests.deploy.made_run import (
    DEPARTMENTS,
    OF_TASK,
    PREPROCESS,
    TASKS,
    rewrite_record,
    true_logits,
)

RUNNABLE = [name for name in targets() if exporter(name).probe().can_run]


@pytest.fixture
def batch() -> Any:
    """Network input float32 `(3, 3, S, S)`."""
    size = PREPROCESS.size
    return np.random.default_rng(5).normal(size=(3, 3, size, size)).astype(np.float32)


def own(run: Path, task: str, batch: Any, logits: Any) -> bool:
    """Whether `logits` are those of the unfused expert of `task`."""
    expected = true_logits(run, task, batch)
    return bool(np.allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max())))


def sizes(run: Path) -> dict[str, float]:
    """MiB of each task's engine."""
    return {a.engine: a.bytes / MIB for a in find_artifacts(run)}


def test_each_department_gets_its_own_expert(exported: Path, batch: Any) -> None:
    with Switchboard(exported) as board:
        assert board.departments == DEPARTMENTS
        first = {}
        for task, department in OF_TASK.items():
            with board.department(department, task=task) as engine:
                first[task] = engine(batch)
                assert engine.artifact.engine == task
                assert engine.facts["threads"] == 1
            assert own(exported, task, batch, first[task])
        assert board.open_engines == tuple(OF_TASK)
        for task in ("eye", "lung"):  # A → B → A, the same bits
            with board.department(OF_TASK[task], task) as engine:
                np.testing.assert_array_equal(engine(batch), first[task])
        assert board.open_engines == ("heart", "findings", "eye", "lung")


def test_an_engine_is_exported_when_it_is_first_asked_for(
    run: Path, batch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with Switchboard(run) as board:
        assert not (run / "export").exists()
        with board.department("clinic", "eye") as engine:
            assert own(run, "eye", batch, engine(batch))
            assert engine.artifact.parity.status == "passed"
        assert [a.name for a in find_artifacts(run)] == ["clinic/eye/onnx-fp32"]
    assert not caplog.records


def test_one_that_fails_its_proof_is_not_opened(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise GateError("it is not the model it came from")

    monkeypatch.setattr(switchboard, "export", failing)
    with Switchboard(run) as board:
        for _ in range(2):
            with pytest.raises(GateError), board.department("clinic", "eye"):
                pass
        assert board.open_engines == ()


def test_what_was_used_longest_ago_is_closed(exported: Path, batch: Any) -> None:
    size = sizes(exported)
    with Switchboard(exported, budget=size["lung"] + size["heart"]) as board:
        for task in ("lung", "heart", "lung"):
            with board.department("ward", task):
                pass
        assert board.open_engines == ("heart", "lung")
        with board.department("clinic", "eye") as engine:  # a class more: larger than heart's
            assert board.open_engines == ("eye",)
            assert own(exported, "eye", batch, engine(batch))


def test_one_in_use_is_never_closed(exported: Path, batch: Any) -> None:
    with Switchboard(exported, budget=0) as board:
        with board.department("ward", "lung") as lung, board.department("ward", "heart") as heart:
            assert board.open_engines == ("lung", "heart")
            assert own(exported, "lung", batch, lung(batch))
            with board.department("ward", "lung") as again:
                assert own(exported, "lung", batch, again(batch))
            assert own(exported, "lung", batch, lung(batch))
            assert own(exported, "heart", batch, heart(batch))
        assert board.open_engines == ()


def test_closing_waits_for_what_is_in_use(exported: Path, batch: Any) -> None:
    board = Switchboard(exported)
    with board.department("ward", "heart"):
        pass
    with board.department("ward", "lung") as engine:
        board.close()
        assert board.open_engines == ("lung",)
        assert own(exported, "lung", batch, engine(batch))
        with pytest.raises(UsageError, match="closed"), board.department("ward", "heart"):
            pass
    assert board.open_engines == ()


def test_an_engine_ends_with_its_block(exported: Path, batch: Any) -> None:
    with Switchboard(exported) as board:
        with board.department("ward", "lung") as engine:
            engine(batch)
        with pytest.raises(UsageError, match="after its `with` block"):
            engine(batch)
        with pytest.raises(ZeroDivisionError), board.department("ward", "lung"):
            raise ZeroDivisionError
        with board.department("ward", "lung") as engine:
            assert own(exported, "lung", batch, engine(batch))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wrad", "lung"), "no department is called 'wrad'"),
        (("ward", "eye"), "no task of ward is called 'eye'"),
        (("ward", None), "several tasks"),
    ],
)
def test_unknown_names(exported: Path, arguments: Any, message: str) -> None:
    with (
        Switchboard(exported) as board,
        pytest.raises(UsageError, match=message) as caught,
        board.department(*arguments),
    ):
        pass
    assert caught.value.fix
    with pytest.raises(UsageError, match="no target is called"):
        Switchboard(exported, "onx")
    with pytest.raises(UsageError, match="auto"):
        Switchboard(exported, precision="auto")


def test_the_task_of_a_department_with_one(exported: Path, batch: Any, tmp_path: Path) -> None:
    made = pack(exported, "ward", tmp_path / "ward")
    with Switchboard(made.folder) as board, board.department("ward", "heart") as engine:
        assert own(exported, "heart", batch, engine(batch))


@pytest.mark.parametrize("damage", ["flipped", "another's", "gone"])
def test_a_damaged_engine_is_refused_at_every_opening(
    exported: Path, batch: Any, damage: str
) -> None:
    folder = exported / "export" / "ward" / "lung" / "onnx-fp32"
    with Switchboard(exported, budget=0) as board:
        with board.department("ward", "lung") as engine:
            assert own(exported, "lung", batch, engine(batch))
        content = (folder / "model.onnx").read_bytes()
        if damage == "flipped":
            (folder / "model.onnx").write_bytes(content[:-9] + b"x" + content[-8:])
        elif damage == "gone":
            (folder / "model.onnx").unlink()
        else:
            rewrite_record(folder, bundle_sha256="0" * 64)
        with pytest.raises(ArtifactError) as caught, board.department("ward", "lung"):
            pass
        assert caught.value.fix
        assert board.open_engines == ()
        with board.department("ward", "heart") as engine:
            assert own(exported, "heart", batch, engine(batch))


def test_an_engine_that_is_not_verified_is_named_once(
    exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exported / "export" / "ward" / "lung" / "onnx-fp32"
    record = read_artifact(folder).model_dump(mode="json")
    rewrite_record(folder, parity=record["parity"] | {"status": "not run here"})
    with caplog.at_level(logging.WARNING), Switchboard(exported, budget=0) as board:
        for _ in range(2):
            with board.department("ward", "lung"):
                pass
    assert len([r for r in caplog.records if "not verified" in r.message]) == 1


@pytest.mark.parametrize("budget", ["all", "one", "none"])
def test_threads_never_get_another_expert(exported: Path, batch: Any, budget: str) -> None:
    """Six threads switch and predict at once; each answer is compared with the asked expert's."""
    mib = {"all": 512.0, "one": max(sizes(exported).values()), "none": 0.0}[budget]
    known = {task: true_logits(exported, task, batch) for task in TASKS}
    gate = threading.Barrier(6, timeout=60)

    def work(seed: int) -> int:
        rng = np.random.default_rng(seed)
        gate.wait()
        for _ in range(60 if budget == "all" else 10):
            task = str(rng.choice(list(TASKS)))
            with board.department(OF_TASK[task], task) as engine:
                for _ in range(2):
                    logits = engine(batch)
                    limit = 1e-4 * max(1, np.abs(known[task]).max())
                    assert logits.shape == known[task].shape
                    assert np.abs(logits - known[task]).max() < limit
        return seed

    with Switchboard(exported, budget=mib) as board, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == list(range(6))
        assert len(board.open_engines) == {"all": 4, "one": 1, "none": 0}[budget]


@pytest.mark.parametrize("target", RUNNABLE)
def test_threads_share_an_engine_of_any_target(run: Path, batch: Any, target: str) -> None:
    """Also of a runtime whose request serves one call at a time."""
    known = true_logits(run, "eye", batch)

    def work(_: int) -> float:
        with board.department("clinic", "eye") as engine:
            return float(max(np.abs(engine(batch) - known).max() for _ in range(20)))

    with Switchboard(run, target) as board, ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(4))) < 1e-4 * max(1, np.abs(known).max())


def test_threads_that_ask_at_once_share_one_opening(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real: Callable[..., Any] = switchboard.open_engine

    def slow(artifact: Artifact, *rest: Any) -> Any:
        opened.append(artifact.engine)
        time.sleep(0.05)
        return real(artifact, *rest)

    monkeypatch.setattr(switchboard, "open_engine", slow)

    def use(task: str) -> None:
        with board.department(OF_TASK[task], task):
            pass

    with Switchboard(exported) as board, ThreadPoolExecutor(8) as pool:
        list(pool.map(use, ["lung", "lung", "eye", "lung", "eye", "lung"]))
    assert sorted(opened) == ["eye", "lung"]


def test_a_switch_to_an_open_engine_opens_and_reads_nothing(
    exported: Path, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Switchboard(exported) as board:
        for task in ("lung", "heart"):
            with board.department("ward", task):
                pass
        shutil.rmtree(exported)
        monkeypatch.setattr(switchboard, "open_engine", None)
        monkeypatch.setattr(switchboard, "exported_engine", None)
        for task in ("lung", "heart") * 3:
            with board.department("ward", task) as engine:
                assert own(exported, task, batch, engine(batch))

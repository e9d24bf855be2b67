"""The worker's protocol: a real subprocess, a real runner, and engines that misbehave."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import Artifact, EngineFile
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.profiling.worker import calls
from lorkd_deploy.profiling.worker.calls import MOST_WINDOWS, timed_calls, warm_up
from lorkd_deploy.profiling.worker.process import EngineProcess, WorkerError
from tests.tiny_bundle import forward, make_bundle

Write = Callable[..., tuple[Path, str]]


def trial(write: Write, folder: Path, **behaviour: object) -> Artifact:
    place, file = write(folder, **behaviour)
    # Only what the worker is told; how an engine was proven is no part of running it.
    return Artifact.model_construct(
        engine="warm",
        department="ward",
        target="trial",
        precision="fp32",
        files=(EngineFile(name=file, sha256="", bytes=0),),
        folder=place,
    )


def test_opens_answers_first_and_measures_every_call(trial_engine: Write, tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    engine = trial(trial_engine, tmp_path / "e", sleep=0.002)
    with EngineProcess(engine, threads=3, cpus=[cpu]) as process:
        opened = process.open()
        assert opened["facts"] == {"runtime": "trial 1.0", "precision": "fp32", "threads": 3}
        assert opened["load"] >= 0 and opened["runtime_import"] > 0
        first, _ = process.ask("first", shape=[1, 3, 8, 8], seed=0)
        assert first["answered"] > process.started
        assert first["first_inference"] >= 2  # ms: the engine sleeps that long
        answer, data = process.ask(
            "measure", shape=[2, 3, 8, 8], seed=0, iterations=9, seconds=0.0, warmup=4
        )
        calls = np.frombuffer(data, np.int64)
        assert len(calls) == 5  # nine images in calls of two
        assert (calls >= 2_000_000).all()
        assert answer["interruptions"] >= 0
        assert os.sched_getaffinity(process.pid) == {cpu}


def test_a_round_lasts_at_least_as_long_as_asked(trial_engine: Write, tmp_path: Path) -> None:
    with EngineProcess(trial(trial_engine, tmp_path / "e", sleep=0.001), 1, None) as process:
        process.open()
        started = time.perf_counter()
        process.ask("measure", shape=[1, 3, 8, 8], seed=0, iterations=1, seconds=0.3, warmup=0)
        assert time.perf_counter() - started >= 0.3


def test_memory_is_what_comes_on_top_of_an_empty_process(
    trial_engine: Write, tmp_path: Path
) -> None:
    with EngineProcess(trial(trial_engine, tmp_path / "e", mib=128), 1, None) as process:
        opened = process.open()
        measured, _ = process.ask(
            "measure", shape=[1, 3, 8, 8], seed=0, iterations=3, seconds=0.0, warmup=0
        )
    assert opened["empty"] > 5
    # The kernel counts pages in portions, and what is imported varies: half as much is far off.
    assert 120 < opened["loaded"] < 192
    assert 120 < measured["peak"] < 192


def test_a_real_engine(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime isn't installed here")
    bundle = load_bundle(make_bundle(tmp_path / "bundle"))
    model = tmp_path / "model.onnx"
    model.write_bytes(onnx_model(bundle, "eye"))
    engine = Artifact.model_construct(
        engine="eye",
        department="ward",
        target="onnx",
        precision="fp32",
        files=(EngineFile(name=model.name, sha256="", bytes=0),),
        folder=tmp_path,
    )
    images = np.random.default_rng(0).standard_normal((5, 3, 16, 16), np.float32)
    with EngineProcess(engine, 1, None) as process:
        opened = process.open()
        measured, data = process.ask(
            "measure", shape=[2, 3, 16, 16], seed=0, iterations=8, seconds=0.0, warmup=2
        )
        logits = process.infer(images)
    assert opened["facts"]["precision"] == "fp32" and opened["facts"]["threads"] == 1
    assert opened["loaded"] > 1  # MiB: the runtime's library, at least
    assert measured["peak"] >= opened["loaded"]
    assert len(np.frombuffer(data, np.int64)) == 4
    np.testing.assert_allclose(logits, forward(bundle.dense("eye"), images), rtol=1e-4, atol=1e-4)


def test_infers_what_the_runner_gives_last_partial_batch_too(
    trial_engine: Write, tmp_path: Path
) -> None:
    images = np.random.default_rng(1).standard_normal((37, 3, 8, 8), np.float32)
    with EngineProcess(trial(trial_engine, tmp_path / "e"), 1, None) as process:
        process.open()
        logits = process.infer(images)
    mean = images.mean(axis=(2, 3))
    expected = mean[:, :2] + 0.5 * mean[:, 2:]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_an_engine_that_is_killed_is_named(trial_engine: Write, tmp_path: Path) -> None:
    engine = trial(trial_engine, tmp_path / "e", dies_at=2)
    with EngineProcess(engine, 1, None) as process, pytest.raises(WorkerError) as caught:
        process.open()
        process.ask("first", shape=[1, 3, 8, 8], seed=0)
        process.ask("measure", shape=[1, 3, 8, 8], seed=0, iterations=1, seconds=0.0, warmup=0)
    assert "ward/warm/trial-fp32" in caught.value.what
    assert "SIGKILL" in caught.value.what
    assert "out of registers" in caught.value.what
    assert caught.value.where == str(tmp_path / "e")
    assert caught.value.fix


def test_an_engine_that_fails_is_named_and_its_reason_given(
    trial_engine: Write, tmp_path: Path
) -> None:
    with EngineProcess(trial(trial_engine, tmp_path / "e", raises_at=1), 1, None) as process:
        process.open()
        with pytest.raises(WorkerError, match=r"trial-fp32 failed .*ValueError: batch too large"):
            process.infer(np.zeros((1, 3, 8, 8), np.float32))


def test_of_several_engines_in_one_process_the_one_that_fails_is_named(
    trial_engine: Write, tmp_path: Path
) -> None:
    first = trial(trial_engine, tmp_path / "e")
    second = trial(trial_engine, tmp_path / "f", raises_at=1).model_copy(update={"engine": "cold"})
    with EngineProcess(first, 1, None) as process:
        process.open()
        process.open(second)
        with pytest.raises(WorkerError, match=r"ward/cold/trial-fp32 failed .*too large") as caught:
            process.ask("first", shape=[1, 3, 8, 8], seed=0)
    assert caught.value.where == str(tmp_path / "f")


def test_an_exporters_own_advice_reaches_the_user(trial_engine: Write, tmp_path: Path) -> None:
    engine = trial(trial_engine, tmp_path / "e", refuse=True)
    with (
        pytest.raises(WorkerError, match="of another machine") as caught,
        EngineProcess(engine, 1, None) as process,
    ):
        process.open()
    assert caught.value.fix == "export it here"


def test_leaving_ends_the_process(trial_engine: Write, tmp_path: Path) -> None:
    engine = trial(trial_engine, tmp_path / "e", sleep=60)
    with pytest.raises(KeyboardInterrupt), EngineProcess(engine, 1, None) as process:
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_importing_the_worker_loads_neither_torch_nor_numpy() -> None:
    # Affinity has to be set before the first thread pool is made.
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, lorkd_deploy.profiling.worker.__main__; "
            "print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_call_is_timed_and_nothing_around_it() -> None:
    calls = timed_calls(lambda _: time.sleep(0.001), np.zeros((1, 3, 2, 2)), 7, 0)
    assert len(calls) == 7
    assert min(calls) >= 1_000_000


class Clock:
    """Stands in for `time`: it moves on when it is told to, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now / 1e9

    def takes(self, milliseconds: Iterable[int]) -> Callable[[object], None]:
        """An engine each of whose calls takes the next of these times."""
        waits = iter(milliseconds)

        def run(_: object) -> None:
            self.now += next(waits) * 1_000_000

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(calls, "time", clock)
    return clock


def test_warm_up_ends_when_two_medians_agree(clock: Clock) -> None:
    run = clock.takes([8] * 4 + [4] * 4 + [2, 2, 900, 2] + [2] * 100)
    # 8 ms, 4 ms, 2 ms and another window that agrees; one outlier moves no median
    assert warm_up(run, np.zeros((1, 3, 2, 2)), 4, 10) == (16, True)


def test_a_warm_up_that_never_settles_is_given_up_and_told(clock: Clock) -> None:
    run = clock.takes(itertools.cycle([1, 1, 4, 4]))
    assert warm_up(run, np.zeros((1, 3, 2, 2)), 2, 10) == (2 * MOST_WINDOWS, False)
    assert warm_up(run, np.zeros((1, 3, 2, 2)), 2, 0) == (2, False)
    assert warm_up(run, np.zeros((1, 3, 2, 2)), 0, 10) == (0, True)

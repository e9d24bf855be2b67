"""benchmarks/on_gpu.py rehearsed on the CPU: every step ends in its time and says its figures.

What a step can't do on a CPU (`torch.compile`, NVML, engines for GPUs) has to be said by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks import on_gpu
from benchmarks.gpu.given import RECIPE, WEIGHTS, Given, LeftOutError
from benchmarks.knowledge_separation import PLAIN
from lorkd_deploy.errors import DataError
from tests.readme import ROOT

NAMES = ["machine", "exactness", "knowledge_separation", "decompose", "latency", "study"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "out"
    command = [sys.executable, str(ROOT / "benchmarks" / "on_gpu.py"), "--rehearse"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1"
    }
    done = subprocess.run(
        [*command, "--out", str(folder)],
        cwd=folder.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def read(out: Path, name: str) -> Any:
    return json.loads((out / f"{name}.json").read_text("utf-8"))


@pytest.mark.slow
def test_all_steps_are_done_and_shown(out: Path) -> None:
    steps = read(out, "on_gpu")["steps"]
    assert [(step["name"], step["status"]) for step in steps] == [(name, "done") for name in NAMES]
    page = (out / "on_gpu.md").read_text("utf-8")
    assert on_gpu.REHEARSAL in page
    assert all(f"\n## {name}: done" in page for name in NAMES)
    assert read(out, "machine")["torch"]["version"] == torch.__version__
    assert str(out.parent) not in page


@pytest.mark.slow
def test_the_figures_are_those_of_the_steps(out: Path) -> None:
    rows = read(out, "exactness")["rows"]
    assert len(rows) == 2 * 2 and all(row["holds"] for row in rows)
    exact = [row["errors"]["gradients"] for row in rows if row["precision"] == "fp32"]
    rounded = [row["errors"]["gradients"] for row in rows if row["precision"] == "bf16"]
    assert 0 < max(exact) < 1e-4 < min(rounded), "bf16 was computed in fp32 after all"
    (case,) = read(out, "knowledge_separation")["cases"]
    assert case["case"]["balance"] == "uneven"
    assert case["variants"].keys() == {*PLAIN, "ours"}
    assert all(row["wall_s"] > 0 for row in case["variants"].values())
    (trained,) = read(out, "decompose")["rows"]
    assert trained["images_per_s"] > 0 and 0 <= trained["waiting_for_data"] <= 1
    assert {"decompose", "teacher"} <= trained["phases"].keys()
    latency = read(out, "latency")
    measured = {(row["engine"], row["runtime"], row["batch"]) for row in latency["rows"]}
    ways = ("torch fp32", "torch bf16", "onnx fp32")
    assert measured == {(e, w, b) for e in ("cells", "teacher") for w in ways for b in (1, 8)}
    assert any("trt-rtx" in name and why for name, why in latency["left_out"].items())
    assert "NVML" in latency["energy"]
    assert read(out, "study")["seeds"] == [3]


def test_without_its_data_a_step_says_what_it_needs(tmp_path: Path) -> None:
    for data in (None, tmp_path):
        with pytest.raises(LeftOutError, match=r"pack_for_gpu\.sh packs what seven-tasks needs"):
            Given("cuda", data, tmp_path).recipe()
    (tmp_path / WEIGHTS).touch()
    recipe, changes = Given("cuda", tmp_path, tmp_path).recipe()
    assert recipe == RECIPE and changes == [f"teacher.checkpoint={tmp_path / WEIGHTS}"]


def _nothing(_: dict[str, Any]) -> Iterator[str]:
    yield "nothing"


def _two(given: Given) -> Iterator[dict[str, Any]]:
    yield {"found": 1}
    yield {"found": 2}


def _hangs(given: Given) -> Iterator[dict[str, Any]]:
    process = subprocess.Popen(["sleep", "600"])
    yield {"started": process.pid}
    time.sleep(600)


def _lacks(given: Given) -> Iterator[dict[str, Any]]:
    raise LeftOutError("there is no such thing here")
    yield {}


def _fails(given: Given) -> Iterator[dict[str, Any]]:
    yield {"found": 1}
    raise DataError("the file is damaged")


def _breaks(given: Given) -> Iterator[dict[str, Any]]:
    yield {"found": 1 / 0}


def _dies(given: Given) -> Iterator[dict[str, Any]]:
    os._exit(9)
    yield {}


@pytest.mark.thorough
def test_each_step_has_its_limit_and_whatever_happens_the_next_one_begins(tmp_path: Path) -> None:
    runs = {"two": _two, "hangs": _hangs, "lacks": _lacks, "fails": _fails, "breaks": _breaks,
            "dies": _dies, "last": _two}  # fmt: skip
    steps = tuple(
        on_gpu.Step(name, 3.0 if name == "hangs" else 30.0, run, _nothing)
        for name, run in runs.items()
    )
    assert on_gpu.measure(Given("cpu", None, tmp_path), tmp_path, 100.0, steps) == 1
    ended = {step["name"]: step for step in read(tmp_path, "on_gpu")["steps"]}
    assert {name: step["status"] for name, step in ended.items()} == {
        "two": "done", "hangs": "stopped", "lacks": "left out", "fails": "failed",
        "breaks": "failed", "dies": "failed", "last": "done",
    }  # fmt: skip
    assert ended["hangs"]["reason"] == "after its limit of 3 s"
    assert ended["lacks"]["reason"] == "there is no such thing here"
    assert "damaged" in ended["fails"]["reason"]
    assert "ZeroDivisionError" in ended["breaks"]["reason"]
    assert ended["dies"]["reason"].endswith("with 9")
    assert read(tmp_path, "two") == {"found": 2}
    assert read(tmp_path, "fails") == {"found": 1}, "what was found stays"
    started = read(tmp_path, "hangs")["started"]
    assert not psutil.pid_exists(started) or psutil.Process(started).status() == "zombie"
    page = (tmp_path / "on_gpu.md").read_text("utf-8")
    assert "\n## hangs: stopped, " in page
    assert "\n\nafter its limit of 3 s\n" in page


def test_no_time_left_stops_a_step_soon(tmp_path: Path) -> None:
    step = on_gpu.Step("late", 30.0, _hangs, _nothing)
    began = time.monotonic()
    on_gpu.measure(Given("cpu", None, tmp_path), tmp_path, 0.0, (step,))
    assert time.monotonic() - began < 20
    assert read(tmp_path, "on_gpu")["steps"][0]["status"] == "stopped"

"""The commands that the campaign kills and starves: where each begins, and what it writes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.reliability.children import Child
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.runtime import exporter

IMAGES = 12
TESTS = Path(__file__).parents[2] / "tests"


class Stage(NamedTuple):
    """A command by the folder of a trial, and the results below it that it writes.

    `again` is what a second call adds to go on. Where `whole` exists after a kill it is complete:
    the command never writes over it. One that `waits` for processes of its own is killed by the
    clock, not by its CPU time. `varies` are results of which no two are equal; `check` is a command
    that says whether they are right, as the export's own proof does by equal logits.
    """

    command: Callable[[Path], list[str]]
    results: tuple[str, ...]
    again: tuple[str, ...] = ()
    whole: str | None = None
    varies: tuple[str, ...] = ()
    check: Callable[[Path], list[str]] | None = None
    waits: bool = False


def _of_run(name: str, *options: str) -> Callable[[Path], list[str]]:
    return lambda at: [name, f"{at}/run", *(o.format(at=at) for o in options), "--quiet"]


def _of_recipe(name: str, *options: str) -> Callable[[Path], list[str]]:
    return lambda at: [name, f"{at}/r.yaml", *(o.format(at=at) for o in options), "--quiet"]


SHORT = {
    "export": Stage(_of_run("export", "--department", "ward"), ("run/export",)),
    "export to OpenVINO": Stage(
        _of_run("export", "--task", "eye", "--target", "openvino"),
        ("run/export",),
        varies=(".xml", ".bin"),
        check=_of_run("verify"),
    ),
    "pack": Stage(
        _of_run("pack", "--department", "clinic", "--out", "{at}/delivered"),
        ("delivered",),
        whole="delivered",
    ),
    "report": Stage(_of_run("report"), ("run/report.html", "run/report.md")),
    "predict": Stage(
        _of_run("predict", "--task", "eye", "{at}/pictures", "--csv", "{at}/eye.csv", "--audit",
                "{at}/log.jsonl"),
        ("eye.csv", "log.jsonl"),
    ),
}  # fmt: skip
if find_spec("openvino") is None:
    del SHORT["export to OpenVINO"]
LONG = {
    "benchmark": Stage(
        _of_run("benchmark", "--no-teacher", "--task", "eye", "--rounds", "2", "--seconds", "0.01",
                "--iterations", "5", "--repeats", "0", "--largest-batch", "0"),
        ("run/profile",),
        again=("--resume",),
        varies=(".json", ".safetensors", ".lock"),
        check=_of_run("report"),
        waits=True,
    ),
    "teacher": Stage(
        _of_recipe("teacher", "--out", "{at}/new"), ("new/teacher",), again=("--resume",)
    ),
    "decompose": Stage(
        _of_recipe("decompose", "--out", "{at}/half"), ("half/bundle",), again=("--resume",)
    ),
    "extract": Stage(
        _of_recipe("extract", "--base", "{at}/base.safetensors", "--out", "{at}/new", "--model",
                   "cells={at}/cells.pt", "--model", "xray={at}/xray.pt", "--model",
                   "fundus={at}/fundus.pt"),
        ("new/bundle",),
        whole="new/bundle",
    ),
    "compress": Stage(
        lambda at: ["compress", f"{at}/trained", "--out", f"{at}/new", "--energy", "0.9",
                    "--quiet"],
        ("new/bundle",),
        whole="new/bundle",
    ),
}  # fmt: skip
STUDY = {
    "study": Stage(
        _of_recipe("study", "--out", "{at}/new", "--methods", "mtl", "--seeds", "1"),
        ("new",),
        varies=(".json", ".html", ".md", ".svg", ".lock"),
        waits=True,
    ),
}


def material(folder: Path) -> Path:
    """The state on which each trial of the short commands, and the benchmark's, begins."""
    from PIL import Image

    from lorkd_deploy.deploy.export import export
    from tests.deploy.made_run import make_run

    start = folder / "start"
    run = make_run(start / "run", start / "data", images="bundle")
    export(run, department=["clinic"])
    exporter("openvino").probe()  # imports it
    (start / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(start / "pictures" / f"{number}.png")
    return start


def trained_material(start: Path) -> Path:
    """Beside it a recipe, a teacher's run, and models that were fine-tuned, for the trainings."""
    import torch

    sys.path.insert(0, str(TESTS))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    torch.set_num_threads(1)  # a pool of threads isn't there after a fork
    from tests.tiny_recipe import write_recipe
    from tests.training.test_extract import CLASSES, random_state

    recipe = write_recipe(start / "r.yaml")
    for seed, (task, classes) in enumerate(CLASSES.items()):
        head = {"fc.weight": torch.randn(classes, 16), "fc.bias": torch.randn(classes)}
        torch.save({"state_dict": random_state(seed) | head}, start / f"{task}.pt")
    _save(random_state(9), start / "base.safetensors")
    import lorkd_deploy.cli.decompose
    import lorkd_deploy.cli.extract  # noqa: F401 (imported here once, for all trials)

    for command, run in (("teacher", "half"), ("decompose", "trained")):
        # Forked like the trials: torch's autograd refuses them once this process has trained.
        ended = Child([command, str(recipe), "--out", str(start / run), "--quiet"]).wait()
        if ended.code:
            raise LorkdError(f"{command} fails undisturbed: {ended.said[-2000:]}")
        if command == "teacher":
            shutil.copytree(start / "half", start / "trained")
    return start


def _save(state: Mapping[str, object], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(state), path)  # type: ignore[arg-type]

"""Engines of the trial target, for tests of the worker and of the benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from lorkd_deploy import benchmark
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.bundle.write import manifest_json
from lorkd_deploy.data import open_data
from lorkd_deploy.data.npz import NpzData
from lorkd_deploy.deploy.artifact import (
    Artifact,
    EngineFile,
    engine_folder,
    engine_tasks,
    write_artifact,
)
from lorkd_deploy.deploy.proof.parity import Parity
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.profiling.profile import Profile
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.storage import sha256_file
from tests.tiny_bundle import make_bundle
from tests.trial_target import RUNTIME, WEIGHT, install_target

Status = Literal["passed", "failed", "not run here"]


def write_engine(folder: Path, **behaviour: object) -> tuple[Path, str]:
    """An engine of the target `trial`, and where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.json").write_text(json.dumps({"weight": WEIGHT, **behaviour}))
    return folder, "engine.json"


@pytest.fixture
def trial_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, str]]:
    """Installs the target `trial`; → a function that writes an engine of it and says where."""
    install_target(tmp_path / "site", monkeypatch, "trial", RUNTIME)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return write_engine


@pytest.fixture
def hospital(trial_engine: object, tmp_path: Path) -> Hospital:
    """A run with two departments, their engines and the teacher's, all of the trial target."""
    return Hospital(tmp_path / "run", tmp_path / "data")


@pytest.fixture
def findings(trial_engine: object, tmp_path: Path) -> Findings:
    """The same run, but the task `cold` is multi-label."""
    return Findings(tmp_path / "run", tmp_path / "data")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hospital, Profile]:
    """A `Hospital` and its profile, for tests that only read."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        install_target(folder / "site", patch, "trial", RUNTIME)
        patch.syspath_prepend(folder / "site")
        hospital = Hospital(folder / "run", folder / "data")
        return hospital, benchmark(hospital.run)


class Hospital:
    """RUN with two tasks whose images say their label by their brightest channel; its engines
    behave as `behaviour` says (`trial_target`).

    The experts answer every image correctly. So does the teacher in `cold`, whose logits stand
    behind those of `warm`; in `warm` it mistakes each class for the other.
    """

    tasks = {"warm": 2, "cold": 3}  # noqa: RUF012 (read only)
    multilabel: tuple[str, ...] = ()
    images = 33  # of each test split; one chunk and one image of it alone
    large = Preprocess(size=24)  # the teacher's input, whose engine refuses any other

    def __init__(self, run: Path, data: Path, **behaviour: object) -> None:
        self.run, self.data = run, data
        make_bundle(run / "bundle", self.tasks, department=("day", "night"))
        for task, classes in self.tasks.items():
            self._write_images(task, classes)
        self._describe()
        for task, classes in self.tasks.items():
            self.engine(task, _identity(classes), **behaviour)
        swapped = _identity(2)[:, ::-1]
        self.engine("teacher", np.hstack([swapped, _identity(3)]), **behaviour)

    def engine(
        self, name: str, weight: np.ndarray, parity: Status = "passed", **behaviour: object
    ) -> Path:
        """Write the engine of a task, or the teacher's; → its folder."""
        bundle = load_bundle(self.run)
        entries = bundle.manifest.tasks
        own = entries if name == "teacher" else (bundle.task(name),)
        department = "teacher" if name == "teacher" else own[0].department
        folder = self.run / "export" / engine_folder(department, name, "trial", "fp32")
        side = self.large.size if name == "teacher" else bundle.manifest.preprocess.size
        write_engine(folder, weight=weight.tolist(), side=side, **behaviour)
        file = folder / "engine.json"
        preprocess = self.large if name == "teacher" else bundle.manifest.preprocess
        write_artifact(
            Artifact(
                engine=name,
                department=department,
                tasks=engine_tasks(own),
                target="trial",
                precision="fp32",
                files=(
                    EngineFile(name=file.name, sha256=sha256_file(file), bytes=file.stat().st_size),
                ),
                onnx_sha256="0" * 64,
                bundle_sha256="1" * 64 if name == "teacher" else bundle.sha256,
                preprocess=preprocess,
                preprocess_sha256=preprocess.sha256,
                parity=Parity(status=parity),
                facts={},
                build_seconds=0.1,
                environment={},
            ),
            folder,
        )
        return folder

    def _write_images(self, task: str, classes: int) -> None:
        generator = np.random.default_rng(len(task) + classes)
        splits = {}
        for split, count in (("train", 6), ("val", 6), ("test", self.images)):
            numbers = np.arange(count)
            images = generator.integers(0, 100, (count, 16, 16, 3), dtype=np.uint8)
            if task in self.multilabel:
                labels = numbers[:, None] >> np.arange(classes) & 1
                images[:, :, :, :classes] += (120 * labels[:, None, None]).astype(np.uint8)
            else:
                labels = numbers % classes
                images[numbers, :, :, labels] += 120
            splits |= {f"{split}_images": images, f"{split}_labels": labels}
        self.data.mkdir(exist_ok=True)
        np.savez(self.data / f"{task}.npz", **splits)

    def _describe(self) -> None:
        """Give the tiny bundle a whole recipe, and tasks that name the images just written."""
        bundle = self.run / "bundle"
        manifest = load_bundle(bundle).manifest
        tasks, departments = [], []
        for entry in manifest.tasks:
            spec = NpzData(
                source="npz", path=str(self.data / f"{entry.name}.npz"), classes=entry.classes
            )
            data = open_data(spec)
            update = {"data": data.provenance, "kind": data.kind}
            tasks.append(entry.model_copy(update=update))
            task = {"name": entry.name, "data": spec.model_dump(mode="json")}
            departments.append({"name": entry.department, "tasks": [task]})
        recipe = Recipe.model_validate(
            {
                "name": "tiny",
                "departments": departments,
                "preprocess": manifest.preprocess.model_dump(),
                "teacher": {"preprocess": self.large.model_dump()},
                "benchmark": {
                    "rounds": 2,
                    "seconds": 0.01,
                    "iterations": 9,
                    "warmup": 1,
                    "batch_sizes": [1, 4],
                    "seed": 5,
                    "repeats": 0,
                    "largest_batch": 0,
                    "uncached": False,
                },
            }
        )
        complete = manifest.model_copy(
            update={"tasks": tuple(tasks), "recipe": recipe.model_dump(mode="json")}
        )
        (bundle / "manifest.json").write_bytes(manifest_json(complete))


class Findings(Hospital):
    """A `Hospital` whose images of `cold` show any of three findings: image i those of i's bits.

    The teacher answers them correctly but for the last, of which it says the opposite.
    """

    multilabel = ("cold",)

    def __init__(self, run: Path, data: Path) -> None:
        super().__init__(run, data)
        self.engine("teacher", np.hstack([_identity(2), np.diag([1.0, 1.0, -1.0])]))


def _identity(classes: int) -> np.ndarray:
    return np.eye(3)[:, :classes]

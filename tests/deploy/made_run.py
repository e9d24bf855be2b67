"""A whole run in milliseconds: tiny network, two departments, teacher, images on disk.

The reference logits come from NumPy in float64 (`tiny_bundle.forward`), which shares no code with
fusion, graph or runtime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.bundle.manifest import TEACHER, GraphEntry, ParityEntry
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.reference import ImageReference, reference_tensors
from lorkd_deploy.bundle.write import Contents, write_bundle
from lorkd_deploy.data import image_sha256
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe import Recipe, parse_recipe
from lorkd_deploy.run import claim
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import sha256_bytes, sha256_file
from tests import tiny_bundle

RANK, ALPHA, INPUTS = 2, 5.0, 8
TASKS = {"lung": 2, "heart": 2, "eye": 3, "findings": 3}  # findings: multi-label
DEPARTMENTS = {"ward": ("lung", "heart"), "clinic": ("eye", "findings")}
OF_TASK = {task: name for name, tasks in DEPARTMENTS.items() for task in tasks}
PREPROCESS = Preprocess(size=tiny_bundle.SIZE)
ROWS = np.array([0, 1, 4, 5, 9])  # of the test images: those with reference logits


def make_run(path: Path, data: Path, *, images: str = "reference") -> Path:
    """Write RUN with bundle and teacher at `path`, and the tasks' archives into `data`."""
    raw = write_images(data)
    recipe = made_recipe(images)
    claim(path, recipe)
    for kind, folder in (("experts", "bundle"), ("teacher", "teacher")):
        factors = kind == "experts"
        base, own = tiny_bundle.random_parts(TASKS, rank=RANK, factors=factors)
        _write(path / folder, kind, base, own, recipe=recipe, raw=raw)
    return path


def made_recipe(images: str = "reference") -> Recipe:
    """The run's recipe: each task has an archive of its own."""
    departments = [
        {"name": name, "tasks": [{"name": t, "data": _data(t)} for t in tasks]}
        for name, tasks in DEPARTMENTS.items()
    ]
    raw = {
        "name": "made",
        "departments": departments,
        "preprocess": PREPROCESS.model_dump(),
        "parity": {"inputs": INPUTS, "test_images": len(ROWS), "images": images},
    }
    return parse_recipe(raw, where="made_run")


def classes_of(task: str) -> tuple[str, ...]:
    """Class names of a task."""
    return tuple(f"{task} {number}" for number in range(TASKS[task]))


def write_images(data: Path) -> dict[str, Any]:
    """Write `data/TASK.npz` with grey 20 × 24 px images; gives each task's test arrays."""
    data.mkdir(parents=True, exist_ok=True)
    test = {}
    for number, (task, classes) in enumerate(TASKS.items()):
        rng = np.random.default_rng(number)
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 256, (10, 20, 24), np.uint8)
            if task == "findings":
                arrays[f"{split}_labels"] = rng.permuted(np.tile([0, 1, 1], (10, 1)), axis=1)
            else:
                arrays[f"{split}_labels"] = np.arange(10) % classes
        np.savez(data / f"{task}.npz", **arrays)
        test[task] = arrays["test_images"], arrays["test_labels"]
    return test


def true_logits(run: Path, task: str, x: Any) -> Any:
    """The unfused expert's logits for network input `x`, in float64 NumPy."""
    base, experts = tiny_bundle.random_parts(TASKS, rank=RANK)
    return tiny_bundle.forward(tiny_bundle.unfused(base, experts[task], ALPHA / RANK), x)


def rewrite_record(folder: Path, **changes: Any) -> None:
    """Change an engine's artifact.json as someone with bad intent would: hashes fit afterwards."""
    file = folder / "artifact.json"
    record = json.loads(file.read_text()) | changes
    for entry in record["files"]:
        entry["sha256"] = sha256_file(folder / entry["name"])
        entry["bytes"] = (folder / entry["name"]).stat().st_size
    file.write_bytes(document_bytes(record))


def _data(task: str) -> dict[str, Any]:
    return {"source": "npz", "path": f"{task}.npz", "classes": classes_of(task)}


def _write(
    path: Path,
    kind: str,
    base: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]],
    *,
    recipe: Recipe,
    raw: Mapping[str, Any],
) -> None:
    factors = kind == "experts"
    networks = {t: tiny_bundle.unfused(base, tensors, ALPHA / RANK) for t, tensors in own.items()}
    pictures = parity_inputs(INPUTS, PREPROCESS.size, 3)

    def logits(task: str, images: Any) -> Any:
        return tiny_bundle.forward(networks[task], PREPROCESS.normalise(images))

    def reference(task: str) -> ImageReference:
        images, labels = raw[task]
        chosen = [images[row] for row in ROWS]
        resized = np.stack([PREPROCESS.geometry(image) for image in chosen])
        hashes = np.stack([np.frombuffer(image_sha256(image), np.uint8) for image in chosen])
        found = ImageReference(ROWS, hashes, logits(task, resized))
        if recipe.parity.images == "reference":
            return found
        return found._replace(images=resized, labels=labels[ROWS])

    engines = {task: (task,) for task in TASKS} if factors else {TEACHER: tuple(TASKS)}
    described = tiny_bundle.manifest(
        kind=kind,
        name="made",
        parameters={"backbone": 140},
        preprocess=PREPROCESS,
        tasks=[
            tiny_bundle.entry(
                task,
                TASKS[task],
                department=OF_TASK[task],
                classes=classes_of(task),
                kind="multilabel" if task == "findings" else "multiclass",
                data={"source": "npz", "name": f"{task}.npz"},
                rank=RANK if factors else None,
                alpha=ALPHA if factors else None,
                metrics={"expert" if factors else "teacher": {"accuracy": 0.5, "auc": 0.5}},
            )
            for task in TASKS
        ],
        layers=tiny_bundle.LAYERS if factors else (),
        folds=tiny_bundle.FOLDS,
        graph=GraphEntry(opset=18, input="input", output="output", bindings=tiny_bundle.BINDINGS),
        parity=ParityEntry(inputs=INPUTS, seed=3, sha256=sha256_bytes(pictures.tobytes())),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256,
    )
    contents = Contents(
        base=base,
        experts=own,
        logits={
            engine: reference_tensors(
                np.concatenate([logits(t, pictures) for t in tasks], 1),
                {t: reference(t) for t in tasks},
            )
            for engine, tasks in engines.items()
        },
        template=tiny_bundle.template(),
    )
    write_bundle(path, described, contents)

"""A few test images with what both models answer: only on request, since they may be patients'."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lorkd_deploy.metrics.decisions import decided
from lorkd_deploy.metrics.score import F64, I64
from lorkd_deploy.preprocess import U8
from lorkd_deploy.profiling.scoring import open_task
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.reporting.cells import FOUNDATION
from lorkd_deploy.reporting.plots.curves import TaskCurves
from lorkd_deploy.reporting.sources import Sources

MOST = 8  # images a task
DISPUTED = 4  # of these at most so many on which the models disagree


@dataclass(frozen=True)
class Sample:
    """One test image: a PNG as a data link, what it shows, and what each model says of it."""

    src: str
    title: str
    truth: str
    said: tuple[tuple[str, str, bool], ...]


def samples(sources: Sources, given: TaskCurves) -> tuple[Sample, ...]:
    """Up to eight images of a task, at the network's size; none where its data is not here.

    The first four on which the models disagree, then others evenly over the test split.
    """
    manifest = sources.manifest
    recipe = parse_recipe(manifest.recipe, where=sources.bundle.path)
    spec = next(task.data for task in recipe.tasks if task.name == given.task.name)
    data = open_task(given.task, spec, recipe.data_folder)
    if data is None or len(data.test) != len(given.labels):
        return ()
    return tuple(
        _sample(given, index, manifest.preprocess.geometry(data.test.images[index]))
        for index in _chosen(given)
    )


def _chosen(given: TaskCurves) -> list[int]:
    count = len(given.labels)
    picked: list[int] = []
    if FOUNDATION in given.models:
        now = decided(given.models["Expert"], given.labels).reshape(count, -1)
        before = decided(given.models[FOUNDATION], given.labels).reshape(count, -1)
        picked = np.flatnonzero((now != before).any(axis=1))[:DISPUTED].tolist()
    spread = np.linspace(0, count - 1, MOST + len(picked)).astype(int).tolist()
    return list(dict.fromkeys([*picked, *spread]))[:MOST]


def _sample(given: TaskCurves, index: int, image: U8) -> Sample:
    truth = given.labels[index]
    said = []
    for model, probabilities in given.models.items():
        row = probabilities[index : index + 1]
        answer = decided(row, given.labels)[0]
        right = bool(np.array_equal(answer, truth))
        said.append((model, _named(given, answer, row[0]), right))
    return Sample(
        src=_png(image),
        title=f"test image {index}",
        truth=_named(given, truth, None),
        said=tuple(said),
    )


def _named(given: TaskCurves, answer: I64, probabilities: F64 | None) -> str:
    """The class, or every finding that is there, with how sure the model is."""
    chosen = np.flatnonzero(answer).tolist() if np.ndim(answer) else [int(answer)]
    parts = []
    for k in chosen:
        sure = "" if probabilities is None else f" {100 * probabilities[k]:.0f} %"
        parts.append(f"{given.task.classes[k]}{sure}")
    return ", ".join(parts) or "no finding"


def _png(image: U8) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"

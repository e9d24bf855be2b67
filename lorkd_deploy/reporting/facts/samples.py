"""A few test images with what both models answer: only on request, since they may be patients'."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from lorkd_deploy.arrays import F64, I64, U8
from lorkd_deploy.data import TaskData
from lorkd_deploy.deploy.answers.overlay import png
from lorkd_deploy.metrics.decisions import decided
from lorkd_deploy.reporting.cells import EXPERT, FOUNDATION
from lorkd_deploy.reporting.facts.answers import Answers
from lorkd_deploy.reporting.facts.sources import Sources

MOST = 8  # images per task
DISPUTED = 4  # of these, at most this many on which the models disagree


@dataclass(frozen=True)
class Sample:
    """One test image: a PNG as a data link, what it shows, and what each model says of it."""

    src: str
    title: str
    truth: str
    said: tuple[tuple[str, str, bool], ...]


def samples(sources: Sources, answers: Answers, data: TaskData) -> tuple[Sample, ...]:
    """Up to eight test images of a task, at the network's size; none where `data` isn't what was
    answered.

    The first four on which the models disagree, then others evenly over the test split.
    """
    if len(data.test) != len(answers.labels):
        return ()
    geometry = sources.manifest.preprocess.geometry
    return tuple(
        _sample(answers, index, geometry(data.test.images[index])) for index in _chosen(answers)
    )


def _chosen(answers: Answers) -> list[int]:
    count = len(answers.labels)
    picked: list[int] = []
    if FOUNDATION in answers.models:
        now = decided(answers.models[EXPERT], answers.labels).reshape(count, -1)
        before = decided(answers.models[FOUNDATION], answers.labels).reshape(count, -1)
        picked = np.flatnonzero((now != before).any(axis=1))[:DISPUTED].tolist()
    spread = np.linspace(0, count - 1, MOST + len(picked)).astype(int).tolist()
    return list(dict.fromkeys([*picked, *spread]))[:MOST]


def _sample(answers: Answers, index: int, image: U8) -> Sample:
    truth = answers.labels[index]
    said = []
    for model, probabilities in answers.models.items():
        row = probabilities[index : index + 1]
        answer = decided(row, answers.labels)[0]
        right = bool(np.array_equal(answer, truth))
        said.append((model, _named(answers, answer, row[0]), right))
    return Sample(
        src=png_link(image),
        title=f"test image {index}",
        truth=_named(answers, truth, None),
        said=tuple(said),
    )


def _named(answers: Answers, answer: I64, probabilities: F64 | None) -> str:
    """The class, or every finding that is there, with how sure the model is."""
    chosen = np.flatnonzero(answer).tolist() if np.ndim(answer) else [int(answer)]
    parts = []
    for k in chosen:
        sure = "" if probabilities is None else f" {100 * probabilities[k]:.0f} %"
        parts.append(f"{answers.task.classes[k]}{sure}")
    return ", ".join(parts) or "no finding"


def png_link(image: U8) -> str:
    """An image uint8 `(H, W)` or `(H, W, 3)` as a data link."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"

"""Where both models looked, on the test images whose maps the bundles keep: what engines are held
against. No engine is run for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lorkd_deploy.arrays import F32, F64, I64
from lorkd_deploy.bundle.manifest import TEACHER, TaskEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.bundle.reference import image_reference, mapped
from lorkd_deploy.data import TaskData, image_sha256
from lorkd_deploy.deploy.answers.overlay import painted
from lorkd_deploy.metrics.interval import Interval, of_mean
from lorkd_deploy.reporting.cells import EXPERT, FOUNDATION
from lorkd_deploy.reporting.facts.samples import png_link
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.safety.explanation import area

SHOWN = 4  # images per task
MEASURES = ("area above half its largest", "deletion", "insertion")


@dataclass(frozen=True)
class Look:
    """One test image, and by the model's name the picture of where it looked and for what class."""

    title: str
    pictures: tuple[tuple[str, str, str], ...]  # model, PNG as a data link, class


@dataclass(frozen=True)
class _Looked:
    """One model's maps of its most probable class, `(m, h, w)`, of the test images `rows`, with
    their hashes and classes; `figures` `(m, 3)` are those of `MEASURES`, NaN where nothing spoke
    for the class.
    """

    rows: I64
    sha256: tuple[bytes, ...]
    maps: F32
    classes: I64
    figures: F64


def figures(sources: Sources, task: TaskEntry) -> Iterator[tuple[str, Interval, str]]:
    """What is measured of a task's maps: its words, value and interval, and what it rests on."""
    found = _both(sources, task)
    for place, measure in enumerate(MEASURES):
        for model, one in found.items():
            values = one.figures[:, place]
            values = values[~np.isnan(values)]
            if len(values):
                height, width = one.maps.shape[1:]
                on = f"{len(values)} of {len(one.maps)} test images, maps of {height} × {width}"
                yield f"map, {measure}, {model}", of_mean(values), on
        if len(found) == 2:
            now, before = found[EXPERT], found[FOUNDATION]
            paired = (now.figures - before.figures)[:, place]
            paired = paired[~np.isnan(paired)]
            if len(paired):
                words = f"map, {measure}, {EXPERT} minus {FOUNDATION}"
                yield words, of_mean(paired), f"{len(paired)} test images, paired"


def looks(sources: Sources, task: TaskEntry, data: TaskData) -> tuple[Look, ...]:
    """A few test images of a task's `data` with both models' maps; none where there are no maps."""
    found = _both(sources, task)
    if not found:
        return ()
    one = found[EXPERT]
    shown = []
    for place in np.linspace(0, len(one.rows) - 1, min(SHOWN, len(one.rows))).astype(int):
        index = int(one.rows[place])
        if index >= len(data.test) or image_sha256(data.test.images[index]) != one.sha256[place]:
            continue
        image = sources.manifest.preprocess.geometry(data.test.images[index])
        pictures = tuple(
            (
                model,
                png_link(painted(image, looked.maps[place])),
                task.classes[int(looked.classes[place])],
            )
            for model, looked in found.items()
        )
        shown.append(Look(f"test image {index}", pictures))
    return tuple(shown)


def _both(sources: Sources, task: TaskEntry) -> dict[str, _Looked]:
    """The models that have maps of the task, the foundation model first; both of the same images,
    or the expert alone."""
    expert = _looked(sources.bundle, task.name, task)
    if expert is None:
        return {}
    known = sources.teacher is not None and any(
        other.name == task.name and other.classes == task.classes
        for other in sources.teacher.manifest.tasks
    )
    teacher = _looked(sources.teacher, TEACHER, task) if sources.teacher and known else None
    if teacher is None or teacher.sha256 != expert.sha256:
        return {EXPERT: expert}
    return {FOUNDATION: teacher, EXPERT: expert}


def _looked(bundle: Bundle, engine: str, task: TaskEntry) -> _Looked | None:
    tensors = bundle.logits(engine)
    if f"{task.name}.maps" not in tensors:  # nor, where no test image was there, any reference
        return None
    known = image_reference(tensors, task.name, bundle.path)
    if known.maps is None or known.faithful is None:
        return None
    chosen = mapped(len(known.indices))
    classes = known.logits[chosen].argmax(axis=1)
    maps = known.maps[np.arange(len(chosen)), classes]
    side = bundle.manifest.preprocess.size
    areas = np.array([area(one, side) for one in maps])
    return _Looked(
        rows=known.indices[chosen],
        sha256=tuple(digest.tobytes() for digest in known.sha256[chosen]),
        maps=maps,
        classes=classes,
        figures=np.column_stack([areas, known.faithful]).astype(np.float64),
    )

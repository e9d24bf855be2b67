"""What int8 costs, layer by layer, and which layers stay in float32, so that it costs no more than
was allowed. By NNCF's `quantize_with_accuracy_control`, on labelled validation images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lorkd_deploy.arrays import F32, I64
from lorkd_deploy.metrics.score import Kind
from lorkd_deploy.precisions.passes import by_nncf, nncf_folder
from lorkd_deploy.runtime import Int8
from lorkd_deploy.schema import Part

CONTROL = "lorkd_deploy.precisions.accuracy_control"


class LayerGroup(Part):
    """Layers that are quantised together. With these alone in float32, accuracy on the `images`
    that int8 changes most is higher by `gain` points; `left` says whether they stay in float32."""

    layers: tuple[str, ...]
    gain: float
    images: int
    left: bool


class Sensitivity(Part):
    """Which layers of an int8 engine stay in float32, so that it loses `max_drop` points at most.

    Accuracy by task, 0 … 1, on `images` validation images by ONNX Runtime: of the model in `fp32`,
    with all of its `layers` in `int8`, and `mixed`, as it is. `left` are the layers that stay in
    float32, `nodes_left` the graph's nodes that do. `groups`, the most harmful first, is empty
    where int8 alone loses no more than that: nothing was tried then.
    """

    max_drop: float
    images: int
    layers: tuple[str, ...]
    fp32: dict[str, float]
    int8: dict[str, float]
    mixed: dict[str, float]
    nodes_left: tuple[str, ...]
    left: tuple[str, ...]
    groups: tuple[LayerGroup, ...]


class Labelled(NamedTuple):
    """A task's validation images as network inputs float32 `(N, 3, S, S)` with their labels, and
    where its logits stand in the engine's output."""

    task: str
    kind: Kind
    columns: slice
    images: F32
    labels: I64


def measured(
    model: bytes,
    calibration: Callable[[], F32],
    validation: Sequence[Labelled],
    *,
    form: Int8,
    max_drop: float,
) -> Sensitivity:
    """Try the layers of a float32 model in int8, in minutes; raises as `passes.int8` does."""
    with nncf_folder(model, calibration, left=()) as folder:
        np.save(folder / "validation.npy", np.concatenate([one.images for one in validation]))
        tasks, start = [], 0
        for number, one in enumerate(validation):
            np.save(folder / f"labels-{number}.npy", one.labels)
            columns, stop = [one.columns.start, one.columns.stop], start + len(one.labels)
            described = {"name": one.task, "kind": one.kind, "columns": columns}
            tasks.append(described | {"rows": [start, stop]})
            start = stop
        control = {"max_drop": max_drop, "tasks": tasks}
        (folder / "control.json").write_text(json.dumps(control))
        by_nncf(CONTROL, folder, form)
        return Sensitivity.model_validate_json((folder / "found.json").read_bytes())

"""`--precision int8 --max-drop POINTS`: which layers of an engine have to stay in float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.candidates import drop, too_much
from lorkd_deploy.deploy.graphs.source_model import calibration_images, drawn
from lorkd_deploy.deploy.precision.validation import validation_splits
from lorkd_deploy.errors import GateError
from lorkd_deploy.precisions.sensitivity import Labelled, Sensitivity, measured
from lorkd_deploy.runtime import Probe

IMAGES = 500  # of the validation splits, per engine, on which every try is judged
FIX = "allow a larger --max-drop, or choose another --precision"


def sensitivity(
    fused: bytes, bundle: Bundle, engine: str, probe: Probe, max_drop: float
) -> Sensitivity:
    """What int8 costs the engine layer by layer, and which stay in float32, in minutes.

    Raises `DataError` where the training or validation images aren't here, `GateError` where no
    layer can be in int8, or what NNCF found doesn't hold once the model is made of it.
    """
    found = measured(
        fused,
        partial(calibration_images, bundle, engine),
        list(_labelled(bundle, engine)),
        form=probe.int8,
        max_drop=max_drop,
    )
    if set(found.left) == set(found.layers):
        raise GateError(
            f"no layer of {engine} can be in int8: with {max_drop:g} points allowed, all "
            f"{len(found.layers)} would stay in float32",
            where=bundle.path,
            fix=FIX,
        )
    if too_much(lost := drop(found.fp32, found.mixed), max_drop):
        raise GateError(
            f"with {len(found.left)} of {len(found.layers)} layers in float32, {engine} in int8 "
            f"still loses {lost:.2f} points of validation accuracy, {max_drop:g} are allowed",
            where=bundle.path,
            fix=FIX,
        )
    return found


def _labelled(bundle: Bundle, engine: str) -> Iterator[Labelled]:
    """Validation images of each of the engine's tasks, drawn by the calibration's seed."""
    splits = validation_splits(bundle, engine)
    each = -(-IMAGES // len(splits))
    for one in splits:
        rows = drawn(len(one.split), each, bundle.recipe.calibration.seed)
        images = bundle.manifest.preprocess(one.split.images[row] for row in rows)
        labels = np.asarray(one.split.labels)[rows]
        yield Labelled(one.task.name, one.task.kind, one.columns, images, labels)

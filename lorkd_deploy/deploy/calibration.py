"""The images that int8 is calibrated on: the engine's own training images, chosen by a seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.data import open_data
from lorkd_deploy.errors import DataError
from lorkd_deploy.recipe import parse_recipe

F32 = npt.NDArray[np.float32]


def calibration_images(bundle: Bundle, engine: str) -> F32:
    """Network inputs float32 `(N, 3, S, S)` from the training splits of the engine's tasks.

    Their number and the seed stand in the recipe; an engine of several tasks takes equally many of
    each. Raises `DataError` where the images aren't here or are others.
    """
    recipe = parse_recipe(bundle.manifest.recipe, where=bundle.path)
    specs = {task.name: task.data for task in recipe.tasks}
    tasks = bundle.engine(engine)
    each = -(-recipe.calibration.images // len(tasks))
    parts = []
    for task in tasks:
        data = open_data(specs[task.name], recipe.data_folder)
        if data.classes != task.classes:
            raise DataError(
                f"the data of {task.name} that is here has other classes than the bundle's",
                where=f"{data.provenance['source']} {data.provenance['name']}",
                fix="int8 is calibrated on the training images: put those here",
            )
        # Raw bits of PCG64: NumPy keeps this stream from version to version.
        bits = np.random.PCG64(recipe.calibration.seed).random_raw(len(data.train))
        rows = np.sort(np.argsort(bits, kind="stable")[:each]).tolist()
        parts.append(bundle.manifest.preprocess(data.train.images[row] for row in rows))
    return np.concatenate(parts)

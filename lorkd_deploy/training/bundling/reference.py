"""What engines are held against: the unfused network's logits, written before any export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lorkd_deploy.arrays import F32, I64, U8
from lorkd_deploy.bundle.reference import ImageReference, reference_tensors
from lorkd_deploy.data import image_sha256
from lorkd_deploy.experts import TaskNetwork
from lorkd_deploy.storage import Tensors
from lorkd_deploy.training.batches.loader import Images
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.networks.evaluate import task_logits
from lorkd_deploy.training.networks.network import network_input


def reference_logits(
    setup: Setup,
    model: TaskNetwork,
    pictures: U8,
    engines: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Tensors]:
    """Each engine's reference: fp32 on the CPU, wherever `model` was trained.

    `pictures` `(n, S, S, 3)` are the generated inputs; `engines` the places of each one's tasks in
    `setup`, by default an engine per task. Raises `ModelError` for logits that are not finite.
    """
    model = model.cpu().float().eval()
    engines = engines or {name: (task,) for task, name in enumerate(setup.names)}
    return {
        engine: reference_tensors(
            np.concatenate([_logits_of(model, pictures, t, setup) for t in tasks], axis=1),
            {setup.names[t]: _image_reference(model, t, setup) for t in tasks},
        )
        for engine, tasks in engines.items()
    }


@torch.no_grad()
def _logits_of(model: TaskNetwork, pictures: U8, task: int, setup: Setup) -> F32:
    x = network_input(pictures, setup.preprocess, model)
    logits: F32 = model(x, torch.full((len(x),), task)).logits[task].numpy()
    return logits


def _image_reference(model: TaskNetwork, task: int, setup: Setup) -> ImageReference:
    """The task's parity images; if the recipe ships them, with their pixels and labels."""
    recipe = setup.recipe
    images = setup.data[task].test.images
    count = min(recipe.parity.test_images, len(images))
    rows = np.sort(np.random.default_rng(recipe.seed).permutation(len(images))[:count])
    digests = [np.frombuffer(image_sha256(images[int(row)]), np.uint8) for row in rows]
    hashes = np.stack(digests) if digests else np.empty((0, 32), np.uint8)
    chosen = _ChosenImages(setup.test[task], rows)
    logits = task_logits(model, chosen, task, setup.preprocess)
    if recipe.parity.images == "reference":
        return ImageReference(rows, hashes, logits)
    return ImageReference(rows, hashes, logits, setup.test[task][rows], chosen.labels)


class _ChosenImages(Images):
    """Some images of a split, in the given order."""

    def __init__(self, images: Images, rows: I64) -> None:
        self.labels = images.labels[rows]
        self._images = images
        self._rows = rows

    def __getitem__(self, rows: I64) -> U8:
        return self._images[self._rows[rows]]
